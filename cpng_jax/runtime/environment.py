"""What a run is made with: versions, devices, the processor, and the commit of the program."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

_PACKAGES = ('cpng-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'scikit-learn')

# Seconds that git may take; a folder on a network that has gone away shall not keep a run from starting.
_PATIENCE = 10


def environment() -> dict[str, Any]:
    """Describes what this process computes with, for whoever asks later what a result was made with.

    Returns:
      `python`, `platform`, `packages` by name, `devices`, `processor` and `commit`, as JSON can hold it; None for what
      is not known.
    """
    return {
        'python': platform.python_version(),
        'platform': platform.platform(),
        'packages': {name: _version(name) for name in _PACKAGES},
        'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        'processor': processor(),
        'commit': commit(pathlib.Path(__file__)),
    }


def processor() -> str:
    """Names the processor and its cores, such as 'AMD EPYC, 2 cores'."""
    models = [line.split(':')[1].strip() for line in cpu_lines() if line.startswith('model name')]
    return f'{models[0] if models else platform.machine()}, {os.cpu_count()} cores'


def cpu_lines() -> list[str]:
    """Reads what Linux says of the processor, core by core; nothing elsewhere."""
    info = pathlib.Path('/proc/cpuinfo')
    return info.read_text().splitlines() if info.exists() else []


def commit(file: pathlib.Path) -> str | None:
    """Names the commit that a file belongs to.

    Args:
      file: of the program.

    Returns:
      The commit's hash, followed by ' with local changes' where a file that git knows differs from it. None where there
      is no git, or the file is an installed copy.
    """
    # A file that git does not know may be one of an environment that lies within somebody else's repository.
    if _git(file.parent, 'ls-files', '--error-unmatch', file.name) is None:
        return None
    return _git(file.parent, 'describe', '--always', '--abbrev=40', '--exclude=*', '--dirty= with local changes')


def _git(folder: pathlib.Path, *arguments: str) -> str | None:
    """What git says in a folder, None where it fails; nothing is written, and a hook's own repository not looked at."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
    command = ['git', '--no-optional-locks', '-C', str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
