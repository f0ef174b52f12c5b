"""Command lines that are wrong, parsed in this process: each is one sentence that names the flag."""

import errno
import os
import shlex

import pytest
from absl import flags

from configs import digits, digits_few
from cpng_jax.runtime import command, config_file
from cpng_jax.runtime.config import flatten, validate
from cpng_jax.runtime.errors import UserError, files_named
from cpng_jax.training import keys


@pytest.fixture
def parse():
    """Parses what comes after the name of a program: its configuration, and what is left of the command line."""
    values = flags.FlagValues()
    command.define_config('', values)
    command.define_workdir('', values)

    def parsed(*arguments):
        rest = command.parse_flags(['train.py', *map(str, arguments)], keys.RETIRED, values)
        validate(values['config'].value, keys.table())
        return values['config'].value, rest[1:]

    return parsed


DIGITS, FEW = (config_file.home() / f'{name}.py' for name in ('digits', 'digits_few'))


@pytest.mark.parametrize(
    ('arguments', 'changes', 'rest'),
    [
        ([], {}, []),
        (['--config.seed=3', f'--config={DIGITS}'], {'seed': 3}, []),
        (['--config=digits', '--config.seed=3'], {'seed': 3}, []),
        (['--config', 'configs/digits.py'], {}, []),
        (['-config.seed', '3', '--noconfig.data.flip', 'a', 'b'], {'seed': 3}, ['a', 'b']),
        (['--config.data.flip', '--config', DIGITS], {'data.flip': True}, []),
        (['--config.model.stages=((4,),(8,8))'], {'model.stages': [[4], [8, 8]]}, []),
        (['--config.seed=3', '--config.seed=4'], {'seed': 4}, []),
        (['--config.seed= 3 ', '--', '--config.seed=5'], {'seed': 3}, ['--config.seed=5']),
        (['--config.model.time_steps=3'], {'model.time_steps': 3, 'data.time_steps': 3}, []),
    ],
    ids=lambda value: ' '.join(map(str, value)) if isinstance(value, list) else '',
)
def test_flags_change_the_configuration(parse, arguments, changes, rest):
    config, others = parse(*arguments)
    assert flatten(config) == flatten(digits.get_config()) | changes
    assert others == rest


