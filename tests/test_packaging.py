import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

import cpng_jax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
SETUPTOOLS = PROJECT['tool']['setuptools']

HEAVY = ['tensorflow', 'tensorflow_datasets', 'matplotlib', 'sklearn', 'grain', 'orbax', 'ml_collections']

IMPORT = f"""
import sys
import cpng_jax
from jax._src import xla_bridge
loaded = [name for name in {HEAVY} if name in sys.modules]
assert not loaded, loaded
rooms = {{name.split('.')[1] for name in sys.modules if name.startswith('cpng_jax.')}}
assert rooms <= {{'nn', 'control', 'models', 'runtime'}}, rooms
assert not xla_bridge.backends_are_initialized(), 'a device was touched'
from absl import flags
assert 'config' not in flags.FLAGS
"""


# What is loaded from where the package is installed, and what that has brought in.
LOADED = f"""
import pathlib
assert pathlib.Path(cpng_jax.__file__).parts[-3:-1] == ('site', 'cpng_jax'), cpng_jax.__file__
assert logits.shape == (4, 2, 10), logits.shape
assert not [name for name in {HEAVY} if name in sys.modules]
"""


def run(code: str, folder: pathlib.Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-W', 'error', '-c', code]
    return subprocess.run(command, cwd=folder, env={**os.environ, 'PYTHONPATH': 'site'}, capture_output=True, text=True)


def install(site: pathlib.Path) -> None:
    """Lays the package out as an installation has it, by what pyproject.toml says to setuptools."""
    for package in SETUPTOOLS['packages']:
        source = ROOT / SETUPTOOLS['package-dir'].get(package, package.replace('.', '/'))
        patterns = ['*.py', *SETUPTOOLS['package-data'].get(package, [])]
        for file in [file for pattern in patterns for file in source.glob(pattern)]:
            target = site / package.replace('.', '/') / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)


def python_in(page: pathlib.Path) -> list[str]:
    return re.findall(r'```python\n(.*?)```', page.read_text(), flags=re.DOTALL)


@pytest.mark.processes
def test_the_library_alone_touches_no_device_data_flag_or_plot_and_loads_a_network_from_anywhere(tmp_path):
    install(tmp_path / 'site')
    (example,) = python_in(ROOT / 'docs' / 'zoo.md')
    process = run(IMPORT + example + LOADED, tmp_path)
    assert process.returncode == 0, process.stderr


def test_every_folder_of_the_package_and_every_file_of_the_zoo_is_installed(tmp_path):
    install(tmp_path)
    folders = {path.parent for path in (ROOT / 'cpng_jax').rglob('*.py')}
    expected = {file.relative_to(ROOT) for folder in folders for file in folder.glob('*.py')}
    expected |= {'cpng_jax' / file.relative_to(ROOT) for file in (ROOT / 'zoo').rglob('*') if file.is_file()}
    expected.add(pathlib.Path('cpng_jax', 'py.typed'))
    assert {file.relative_to(tmp_path) for file in tmp_path.rglob('*') if file.is_file()} == expected


def test_everything_public_is_there():
    for name in cpng_jax.__all__:
        assert getattr(cpng_jax, name).__doc__, name


def ranges(lines) -> dict[str, str]:
    """Version ranges by package name."""
    matches = (re.match(r'([A-Za-z0-9_-]+)(.*)', line.strip()) for line in lines if line.strip() and line[0] != '#')
    return {match[1]: match[2] for match in matches if match}


def test_requirements_and_pyproject_agree_and_are_bounded():
    required = ranges((ROOT / 'requirements.txt').read_text().splitlines())
    project = PROJECT['project']
    for name, versions in ranges(project['dependencies']).items():
        assert required[name] == versions
    for name, versions in required.items():
        assert re.fullmatch(r'>=[\d.]+,<[\d.]+', versions), name
    assert project['version'] == cpng_jax.__version__


@pytest.mark.parametrize('folder', ['benchmarks', 'configs', 'tests'])
def test_a_folder_of_modules_is_a_package(folder):
    """One without `__init__.py` would give way to any package of its name, wherever that lies on the path."""
    assert (ROOT / folder / '__init__.py').is_file()
