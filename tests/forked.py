"""Programs in processes of their own, forked from one that has imported what they need.

Python and its imports cost three seconds a start; here they are paid once. The process that forks has touched no
device of JAX, so that a program finds all as a new interpreter would.
"""

import atexit
import gc
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import Any
from unittest import mock

import jax

ROOT = pathlib.Path(__file__).parents[1]

_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(
    [
        'cpng_jax.training.loop',
        'cpng_jax.analysis.report',
        'cpng_jax.convert.results',
        'cpng_jax.experiments.grid',
        'matplotlib.backends.backend_agg',
        'matplotlib.figure',
        'sklearn.datasets',
        'tensorboardX',
    ]
)


class Program:
    """A program under way, with what tests use of `subprocess.Popen`."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [pathlib.Path(self._folder.name, name) for name in ('out', 'error')]
        self._texts: tuple[str, str] | None = None
        for path in self._outputs:
            path.touch()
        self._process = _context.Process(target=_run, args=(command, dict(environment), self._outputs))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end: what the program wrote to standard output and standard error."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired('a forked program', timeout or 0)
        if self._texts is None:
            out, error = (path.read_text() for path in self._outputs)
            self._texts = out, error
            self._folder.cleanup()
        return self._texts


def start(*command: object, environment: Mapping[str, str] | None = None) -> Program:
    """Starts what `python *command` would, in the root of the repository.

    Args:
      command: a script, or `-m` and a module, or `-c` and code; and its arguments.
      environment: variables beside those of this process; XLA_FLAGS are added to those it has.

    Returns:
      The program.
    """
    added = dict(environment or {})
    if 'XLA_FLAGS' in added:
        added['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {added["XLA_FLAGS"]}'
    return Program(list(map(str, command)), os.environ | added)


def run(*command: object, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Starts `python *command` in the root of the repository and waits for its end."""
    program = start(*command, environment=environment)
    try:
        out, error = program.communicate(timeout=600)
    finally:
        program.kill()
    return subprocess.CompletedProcess(command, program.returncode or 0, out, error)


def plot_run_without_drawing(workdir: str | os.PathLike[str]) -> list[pathlib.Path]:
    """What `plots.plot_run` does, but for the pictures, a third of a second: files that are not there stay empty."""
    from cpng_jax.runtime import files, plots

    def save(_: object, path: pathlib.Path) -> pathlib.Path:
        return path if path.exists() else files.replace(path, b'')

    nothing = dict.fromkeys(('accuracy_and_loss', 'chi_per_layer', 'final_beta', 'gain_per_layer'), mock.DEFAULT)
    with mock.patch.multiple(plots, save=save, **nothing):
        return plots.plot_run(workdir)


def _run(command: list[str], environment: dict[str, str], outputs: list[pathlib.Path]) -> None:
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    from cpng_jax.training import loop  # which the process that forks has imported

    jax.config.update('jax_platforms', environment.get('JAX_PLATFORMS'))  # else read while JAX is imported
    _keep_what_others_compile()
    gc.freeze()  # what has been imported stays
    kind, *rest = command
    try:
        if kind == '-m':
            sys.argv = rest
            runpy.run_module(rest[0], run_name='__main__', alter_sys=True)
        elif kind == '-c':
            sys.argv = [kind, *rest[1:]]
            exec(rest[0], {'__name__': '__main__'})
        else:
            sys.argv = command
            loop.plot_run = plot_run_without_drawing  # the first picture of a process takes a second by itself
            runpy.run_path(kind, run_name='__main__')
    finally:
        # As an interpreter ends; a process of multiprocessing leaves out the latter.
        threading._shutdown()
        atexit._run_exitfuncs()


def _keep_what_others_compile() -> None:
    """Has each process of a run keep what it compiles, where JAX lets the first alone: the next run starts sooner."""
    try:
        from jax._src import compiler, distributed

        write, me = compiler._cache_write, distributed.global_state
    except (ImportError, AttributeError):
        return  # costs time, and nothing else

    def write_as_first(*arguments: Any, **options: Any) -> None:
        with mock.patch.object(me, 'process_id', 0):
            write(*arguments, **options)

    compiler._cache_write = write_as_first
