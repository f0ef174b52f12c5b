"""Configuration files wherever they lie: what they import is found, and hides nothing."""

import importlib
import pathlib
import random
import re
import shutil
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
    assert config_file.load('digits').data.name == 'digits'
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


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Has configurations lie where an installation has them; none is here."""
    package = tmp_path / 'site' / 'cpng_jax'
    shutil.copytree(config_file.home(), package / 'configs')
    monkeypatch.setattr(config_file, '__file__', str(package / 'runtime' / 'config_file.py'))
    monkeypatch.setattr(sys, 'path', [folder for folder in sys.path if not (pathlib.Path(folder) / 'configs').is_dir()])
    monkeypatch.chdir(tmp_path)
    forget_configs()


@pytest.mark.usefixtures('installed')
@pytest.mark.parametrize('given', ['digits_few', 'configs/digits_few.py', './configs/digits_few.py'])
def test_an_installed_package_has_its_configurations_by_name_and_as_those_of_a_checkout(tmp_path, given):
    path, _ = config_file.find(given)
    assert path == tmp_path / 'site' / 'cpng_jax' / 'configs' / 'digits_few.py'
    assert config_file.load(given).data.per_class == 30


@pytest.mark.usefixtures('installed')
def test_a_folder_called_configs_belongs_to_the_user_of_an_installed_package(tmp_path):
    folder = tmp_path / 'configs'
    folder.mkdir()
    (folder / 'base.py').write_text('EPOCHS = 7\n')
    (folder / 'digits.py').write_text(
        'from configs import base as mine\nfrom cpng_jax.configs import digits_few\n\n'
        'def get_config():\n    config = digits_few.get_config()\n    config.epochs = mine.EPOCHS\n    return config\n'
    )
    config = config_file.load('configs/digits.py')
    assert (config.epochs, config.data.per_class) == (7, 30)
    assert config_file.load('digits').epochs == 40, 'a name is that of the package'


@pytest.mark.usefixtures('installed')
def test_what_was_written_for_a_checkout_says_what_to_import_instead(tmp_path):
    (tmp_path / 'mine.py').write_text(MINE)
    with pytest.raises(UserError, match=r"No module named 'configs'; .* are imported from cpng_jax\.configs$"):
        config_file.load('mine.py')


def test_a_file_of_ones_own_builds_on_one_that_comes_with_the_package(tmp_path):
    """As docs/training.md has it."""
    page = (pathlib.Path(__file__).parents[2] / 'docs' / 'training.md').read_text()
    (example,) = re.findall(r'<!-- example: own configuration -->\n```python\n(.*?)```', page, flags=re.DOTALL)
    (tmp_path / 'mine.py').write_text(example)
    changed = {'epochs': 10, 'model.stages': [[16, 16], [32, 32, 32, 32]], 'model.kernel_size': 5}
    assert flatten(config_file.load(str(tmp_path / 'mine.py'))) == flatten(config_file.load('digits')) | changed


def test_names_are_those_of_the_files():
    files = (path.stem for path in (pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))
    assert config_file.names() == sorted({*files} - {'__init__'})


@pytest.mark.parametrize('name', config_file.names())
def test_cpng_jax_configs_has_each_of_them(name):
    module = importlib.import_module(f'cpng_jax.configs.{name}')
    assert flatten(module.get_config()) == flatten(config_file.load(name))


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        ('digit', r"^--config is 'digit', which is none that comes with the package: expected one of base, "),
        ('digit', r", mnist5k, or a path such as \./mine\.py; the nearest is 'digits'\.$"),
        ('configs/digit.py', r"^--config is 'configs/digit\.py', which is not a file: .*; the nearest is 'digits'\.$"),
        ('configs/digits', r"^--config is 'configs/digits', which is not a file: "),
        ('mine/configs/digits.py', r"^--config is 'mine/configs/digits\.py', which is not a file: "),
        ('__init__', r"^--config is '__init__', which is none that comes with the package: "),
        ('tests', r'or a path such as \./mine\.py\.$'),
        ('digits:x', r'digits\.py fails with TypeError: get_config\(\) takes 0 positional arguments but 1 was given$'),
        ('s3://digits', r"^--config is 's3://digits', an address; "),
    ],
)
def test_a_configuration_that_is_not_there_is_one_sentence(given, sentence):
    with pytest.raises(UserError, match=sentence):
        config_file.load(given)


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
        (None, r"--config is '.*wrong\.py', which is not a file: expected one of base, "),
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
