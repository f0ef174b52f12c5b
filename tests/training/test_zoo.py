"""Entries of the zoo: one is made of a run and read back; those that there are reach what their cards say."""

import functools
import hashlib
import importlib
import json
import math
import pathlib
import re
import shlex
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

import cpng_jax
from configs import digits
from cpng_jax import data
from cpng_jax.data import idx, prepare
from cpng_jax.models import zoo as entries
from cpng_jax.runtime import command, config_file, metrics, npz
from cpng_jax.runtime.config import brought_up_to_date, differing, flatten, from_flat
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import card_page, keys, loop, weights, zoo
from tests import forked
from tests.runs import contents, final_state

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = ROOT / 'configs' / 'digits.py'
LARGEST = 8e6


@pytest.fixture(scope='module')
def tiny(shrink, tmp_path_factory):
    """A finished run of an epoch, with a validation split; another place for its data changes nothing."""
    config = shrink(digits.get_config())
    config.epochs, config.data.validation, config.data.dir = 1, 0.2, str(tmp_path_factory.mktemp('data'))
    workdir = tmp_path_factory.mktemp('runs') / 'tiny'
    loop.run(config, workdir)
    return config, workdir


@pytest.fixture(scope='module')
def entry(tiny, tmp_path_factory):
    """The entry made of it."""
    out = tmp_path_factory.mktemp('zoo') / 'tiny'
    assert zoo.main([f'--workdir={tiny[1]}', f'--out={out}', '--config=digits', '--dtype=float16']) == 0
    return out


@pytest.fixture
def copy(entry, tmp_path):
    return pathlib.Path(shutil.copytree(entry, tmp_path / 'tiny'))


def parsed(line):
    """The configuration that a command line asks for."""
    values = flags.FlagValues()
    command.define_config('', values)
    command.define_workdir('', values)
    flags.DEFINE_string('mode', 'train', '', flag_values=values)
    _, program, *arguments = shlex.split(line)
    assert command.parse_flags([program, *arguments], keys.RETIRED, values) == ['train.py']
    return values['config'].value


@pytest.mark.trains
def test_the_card_tells_the_run(tiny, entry):
    config, workdir = tiny
    card, (row,) = cpng_jax.card(entry), metrics.read_epochs(workdir)
    changed = ['batch_size', 'data.per_class', 'data.validation', 'epochs', 'model.stages', 'model.time_steps']
    assert differing(flatten(digits.get_config()), card['config'], keys.table()) == changed
    assert card['config'] == flatten(config) | {
        key: flatten(digits.get_config())[key] for key in ('data.dir', 'data.threads', 'eval.batch_size')
    }
    assert card['configuration'] == 'digits'
    assert card['weights'] == 'of epoch 1, the last: nothing was chosen'
    assert card['seconds'] == pytest.approx(row['wall_seconds'], abs=0.1)
    assert card['environments'] == json.loads((workdir / 'environment.json').read_text())
    assert card['examples'] == {'train': 360, 'validation': 287, 'test': 360}
    assert card['parameters'] == sum(
        array.size for name, array in entries.read(entry).items() if name.startswith('params/')
    )
    assert card['sha256'] == hashlib.sha256((entry / 'weights.npz').read_bytes()).hexdigest()
    for split in ('validation', 'test'):
        assert card[split]['accuracy'] == card[split]['correct'] / card[split]['examples']
    assert card['validation']['accuracy'] == pytest.approx(row['validation_accuracy'], abs=0.02)  # it was rounded
    assert (entry / 'README.md').read_text() == card_page.page(card)
    assert sorted(path.name for path in entry.parent.iterdir()) == ['tiny'], 'what was written beside it is gone'


@pytest.mark.trains
def test_the_commands_of_the_card_are_those_of_the_run(tiny, entry):
    config, _ = tiny
    commands = cpng_jax.card(entry)['commands']
    free = {key.name: value for key in keys.table().known.values() if key.free for value in [flatten(config)[key.name]]}
    assert flatten(parsed(commands['train'])) | free == flatten(config)
    assert flatten(parsed(commands['evaluate'])) | free == flatten(config) | {'init_from': 'zoo/tiny'}


@pytest.mark.trains
def test_the_weights_are_those_of_the_run_rounded(tiny, entry):
    saved, state = entries.read(entry), final_state(*tiny)
    assert {array.dtype for array in saved.values()} == {np.dtype('float16')}
    assert len(saved) == 16
    for name, array in saved.items():
        part, *path = name.split('/')
        expected = state[f'.{part}' + ''.join(f"['{inner}']" for inner in path)]
        np.testing.assert_array_equal(array, expected.astype(np.float16), err_msg=name)


