import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import cpng_jax

ROOT = pathlib.Path(__file__).parents[1]

HEAVY = ['tensorflow', 'tensorflow_datasets', 'matplotlib', 'sklearn', 'grain', 'orbax', 'ml_collections']

IMPORT = f"""
import sys
import cpng_jax
from jax._src import xla_bridge
loaded = [name for name in {HEAVY} if name in sys.modules]
assert not loaded, loaded
rooms = {{name.split('.')[1] for name in sys.modules if name.startswith('cpng_jax.')}}
assert rooms <= {{'nn', 'control', 'models'}}, rooms
assert not xla_bridge.backends_are_initialized(), 'a device was touched'
from absl import flags
assert 'config' not in flags.FLAGS
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-W', 'error', '-c', code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.processes
def test_importing_the_library_touches_no_device_data_flag_or_plot():
    process = run(IMPORT)
    assert process.returncode == 0, process.stderr


def test_everything_public_is_there():
    for name in cpng_jax.__all__:
        assert getattr(cpng_jax, name).__doc__, name


def ranges(lines) -> dict[str, str]:
    """Version ranges by package name."""
    matches = (re.match(r'([A-Za-z0-9_-]+)(.*)', line.strip()) for line in lines if line.strip() and line[0] != '#')
    return {match[1]: match[2] for match in matches if match}


def test_requirements_and_pyproject_agree_and_are_bounded():
    required = ranges((ROOT / 'requirements.txt').read_text().splitlines())
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    for name, versions in ranges(project['dependencies']).items():
        assert required[name] == versions
    for name, versions in required.items():
        assert re.fullmatch(r'>=[\d.]+,<[\d.]+', versions), name
    assert project['version'] == cpng_jax.__version__


@pytest.mark.parametrize('folder', ['benchmarks', 'configs', 'tests'])
def test_a_folder_of_modules_is_a_package(folder):
    """One without `__init__.py` would give way to any package of its name, wherever that lies on the path."""
    assert (ROOT / folder / '__init__.py').is_file()


def readme_code() -> list[str]:
    return re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), flags=re.DOTALL)


@pytest.mark.processes
@pytest.mark.parametrize('code', readme_code())
def test_the_readme_runs_as_written(code):
    process = run(code)
    assert process.returncode == 0, process.stderr


def test_the_readme_shows_the_library():
    assert any('import cpng_jax' in code or 'from cpng_jax' in code for code in readme_code())
