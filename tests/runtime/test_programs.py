"""Commands as the user may paste them, whatever started the program that prints them."""

import pathlib
import sys

import pytest

from cpng_jax.runtime import programs

ROOT = str(pathlib.Path(__file__).parents[2])


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Has this process be started as given, in an environment `env` of an empty folder."""
    (tmp_path / 'env').mkdir()
    for name in ('python', 'python3', 'cpng-train', 'cpng-analysis'):
        (tmp_path / 'env' / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'env' / 'python3'))

    def start(program, *, on_path=False, found=True):
        monkeypatch.setattr(sys, 'argv', [str(program)])
        monkeypatch.setattr(sys, 'path', ['', ROOT] if found else [ROOT])
        monkeypatch.setenv('PATH', str(tmp_path / 'env') if on_path else str(tmp_path))

    return start


@pytest.mark.parametrize(
    ('on_path', 'expected'), [(True, 'cpng-analysis'), (False, 'env/cpng-analysis')], ids=['on the path', 'not']
)
def test_console_scripts_name_each_other(started, tmp_path, on_path, expected):
    started(tmp_path / 'env' / 'cpng-train', on_path=on_path)
    assert programs.command('analysis') == expected
    assert programs.command('train') == expected.replace('analysis', 'train')


@pytest.mark.parametrize(('on_path', 'python'), [(True, 'python'), (False, 'env/python')], ids=['on the path', 'not'])
@pytest.mark.parametrize('program', ['train.py', 'a b/train.py', f'{ROOT}/cpng_jax/training/__main__.py'])
def test_modules_are_started_as_this_one_was(started, program, on_path, python):
    started(program, on_path=on_path)
    assert programs.command('prepare') == f'{python} -m cpng_jax.data.prepare'
    assert programs.command('analysis') == f'{python} -m cpng_jax.analysis'
    train = {'train.py': 'train.py', 'a b/train.py': "'a b/train.py'"}.get(program, '-m cpng_jax.training')
    assert programs.command('train') == f'{python} {train}'


def test_a_python_without_a_shorter_name_goes_by_its_own(started, tmp_path):
    (tmp_path / 'env' / 'python').unlink()
    started('train.py')
    assert programs.command('train') == 'env/python3 train.py'


def test_a_checkout_elsewhere_is_named(started, monkeypatch):
    started(f'{ROOT}/train.py', on_path=True, found=False)
    assert programs.command('analysis') == f'PYTHONPATH={ROOT} python -m cpng_jax.analysis'
    assert programs.command('train') == f'python {ROOT}/train.py'
    monkeypatch.chdir(ROOT)
    assert programs.command('analysis') == 'python -m cpng_jax.analysis'


def test_what_is_missing_is_installed_by_the_requirements_of_a_checkout_or_by_the_extra(started, tmp_path, monkeypatch):
    error = ModuleNotFoundError("No module named 'absl'", name='absl')
    started(f'{ROOT}/cpng_jax/analysis/__main__.py')
    start = 'the package absl is not installed: '
    assert programs.missing(error) == f'cpng_jax.analysis: {start}pip install -r requirements.txt'
    started('bin/cpng-train')
    monkeypatch.setattr(programs, '__file__', str(tmp_path / 'site' / 'cpng_jax' / 'runtime' / 'programs.py'))
    assert programs.missing(error).startswith(f'cpng-train: {start}install cpng_jax with its extra: pip install ')