@pytest.mark.trains
def test_what_is_loaded_answers_as_the_card_says(tiny, entry):
    """As someone does who has the library alone, and the test images from elsewhere."""
    module, variables = cpng_jax.load(entry)
    card, test = cpng_jax.card(entry), data.load(tiny[0].data).test
    images, labels = (np.stack([test[i][name] for i in range(len(test))]) for name in ('image', 'label'))
    logits = module.apply(variables, cpng_jax.network_input(images, card['mean'], card['std']))
    assert isinstance(logits, jnp.ndarray)
    assert logits.shape == (2, 360, 10)
    assert int((logits.mean(axis=0).argmax(axis=-1) == labels).sum()) == card['test']['correct']


@pytest.mark.trains
def test_given_weights_are_evaluated_and_a_run_that_started_from_them_by_its_checkpoint(
    tiny, entry, tmp_path, capsys, monkeypatch
):
    config, workdir = tiny
    card, other = cpng_jax.card(entry), config.copy_and_resolve_references()
    evaluated = functools.partial(loop.run, other, mode='eval')
    before = contents(workdir)
    (tmp_path / 'home').mkdir()
    monkeypatch.setattr(entries, 'home', lambda: tmp_path / 'home')
    shutil.copytree(entry, tmp_path / 'home' / 'tiny')
    for source, said in (
        (entry, str(entry)),
        (entry / 'weights.npz', str(entry / 'weights.npz')),
        ('zoo/tiny', str(tmp_path / 'home' / 'tiny')),
    ):
        other.init_from = str(source)
        # Whether the workdir is that of another run or of none.
        result = evaluated(workdir if source == entry else tmp_path / 'none')
        assert (result['correct'], result['examples'], result['step']) == (card['test']['correct'], 360, None)
        assert result['validation_accuracy'] == card['validation']['accuracy']
        assert capsys.readouterr().out.startswith(f'{said}: test accuracy ')
    assert not (tmp_path / 'none').exists()
    assert contents(workdir) == before

    other.init_from = str(entry)
    loop.run(other, tmp_path / 'tuned')
    capsys.readouterr()
    assert evaluated(tmp_path / 'tuned')['step'] == 11
    assert capsys.readouterr().out.startswith('latest checkpoint, step 11: test accuracy ')
    other.init_from = str(tmp_path / 'tuned')
    assert evaluated(tmp_path / 'none')['step'] == 11
    assert capsys.readouterr().out.startswith(f'{tmp_path / "tuned"}, checkpoint of step 11: test accuracy ')
    other.init_skip = 'output,surrogate'
    with pytest.raises(UserError, match=r"init_skip is 'output,surrogate', which leaves params/output/dense/bias at"):
        evaluated(tmp_path / 'none')
    other.init_skip = 'surrogate,scale'  # has no effect on an answer
    assert evaluated(tmp_path / 'none')['step'] == 11


@pytest.mark.trains
def test_what_cannot_be_made_is_one_sentence_and_leaves_nothing(tiny, entry, tmp_path, capsys):
    _, workdir = tiny
    new = tmp_path / 'zoo' / 'tiny'

    def refusal(source, *more, out=new):
        assert zoo.main([f'--workdir={source}', f'--out={out}', f'--config={DIGITS}', *more]) == 2
        error = capsys.readouterr().err
        assert error.count('\n') == 1
        return error

    def changed(name, change):
        folder = pathlib.Path(shutil.copytree(workdir, tmp_path / f'run{len(list(tmp_path.iterdir()))}'))
        path = folder / name
        path.write_text(change(path.read_text()))
        return folder

    before = contents(entry)
    assert f'zoo: {entry} is there already and stays as it is' in refusal(workdir, out=entry)
    assert contents(entry) == before
    assert 'There is no run in' in refusal(tmp_path)
    unfinished = changed('config.json', lambda text: text.replace('"epochs": 1', '"epochs": 2'))
    assert f'The run in {unfinished} has finished 1 of 2 epochs: train to the end first.' in refusal(unfinished)
    newer = changed('config.json', lambda text: text.replace('"epochs"', '"eras"'))
    assert "config has no key 'eras'" in refusal(newer)
    assert 'has finished 0 of 1 epochs' in refusal(changed('metrics.jsonl', lambda text: ''))
    lost = changed('metrics.jsonl', lambda text: text)
    shutil.rmtree(lost / 'checkpoints')
    assert 'There is no checkpoint in' in refusal(lost)
    assert "--config is 'nowhere.py', which is not a file" in refusal(workdir, '--config=nowhere.py')
    assert zoo.main([f'--workdir={workdir}', f'--out={new}']) == 2
    assert "--config is 'tiny', which is none that comes with the package" in capsys.readouterr().err
    assert not new.parent.exists()


