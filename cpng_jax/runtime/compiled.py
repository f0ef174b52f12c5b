"""Compiled programs: traced fast, and kept on disk from one start to the next, by JAX's compilation cache."""

import contextlib
import functools
import gc
import hashlib
import os
import pathlib
import platform
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import filelock
import jax

from cpng_jax.runtime import paths
from cpng_jax.runtime.environment import cpu_lines
from cpng_jax.runtime.errors import UserError

# Bytes; what was not used for longest goes first. A training step of full depth takes some 10^6.
_MOST = 2 * 2**30
# Seconds to wait for another process that reads or writes.
_PATIENCE = 10
_SETTINGS = {
    'jax_compilation_cache_max_size': _MOST,
    # JAX's own second leaves out what, all together, takes as long as a step to compile.
    'jax_persistent_cache_min_compile_time_secs': 0.05,
}


def keep(setting: str) -> None:
    """Keeps programs that are compiled from now on, and reads those that were kept, unless JAX is told already where.

    Args:
      setting: `config.compilation_cache`: 'auto' for the user's folder of caches; a folder; or '' for not at all.

    Raises:
      UserError: the folder cannot be made.
    """
    if not setting or getattr(jax.config, 'jax_compilation_cache_dir', None) is not None:
        return
    folder = (_of_user() if setting == 'auto' else paths.local(setting, 'config.compilation_cache')) / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if setting == 'auto':  # A home that cannot be written to costs time, nothing else.
            return
        raise UserError(f'config.compilation_cache is {setting!r}, which cannot be made: {error.strerror}.') from error
    _remove_torn(folder)
    for name, value in {'jax_compilation_cache_dir': str(folder.absolute()), **_SETTINGS}.items():
        jax.config.update(name, value)


_Given = ParamSpec('_Given')
_Made = TypeVar('_Made')


def traced(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """Has a function run without the garbage collector: one that JAX traces, to hand to `jax.jit`.

    Tracing a network makes a million objects, which live on; looking for garbage among them takes a third of its time.

    Args:
      function: what is traced.

    Returns:
      The function, of the same name.
    """

    @functools.wraps(function)
    def run(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        if not gc.isenabled():
            return function(*args, **kwargs)
        gc.disable()
        try:
            return function(*args, **kwargs)
        finally:
            gc.enable()

    return run


def _remove_torn(folder: pathlib.Path) -> None:
    """Removes what a process was writing when it was killed; JAX would try to read it at each start and warn.

    JAX writes the time of the last use after the program, both under this lock.
    """
    with contextlib.suppress(OSError, filelock.Timeout), filelock.FileLock(folder / '.lockfile', timeout=_PATIENCE):
        for program in folder.glob('*-cache'):
            if not program.with_name(program.name.removesuffix('-cache') + '-atime').exists():
                program.unlink()


def _of_user() -> pathlib.Path:
    caches = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    return pathlib.Path(caches, 'cpng_jax', 'compiled')


def _machine() -> str:
    """Names the kind of processor: on another one, which may share the folder, a program may not run."""
    told = ('model name', 'flags', 'Features', 'CPU part')
    features = sorted({line for line in cpu_lines() if line.startswith(told)})
    return f'{platform.machine()}-{hashlib.sha256(os.linesep.join(features).encode()).hexdigest()[:12]}'
