"""The programs of the package as their user calls them: by console scripts, or as modules of a checkout."""

import os
import pathlib
import shlex
import shutil
import sys

from cpng_jax.runtime.streams import program_name

# Modules of `cpng_jax` that are programs by another name.
_MODULES = {'train': 'training', 'prepare': 'data.prepare'}


def command(name: str) -> str:
    """Writes what starts a program, in the form in which this one was started.

    Args:
      name: of the program: train, prepare, experiments, analysis or another.

    Returns:
      The beginning of a command line, such as `cpng-analysis` or `.venv/bin/python -m cpng_jax.analysis`; for a shell
      in the current folder.
    """
    started = pathlib.Path(sys.argv[0])
    if started.name.startswith('cpng-'):
        return _called(started.with_name(f'cpng-{name}'))
    executable = pathlib.Path(sys.executable)
    short = executable.with_name('python')  # python3 and python3.11 lie beside it, but not always it beside them
    python = _called(short if short.exists() else executable)
    if (name, started.name) == ('train', 'train.py'):
        return f'{python} {shlex.quote(sys.argv[0])}'
    return f'{_found_by()}{python} -m cpng_jax.{_MODULES.get(name, name)}'


def missing(error: ModuleNotFoundError) -> str:
    """Says in a sentence which package this program lacks, and what installs it.

    Args:
      error: what its import has raised.

    Returns:
      The sentence, with the name of the program in front.
    """
    requirements = _root() / 'requirements.txt'
    with_extra = "install cpng_jax with its extra: pip install 'PATH/TO/cpng_jax.whl[train]'"
    cure = 'pip install -r requirements.txt' if requirements.is_file() else with_extra
    return f'{program_name()}: the package {error.name} is not installed: {cure}'


def _called(program: pathlib.Path) -> str:
    """A program by its name where a shell finds it, else by its path."""
    if shutil.which(program.name) == str(program):
        return program.name
    here = pathlib.Path.cwd()
    inside = program.is_absolute() and program.is_relative_to(here)
    return shlex.quote(str(program.relative_to(here) if inside else program))


def _found_by() -> str:
    """What lets `python -m` find the package: nothing where it is installed, or lies in the current folder."""
    root = _root()
    found = root == pathlib.Path.cwd() or str(root) in sys.path[1:]
    return '' if found else f'PYTHONPATH={shlex.quote(str(root))} '


def _root() -> pathlib.Path:
    """The folder that the package lies in: of a checkout, or of an environment."""
    return pathlib.Path(os.path.abspath(__file__)).parents[2]
