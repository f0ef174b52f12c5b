"""A function of the user's as a data set: found where configuration files find their neighbours, and looked at."""

import dataclasses
import importlib.util
import sys

import numpy as np
import pytest

from configs import base
from cpng_jax import data
from cpng_jax.data import Dataset
from cpng_jax.data.dataset import labels_of
from cpng_jax.runtime.config import validate
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import keys

MINE = """
import numpy as np
from cpng_jax.data import from_arrays

def load(config):
    images = np.arange(20 * 4 * 6 * 3).reshape(20, 4, 6, 3).astype(np.uint8)
    return from_arrays(config, (images, np.arange(20) % 2), class_names=['even', 'odd'])
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes my_data.py into the current folder, which is not on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', sys.path.copy())
    importlib.invalidate_caches()

    def written(text, name='my_data.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    yield written
    for name in [name for name in sys.modules if name.partition('.')[0] == 'my_data']:
        del sys.modules[name]


def load(name='my_data:load', **changes):
    config = base.get_config()
    config.data.update(name=name, **changes)
    validate(config, keys.table())
    return data.load(config.data)


def test_a_function_in_the_current_folder(write):
    write(MINE)
    dataset = load(per_class=4, validation=0.25)
    assert (len(dataset.train), len(dataset.test)) == (8, 4)
    assert dataset.validation is not None
    assert np.bincount(labels_of(dataset.validation)).tolist() == [2, 2]
    assert dataset.class_names == ['even', 'odd']
    assert dataset.image_shape == (4, 6, 3)
    fake = load(fake=True)
    assert fake.train[0]['image'].shape == (4, 6, 3)
    assert len(fake.class_names) == 2


def test_a_function_of_a_package(write):
    write('', 'my_data/__init__.py')
    write(MINE, 'my_data/images.py')
    assert len(load('my_data.images:load').test) == 4


def test_the_current_folder_hides_no_module(write):
    write('raise RuntimeError("not ours")', 'numpy.py')
    write(MINE)
    load()
    assert 'site-packages' in str(importlib.util.find_spec('numpy'))


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('elsewhere:load', r"is 'elsewhere:load', but there is no module 'elsewhere' beside the configuration file"),
        ('my_data.more:load', r"but there is no module 'my_data\.more'"),
        ('my_data:laod', r"my_data\.py has no function 'laod'; the nearest is 'load'"),
        ('my_data:np', r"has no function 'np'"),
    ],
)
def test_a_name_that_leads_nowhere(write, name, sentence):
    write(MINE)
    with pytest.raises(UserError, match=sentence):
        load(name)


@pytest.mark.parametrize('name', ['mnsit', 'my_data', ':load', 'my_data:', 'my data:load', 'a:b:c', 'digits ', ''])
def test_what_can_be_no_name_is_answered_with_the_nearest(name):
    with pytest.raises(
        UserError, match=r'config\.data\.name is .*, expected one of digits, .*, or package\.module:f'
    ) as e:
        load(name)
    if name == 'mnsit':
        assert str(e.value).endswith("; the nearest is 'mnist'.")


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        (
            'import nothing_of_the_kind',
            r"fails with ModuleNotFoundError in .*my_data\.py, line 1: No module named 'not",
        ),
        ('x = 1 / 0', r'fails with ZeroDivisionError in .*my_data\.py, line 1: division by zero'),
        ('def load(config:', r"fails with SyntaxError: '\(' was never closed"),
        (
            'def load(config):\n    return config.nothing',
            r'fails with AttributeError in .*my_data\.py, line 2: .*nothing',
        ),
        ('def load(config):\n    exit(3)', r'fails with SystemExit in .*my_data\.py, line 2: 3'),
        ('def load(config):\n    pass', r'which returns None, expected a cpng_jax\.data\.Dataset'),
        ('def load():\n    pass', r'fails with TypeError: load\(\) takes 0 positional'),
        ('def load(config):\n    return [1]', r'which returns a list, expected'),
        (
            MINE.replace('np.uint8', 'float'),
            r'fails with ValueError in .*my_data\.py, line 7: images of train are float64 \[20, 4, 6, 3\]',
        ),
    ],
)
def test_what_fails_in_it_is_named_with_its_line(write, text, sentence):
    write(text)
    with pytest.raises(
        UserError,
        match=r"config\.data\.name is 'my_data:load', " + ('which ' if 'which' not in sentence else '') + sentence,
    ):
        load()


def good():
    images = np.arange(8 * 4 * 4 * 1).reshape(8, 4, 4, 1).astype(np.uint8)
    config = base.get_config()
    return data.from_arrays(config.data, (images, np.arange(8) % 2), (images, np.arange(8) % 2))


class Examples:
    """A source that gives one example."""

    def __init__(self, example, length=3):
        self.example, self.length = example, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.example


IMAGE = np.zeros((4, 4, 1), np.uint8)


def labelled(labels):
    source = Examples({'image': IMAGE, 'label': 0}, len(labels))
    source.labels = labels
    return source


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'image_shape': (4, 4)}, r'gives image_shape \(4, 4\), expected \(H, W, C\)'),
        ({'image_shape': (4, 4, 3)}, r'gives mean \[.*\], expected a number for each of the 3 channels'),
        (
            {'image_shape': (4, 5, 1)},
            r'gives a first example of train whose image is uint8 \(4, 4, 1\), expected uint8 \(4',
        ),
        ({'class_names': ['one']}, r"gives class_names \['one'\], expected at least two texts"),
        ({'class_names': [0, 1]}, r'gives class_names \[0, 1\], expected at least two texts'),
        ({'mean': np.array([np.nan])}, r'gives mean \[nan\], expected a number'),
        ({'std': np.zeros(1)}, r'gives std \[0\.\], expected numbers above 0'),
        ({'test': Examples({}, 0)}, r'gives no example in test'),
        ({'test': Examples(IMAGE)}, r'first example of test a ndarray, expected a dict with image and label'),
        (
            {'test': Examples({'image': IMAGE / 2, 'label': 0})},
            r'test whose image is float64 \(4, 4, 1\), expected uint8',
        ),
        ({'test': Examples({'image': IMAGE, 'label': 2})}, r'test whose label is 2, expected an integer from 0 to 1'),
        ({'train': Examples({'image': IMAGE, 'label': 1.0})}, r'train whose label is 1\.0, expected an integer from 0'),
        ({'train': labelled(np.array([0, 1, 2]))}, r'gives train labels from 0 to 2, expected 0 to 1'),
        ({'train': labelled([-1, 1])}, r'gives train labels from -1 to 1'),
        ({'test': labelled(np.zeros(3))}, r'gives test labels float64 \[3\], expected integers \[3\]'),
        ({'augment': lambda example, rng: None}, r'first example of train None, expected a dict'),
        ({'prepare': lambda example: example['none']}, r"fails with KeyError in .*test_own\.py, line \d+: 'none'"),
    ],
)
def test_what_it_returns_is_looked_at(monkeypatch, changes, sentence):
    module = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, 'my_data', module)
    monkeypatch.setattr(module, 'spoilt', lambda config: dataclasses.replace(good(), **changes), raising=False)
    with pytest.raises(UserError, match=sentence):
        load('my_data:spoilt')
    monkeypatch.setattr(module, 'spoilt', lambda config: good())
    assert isinstance(load('my_data:spoilt'), Dataset)


def test_what_it_says_to_its_user_itself_is_passed_on(write):
    write('from cpng_jax.runtime.errors import UserError\ndef load(config):\n    raise UserError("Buy a disk.")\n')
    with pytest.raises(UserError, match=r'^Buy a disk\.$'):
        load()
