import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

import cpng_jax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())

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

# A wheel of the sdist of this checkout, built and installed without a network. Files that are built from lie in a copy.
INSTALL = """
import os, pathlib, sys, tarfile
from setuptools import build_meta

os.chdir('checkout')
source = pathlib.Path('..', build_meta.build_sdist('..')).resolve()
with tarfile.open(source) as archive:
    archive.extractall('..', filter='data')
os.chdir(source.with_name(source.name.removesuffix('.tar.gz')))
wheel = build_meta.build_wheel('..')
os.chdir('..')
pip = ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-index', '--no-deps', '--no-compile']
os.execv(sys.executable, [sys.executable, *pip, '--target=site', wheel])
"""
# What make and runs leave in a checkout, and what Python leaves everywhere.
LEFT, CACHES = (
    shutil.ignore_patterns('.*', 'runs', 'data', 'build', '*.egg-info'),
    shutil.ignore_patterns('__pycache__'),
)


def run(code: str, folder: pathlib.Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-W', 'error', '-c', code]
    return subprocess.run(command, cwd=folder, env={**os.environ, 'PYTHONPATH': 'site'}, capture_output=True, text=True)


@pytest.fixture(scope='module')
def installed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder outside of the checkout with the package, installed from its wheel, in `site`."""
    folder = tmp_path_factory.mktemp('installed')
    ignored = lambda path, names: (LEFT if pathlib.Path(path) == ROOT else CACHES)(path, names)
    shutil.copytree(ROOT, folder / 'checkout', ignore=ignored)
    process = subprocess.run([sys.executable, '-c', INSTALL], cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder


def python_in(page: pathlib.Path) -> list[str]:
    return re.findall(r'```python\n(.*?)```', page.read_text(), flags=re.DOTALL)


@pytest.mark.processes
def test_the_library_alone_touches_no_device_data_flag_or_plot_and_loads_a_network_from_anywhere(installed):
    (example,) = python_in(ROOT / 'docs' / 'zoo.md')
    process = run(IMPORT + example + LOADED, installed)
    assert process.returncode == 0, process.stderr


@pytest.mark.processes
def test_what_is_installed_is_the_package_with_its_configurations_and_its_zoo(installed):
    package = ROOT / 'cpng_jax'
    files = [*package.rglob('*.py'), package / 'py.typed']
    expected = {file.relative_to(ROOT) for file in files}
    beside = [*(ROOT / 'configs').glob('*.py'), *(file for file in (ROOT / 'zoo').rglob('*') if file.is_file())]
    expected |= {'cpng_jax' / file.relative_to(ROOT) for file in beside}
    found = {file.relative_to(installed / 'site') for file in (installed / 'site' / 'cpng_jax').rglob('*')}
    assert {file for file in found if (installed / 'site' / file).is_file()} == expected


@pytest.mark.processes
def test_metadata_name_the_licence_and_the_extras(installed):
    (distribution,) = importlib.metadata.distributions(path=[str(installed / 'site')])
    metadata = distribution.metadata
    assert (metadata['Name'], metadata['Version']) == ('cpng-jax', cpng_jax.__version__)
    assert (metadata['License-Expression'], metadata.get_all('License-File')) == ('Apache-2.0', ['LICENSE'])
    assert {*metadata.get_all('Provides-Extra', [])} == {*PROJECT['project']['optional-dependencies']}
    assert not metadata.get_all('Project-URL'), 'the project has no address yet'


@pytest.mark.processes
@pytest.mark.trains
def test_the_installed_program_trains_by_the_name_of_a_configuration_from_anywhere(installed):
    small = {'epochs': 1, 'batch_size': 50, 'data.per_class': 10, 'data.threads': 0, 'model.time_steps': 2}
    arguments = [f'--config.{key}={value}' for key, value in small.items()]
    arguments.append('--config.model.stages=((4,),)')
    program = installed / 'site' / 'bin' / 'cpng-train'
    environment = {**os.environ, 'PYTHONPATH': str(installed / 'site')}
    process = subprocess.run(
        [program, '--config=digits', *arguments], cwd=installed, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    *_, report, evaluation, comparison = process.stdout.splitlines()
    scripts = f'site{os.sep}bin{os.sep}cpng-'
    assert report == f'next: {scripts}analysis report --workdir=runs/digits'
    assert evaluation.startswith(f'      {scripts}train --config=digits --config.')
    assert evaluation.endswith(' --workdir=runs/digits --mode=eval')
    assert comparison.startswith(f'      {scripts}experiments compare --config=digits --config.')
    assert (installed / 'runs' / 'digits' / 'metrics.jsonl').is_file()


def test_everything_public_is_there():
    for name in cpng_jax.__all__:
        assert getattr(cpng_jax, name).__doc__, name


def ranges(lines) -> dict[str, str]:
    """Version ranges by package name."""
    matches = (re.match(r'([A-Za-z0-9_-]+)(.*)', line.strip()) for line in lines if line.strip() and line[0] != '#')
    return {match[1]: match[2] for match in matches if match}


def test_requirements_are_the_library_with_all_extras_but_docs_and_all_are_bounded():
    project = PROJECT['project']
    extras = {name: ranges(lines) for name, lines in project['optional-dependencies'].items()}
    required = ranges((ROOT / 'requirements.txt').read_text().splitlines())
    assert required == ranges(project['dependencies']) | extras['train'] | extras['export'] | extras['dev']
    for name, versions in (required | extras['wandb'] | extras['docs']).items():
        assert re.fullmatch(r'>=[\d.]+,<[\d.]+', versions), name


def test_one_version_is_told_everywhere():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    versions = re.findall(r'^## \[?([\d.]+)', (ROOT / 'CHANGELOG.md').read_text(), flags=re.MULTILINE)
    assert {PROJECT['project']['version'], citation['version'], versions[0]} == {cpng_jax.__version__}
    assert citation['license'] == PROJECT['project']['license']


@pytest.mark.parametrize('script', PROJECT['project']['scripts'].values(), ids=PROJECT['project']['scripts'])
def test_a_console_script_is_what_its_module_runs(script):
    module, function = script.split(':')
    source = (ROOT / module.replace('.', os.sep)).with_suffix('.py').read_text()
    assert f'\ndef {function}() -> None:\n' in source
    assert source.endswith(f"if __name__ == '__main__':\n    {function}()\n")


def test_the_workflow_runs_what_ci_runs_on_the_versions_that_are_declared():
    (job,) = yaml.safe_load((ROOT / '.github' / 'workflows' / 'ci.yml').read_text())['jobs'].values()
    assert [step['run'] for step in job['steps'] if 'run' in step] == ['.ci/run']
    assert (ROOT / '.ci' / 'run').is_file()
    declared = re.findall(r'Python :: (3\.\d+)', '\n'.join(PROJECT['project']['classifiers']))
    assert job['strategy']['matrix']['python'] == declared


@pytest.mark.parametrize('folder', ['benchmarks', 'configs', 'tests'])
def test_a_folder_of_modules_is_a_package(folder):
    """One without `__init__.py` would give way to any package of its name, wherever that lies on the path."""
    assert (ROOT / folder / '__init__.py').is_file()
