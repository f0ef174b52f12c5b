"""Configuration files wherever they lie: what they import is found, and hides nothing."""

import random
import sys
import types

import jax
import pytest

import configs
from cpng_jax.runtime import config_file
from cpng_jax.runtime.config import flatten
from cpng_jax.runtime.errors import UserError

MINE = 'from configs import base\n\ndef get_config():\n    return base.get_config()\n'


@pytest.fixture(autouse=True)
def path_and_modules(monkeypatch):
    """Puts back what files change for all that comes after them."""
    monkeypatch.setattr(sys, 'path', sys.path.copy())
    monkeypatch.setattr(configs, '__path__', [*configs.__path__])
    before = {name: module for name, module in sys.modules.items() if name.partition('.')[0] == 'configs'}
    yield
    for name in [name for name in sys.modules if name.partition('.')[0] == 'configs']:
        del sys.modules[name]
    sys.modules.update(before)


def forget_configs():
    for name in [name for name in sys.modules if name.partition('.')[0] == 'configs']:
        del sys.modules[name]


@pytest.mark.parametrize('package', [True, False], ids=['package', 'folder'])
@pytest.mark.parametrize('imported', [True, False], ids=['imported', 'on_the_path'])
def test_another_package_called_configs_on_the_path_hides_nothing(tmp_path, monkeypatch, package, imported):
    other = tmp_path / 'configs'
    other.mkdir()
    (other / 'base.py').write_text('raise RuntimeError("not ours")\n')
    (other / 'theirs.py').write_text('NAME = "theirs"\n')
    if package:
        (other / '__init__.py').write_text('')
    monkeypatch.syspath_prepend(str(tmp_path))
    forget_configs()
    if imported:
        from configs import theirs

        assert theirs.NAME == 'theirs'
    expected = flatten(config_file.load(str(config_file.DEFAULT_CONFIG)))
    assert expected['data.name'] == 'digits'
    mine = tmp_path / 'mine.py'
    mine.write_text('from configs import theirs\n' + MINE)
    assert flatten(config_file.load(str(mine)))['data.name'] == 'digits', 'both are found'


def test_a_file_outside_the_repository_finds_ours_and_its_neighbours(tmp_path, monkeypatch):
    (tmp_path / 'mine.py').write_text(
        MINE.replace('return base.get_config()', 'config = base.get_config(); config.epochs = neighbour.EPOCHS')
        .replace('from configs', 'import neighbour\nfrom configs')
        .replace('EPOCHS\n', 'EPOCHS; return config\n')
    )
    (tmp_path / 'neighbour.py').write_text('EPOCHS = 7\n')
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    monkeypatch.delitem(sys.modules, 'neighbour', raising=False)
    for file in (str(tmp_path / 'mine.py'), '../mine.py'):
        config = config_file.load(file)
        assert config.epochs == 7


def test_a_folder_of_ones_own_called_configs_adds_to_ours(tmp_path):
    folder = tmp_path / 'configs'
    folder.mkdir()
    (folder / 'start.py').write_text(MINE)
    (folder / 'mine.py').write_text(MINE.replace('import base', 'import start').replace('base.', 'start.'))
    assert flatten(config_file.load(str(folder / 'mine.py')))['data.name'] == 'digits'


@pytest.mark.parametrize('folder', ['mine', 'configs'])
def test_an_installed_package_has_no_configurations_and_reads_those_of_its_user(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(config_file, '_OURS', tmp_path / 'site-packages' / 'configs' / '__init__.py')
    forget_configs()
    file = tmp_path / folder / 'mine.py'
    file.parent.mkdir()
    file.write_text(
        'from cpng_jax.runtime.config import defaults\nfrom cpng_jax.training import keys\n\n'
        'def get_config():\n    return defaults(keys.table())\n'
    )
    assert flatten(config_file.load(str(file)))['data.name'] == 'digits'
    with pytest.raises(UserError, match=r'--config is .*other\.py.*, which is not a file\.$'):
        config_file.load(str(tmp_path / 'other.py'))


def test_neighbours_hide_no_module(tmp_path):
    for name in ('jax', 'random', 'types', 'numpy', 'configs', 'cpng_jax', 'tests'):
        (tmp_path / f'{name}.py').write_text(f'raise RuntimeError("{name}.py beside the configuration was imported")\n')
    (tmp_path / 'mine.py').write_text('import random, types, jax, numpy, cpng_jax.nn.kinds\n' + MINE)
    assert config_file.load(str(tmp_path / 'mine.py')).epochs == 300
    assert (jax, random, types) == tuple(map(sys.modules.get, ('jax', 'random', 'types')))
    assert str(tmp_path) == sys.path[-1]


def test_a_file_is_read_anew_and_shares_no_state(tmp_path):
    path = tmp_path / 'mine.py'
    counting = 'seen = []\n' + MINE.replace('return base.get_config()', 'seen.append(1); config = base.get_config()')
    path.write_text(counting + '    config.epochs = len(seen)\n    return config\n')
    assert [config_file.load(str(path)).epochs for _ in range(2)] == [1, 1]
    path.write_text(path.read_text().replace('len(seen)', '2 + len(seen)'))
    assert config_file.load(str(path)).epochs == 3
    assert not (tmp_path / '__pycache__').exists()


def test_a_file_may_have_dataclasses_and_an_argument(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'import dataclasses\nfrom configs import base\n\n@dataclasses.dataclass\nclass Choice:\n    epochs: "int"\n\n'
        'def get_config(text):\n    config = base.get_config()\n    config.epochs = Choice(int(text)).epochs\n'
        '    return config\n'
    )
    assert config_file.load(f'{path}:12').epochs == 12


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        (b'', r'wrong\.py has no function get_config\(\)\.'),
        (b'def get_config(:', r'wrong\.py fails with SyntaxError: invalid syntax'),
        (b'name = "\xff\xfe"', r'wrong\.py fails with SyntaxError: .*utf-8'),
        (b'import sys\nsys.exit(3)', r'wrong\.py fails with SystemExit: 3'),
        (b'from . import base', r'wrong\.py fails with ImportError: attempted relative import'),
        (b'import nowhere_at_all', r"wrong\.py fails with ModuleNotFoundError: No module named 'nowhere_at_all'"),
        (b'get_config = 3', r"wrong\.py fails with TypeError: 'int' object is not callable"),
        (b'def get_config(): return None', r'must return an ml_collections\.ConfigDict, got NoneType'),
        (b'def get_config(text): return text', r'wrong\.py fails with TypeError: get_config\(\) missing 1 required'),
        (None, r"--config is '.*wrong\.py', which is not a file; those at hand are in .*configs"),
    ],
    ids=lambda value: '',
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / 'wrong.py'
    if text is None:
        path.mkdir()  # a folder
    else:
        path.write_bytes(text)
    with pytest.raises(UserError, match=sentence):
        config_file.load(str(path))


def test_a_file_that_may_not_be_read_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / 'wrong.py'
    path.write_text(MINE)

    def refused(self):
        raise PermissionError(13, 'Permission denied', str(self))

    monkeypatch.setattr(type(path), 'read_bytes', refused)
    with pytest.raises(UserError, match=r'wrong\.py fails with PermissionError: .*Permission denied'):
        config_file.load(str(path))