def test_weights_that_the_dtype_cannot_hold_are_refused():
    saved = zoo.arrays.Saved(1, {'params/a': np.array([1, 1e5], np.float32)})
    with pytest.raises(UserError, match=r'--dtype is float16, which params/a does not fit into: take float32\.'):
        zoo.rounded(saved, 'float16')


@pytest.mark.trains
def test_the_best_checkpoint_is_told_by_what_it_was_chosen_on(tiny, tmp_path):
    config, workdir = tiny
    card = zoo.make(workdir, tmp_path / 'tiny', file=DIGITS, which='best')
    assert card['weights'] == 'of epoch 1, the best of 1 on the validation split'
    assert card['dtype'] == 'float32'
    row = {'epoch': 1, 'step': 9, 'test_accuracy': 0.5}
    assert zoo.chosen(config, 1, 'best', row).endswith('on the test split, so that its accuracy there is flattered')


@pytest.mark.trains
def test_a_damaged_entry_is_one_sentence(copy):
    with (copy / 'weights.npz').open('r+b') as file:
        file.seek(200)
        file.write(b'damage')
    with pytest.raises(
        UserError, match=r'weights\.npz is not the file that its card is about: its sha256 is .*damaged'
    ):
        cpng_jax.load(copy)
    config = from_flat(cpng_jax.card(copy)['config'] | {'init_from': str(copy)})
    with pytest.raises(UserError, match=r'weights\.npz is not the file that its card is about'):
        weights.start(config, {})
    (copy / 'weights.npz').unlink()
    with pytest.raises(UserError, match=r'weights\.npz cannot be read \(No such file'):
        cpng_jax.load(copy)
    card = json.loads((copy / 'card.json').read_text())
    for text, sentence in (
        ('{', r'card\.json cannot be read \('),
        ('[]', r'card\.json is a card of format None, this version of cpng_jax reads 1\.'),
        (json.dumps(card | {'format': 2}), r'is a card of format 2, this version of cpng_jax reads 1\.'),
        (json.dumps({'format': 1}), r"card\.json is damaged \(it lacks 'name'\)"),
    ):
        (copy / 'card.json').write_text(text)
        with pytest.raises(UserError, match=sentence):
            cpng_jax.load(copy)


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('digts', r"The zoo has no network 'digts'; the nearest is 'digits' of digits, "),
        ('', r"The zoo has no network ''; "),
        ('zoo/digts', r"'zoo/digts' is no folder of a zoo: it has no card\.json; the nearest is 'digits' of "),
        (pathlib.Path('digits'), r"'digits' is no folder of a zoo: it has no card\.json"),
    ],
)
def test_an_unknown_name_has_the_nearest_and_all(name, sentence):
    with pytest.raises(UserError, match=sentence):
        cpng_jax.load(name)


def test_a_zoo_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, 'home', lambda: tmp_path)
    with pytest.raises(UserError, match=r'There is no zoo in .*: install cpng_jax anew'):
        cpng_jax.load('digits')


TABLE = f"""before
{card_page.BEGIN}

| config | here | weights | first |
|---|---|---|---|
| `configs/a.py` | old | old | x |
| `configs/b.py` | old | old | y |

{card_page.END}
after
"""


def test_the_columns_of_the_table_are_those_of_the_cards():
    card = {'name': 'b', 'test': {'accuracy': 0.98765, 'correct': 9877, 'examples': 10000}}
    text = card_page.with_table(TABLE, {'b': card})
    assert text.replace('| old | old | x |', '').splitlines()[:2] == TABLE.splitlines()[:2]
    assert '| `configs/a.py` | - | - | x |\n' in text
    assert '| `configs/b.py` | 98.77 % (9,877 of 10,000) | [zoo/b](zoo/b/README.md) | y |\n' in text
    assert card_page.with_table(text, {'b': card}) == text
    with pytest.raises(UserError, match=r'the table has no row with configs/c\.py'):
        card_page.with_table(TABLE, {'c': card | {'name': 'c'}})
    with pytest.raises(UserError, match=r'expected a table with the columns here and weights between'):
        card_page.with_table('no table', {})


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(None, 'for an unknown time'), (61.4, '61 s'), (305, '5 min'), (7500, '2 h 5 min')],
)
def test_a_time_is_written_for_a_reader(seconds, text):
    assert card_page.duration(seconds) == text


# The entries that there are.


def test_the_zoo_has_its_networks_and_is_small():
    assert {'digits', 'digits_events', 'fashion_mnist_cnn', 'fashion_mnist_mlp', 'mnist5k'} <= {*entries.names()}
    assert sum(path.stat().st_size for path in entries.home().rglob('*') if path.is_file()) < LARGEST