def test_a_file_of_flags_is_as_flags(parse, tmp_path):
    (tmp_path / 'flags').write_text(f'# of a run\n--config.seed=3\n--config={FEW}\n--workdir=there\n')
    config, _ = parse(f'--flagfile={tmp_path / "flags"}', '--config.epochs=2')
    assert flatten(config) == flatten(digits_few.get_config()) | {'seed': 3, 'epochs': 2}


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['--config=a.py', '--config=b.py'], r"--config is given more than once, as 'a\.py' and 'b\.py': give one\."),
        (['--config'], r"--config is '', expected a path"),
        (['--config='], r"--config is '', expected a path"),
        (['--config=.'], r"--config is '\.', which is not a file"),
        (['--config.epoch=3'], r"config has no key 'epoch'; the nearest is 'epochs'\."),
        (['--config. epochs=3'], r"config has no key ' epochs'; the nearest is 'epochs'\."),
        (['--config.epochs.x=3'], r"config has no key 'epochs\.x'; the nearest is 'epochs'\."),
        (['--config.=3'], r"config has no key ''; "),
        (['--config.data=3'], r'config\.data is a section: set its keys, such as config\.data\.\w+\.'),
        (['--config.data={}'], r'config\.data is a section'),
        (['--config.epochs'], r'Missing value for flag --config\.epochs'),
        (['--config.epochs='], r'flag --config\.epochs=: invalid literal'),
        (['--config.epochs=3.5'], r'flag --config\.epochs=3\.5: invalid literal'),
        (['--config.epochs', '--config.seed=3'], r'flag --config\.epochs=--config\.seed=3: invalid literal'),
        (['--config.seed=-1'], r'config\.seed is -1, expected an integer from 0 to'),
        (['--config.optim.learning_rate=nan'], r'config\.optim\.learning_rate is nan, expected a number above 0'),
        (['--config.optim.learning_rate=1e999'], r'config\.optim\.learning_rate is inf, expected a number above 0'),
        (['--config.data.flip=maybe'], r'flag --config\.data\.flip=maybe: .*Non-boolean'),
        (['--noconfig.epochs'], r"Unknown command line flag 'noconfig\.epochs'"),
        (['--noconfig'], r"Unknown command line flag 'noconfig'"),
        (['--config.model.stages=((16,),'], r'flag --config\.model\.stages=\(\(16,\),: Error while parsing'),
        (['--workdri=x'], r"Unknown command line flag 'workdri'\. Did you mean: workdir"),
        (['--workdir'], r'Missing value for flag --workdir'),
        (['--workdir='], r'flag --workdir=: expected a folder'),
        (['--flagfile=nowhere/at/all'], r"Unable to open flagfile: .*'nowhere/at/all'"),
        (['--flagfile'], r'--flagfile with no argument'),
        (['--flagfile=.'], r"Unable to open flagfile: .*Is a directory: '\.'"),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_a_wrong_flag_is_one_sentence(parse, arguments, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        parse(*arguments)
    assert '\n' not in str(caught.value)


def test_the_flags_of_a_configuration_are_written_for_a_shell():
    values = flags.FlagValues()
    command.define_config('', values)
    line = "--config=digits_few --config.model.stages='((4,),(8, 8))' --noconfig.data.flip --config.init_from='a b'"
    command.parse_flags(['train.py', *shlex.split(line)], keys.RETIRED, values)
    written = command.overrides(values)
    assert written == [
        '--config=digits_few', "'--config.model.stages=((4,), (8, 8))'", '--config.data.flip=False',
        "'--config.init_from=a b'",
    ]  # fmt: skip
    again = flags.FlagValues()
    command.define_config('', again)
    command.parse_flags(['train.py', *shlex.split(' '.join(written))], keys.RETIRED, again)
    assert flatten(again['config'].value) == flatten(values['config'].value)
    assert command.config_name(values) == 'digits_few'


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        (b'--config.epoch=3\n', r"config has no key 'epoch'; the nearest is 'epochs'\."),
        (b'--config.neuron.ds_atgo=True\n', r'config\.neuron\.ds_atgo has become config\.neuron\.kind'),
        (b'--config=a.py\n--config=b.py\n', r'--config is given more than once'),
        (b'\xff\xfe\x00\x81', r'--flagfile names a file that is not text: '),
    ],
    ids=lambda value: '',
)
def test_a_wrong_file_of_flags_is_one_sentence(parse, tmp_path, text, sentence):
    (tmp_path / 'flags').write_bytes(text)
    with pytest.raises(UserError, match=sentence):
        parse(f'--flagfile={tmp_path / "flags"}')


def test_a_program_without_a_configuration_has_its_flags_checked():
    values = flags.FlagValues()
    command.define_choice('checkpoint', ('latest', 'best'), '', values)
    sentence = r"flag --checkpoint=bst: value should be one of <latest\|best>; the nearest is 'best'"
    with pytest.raises(UserError, match=sentence):
        command.parse_flags(['analysis', '--checkpoint=bst'], None, values)
    assert values['checkpoint'].default == 'latest'
    assert command.parse_flags(['analysis', 'chi', '--checkpoint=best'], None, values) == ['analysis', 'chi']


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    @files_named()
    def read(path):
        return path.read_text()

    (tmp_path / 'file').write_text('text')
    assert read(tmp_path / 'file') == 'text'
    with pytest.raises(UserError, match=r'Cannot read or write .*file/x: Not a directory\.'):
        read(tmp_path / 'file' / 'x')
    with pytest.raises(UserError, match=r'Cannot read or write a file: No space left on device\.'), files_named():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