@pytest.mark.parametrize('name', entries.names())
def test_an_entry_is_what_its_configuration_and_its_page_say(name):
    folder, card = entries.home() / name, cpng_jax.card(name)
    assert card['name'] == name
    assert sorted(path.name for path in folder.iterdir()) == ['README.md', 'card.json', 'weights.npz']
    assert (folder / 'README.md').read_text() == card_page.page(card)
    base = config_file.load(str(ROOT / 'configs' / f'{card["configuration"]}.py'))
    config = brought_up_to_date(card['config'], keys.table())
    changes = differing(flatten(base), config, keys.table())
    assert [command.override(key, config[key]) for key in changes] == card['overrides']
    assert {array.dtype.name for array in npz.read(folder / 'weights.npz').values()} == {card['dtype']}
    assert not re.search(r'"/', (folder / 'card.json').read_text()), 'a path of a machine'


@pytest.mark.parametrize('name', entries.names())
def test_an_entry_has_the_arrays_of_its_network(name):
    (module, variables), card = cpng_jax.load(name), cpng_jax.card(name)
    images = cpng_jax.network_input(np.zeros((1, *card['image_shape']), np.uint8), card['mean'], card['std'])
    expected = weights.flat(jax.eval_shape(module.init, jax.random.key(0), images))
    found = weights.flat(variables)
    if 'scale' not in variables:  # from before surrogate gradients had a height
        expected = {array: shape for array, shape in expected.items() if not array.startswith('scale/')}
    assert list(found) == list(expected)
    assert [(leaf.shape, leaf.dtype) for leaf in found.values()] == [(x.shape, x.dtype) for x in expected.values()]


def test_the_readme_has_the_table_of_the_zoo():
    text = (ROOT / 'README.md').read_text()
    assert card_page.with_table(text, zoo.cards()) == text, 'python -m cpng_jax.training.zoo --table=README.md'


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """Makes a data set of what is installed; None where it is not."""
    folder = tmp_path_factory.mktemp('data')

    @functools.cache
    def made(name):
        package = idx.DATASETS[name].package if name in idx.DATASETS else None
        if package and package[1].is_dir():
            prepare.prepare(name, folder)
        return folder if package is None or package[1].is_dir() else None

    return made


# Its 16,000 images take minutes here: of these a share, below.
CONVOLUTIONAL = 'fashion_mnist_cnn'


@pytest.mark.trains
def test_the_convolutional_network_recognises_a_share_as_its_card_says_of_all(data_dir):
    card, (module, variables) = cpng_jax.card(CONVOLUTIONAL), cpng_jax.load(CONVOLUTIONAL)
    config = importlib.import_module(f'configs.{CONVOLUTIONAL}').get_config().data
    folder = data_dir(card['data'])
    config.dir, config.fake = str(folder), folder is None
    test, count = data.load(config).test, 256
    images, labels = (np.stack([test[i][name] for i in range(count)]) for name in ('image', 'label'))
    apply = jax.jit(lambda images: module.apply(variables, cpng_jax.network_input(images, card['mean'], card['std'])))
    logits = np.concatenate([apply(part) for part in np.split(images, count // 128)], axis=1)
    assert np.isfinite(logits).all()
    if folder is None:  # of random images there is nothing to recognise
        return
    correct = (logits.mean(axis=0).argmax(axis=-1) == labels).mean()
    share = card['test']['correct'] / card['test']['examples']
    assert abs(correct - share) < 3 * math.sqrt(share * (1 - share) / count)


@pytest.mark.trains
@pytest.mark.processes
@pytest.mark.parametrize('name', entries.names())
def test_the_command_of_an_entry_gives_the_digits_of_its_card(name, data_dir):
    card = cpng_jax.card(name)
    folder = data_dir(card['data']) if name != CONVOLUTIONAL else None
    # Without its data a network is run on random images of their shape: all fits, what it reaches is nothing.
    made_up = ('--config.data.fake=True', '--config.data.fake_examples=200')
    _, *arguments = shlex.split(card['commands']['evaluate'])
    done = forked.run(*arguments, *([f'--config.data.dir={folder}'] if folder else made_up))
    assert done.returncode == 0, done.stderr
    found = re.findall(r'(\w+) accuracy \S+ \((\d+) of (\d+)\), loss (\S+?)[;\n]', done.stdout)
    assert [split for split, *_ in found] == [split for split in ('test', 'validation') if split in card]
    if folder:
        for split, correct, examples, loss in found:
            assert int(examples) == card[split]['examples']
            # Another processor, or another way to compile, sums in another order: of thousands one may tip over.
            assert abs(int(correct) - card[split]['correct']) <= int(examples) // 5000
            assert float(loss) == pytest.approx(card[split]['loss'], rel=1e-2)
