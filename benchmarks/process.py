"""The processes of `benchmarks.race`, as their parent sees them: requests go in, answers come out."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from cpng_jax.runtime.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


class Worker:
    """A process that runs `benchmarks.worker`; use it in a `with`, which ends it."""

    def __init__(self, python: str, module: str, name: str, settings: Mapping[str, str] | None = None) -> None:
        """Starts it.

        Args:
          python: the interpreter, a path.
          module: the side that it works with.
          name: what messages call it.
          settings: variables of its environment besides.
        """
        self.name = name
        self._errors = tempfile.TemporaryFile('w+')  # noqa: SIM115
        threads = str(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)
        environment = {
            'OMP_WAIT_POLICY': 'PASSIVE',  # on busy cores, threads that spin make PyTorch up to fifty times slower
            **os.environ,
            'OMP_NUM_THREADS': threads,
            'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',  # so that both fit on a GPU
            **(settings or {}),
        }
        self._process = subprocess.Popen(
            [python, '-m', 'benchmarks.worker', module],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Sends a request and waits for the answer.

        Args:
          do: what `benchmarks.worker.Session` knows.
          details: what that needs.

        Returns:
          The answer.

        Raises:
          UserError: the process has ended or could not do it.
        """
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({'do': do, **details}), file=self._stdin, flush=True)
        line = self._stdout.readline()
        if not line:
            raise UserError(f'{self.name} ended while it was to {do}: {self._last_words()}')
        answer = json.loads(line)
        if 'error' in answer:
            raise UserError(f'{self.name} failed to {do}: {answer["error"]}')
        return answer

    def kill(self) -> None:
        """Ends the process at once, whatever it is doing."""
        self._process.kill()

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else 'it said nothing.'

    def __enter__(self) -> 'Worker':
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process: it leaves when there is nothing more to read."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()
        self._errors.close()


def peers_python(path: str) -> str:
    """Checks that the environment of the peers is there.

    Args:
      path: of its interpreter, from the root of the repository if it is not absolute; or the name of a command.

    Returns:
      The absolute path.

    Raises:
      UserError: there is none.
    """
    found = str(ROOT / path) if os.sep in path else shutil.which(path)
    if found is None or not os.path.exists(found):
        folder = str(pathlib.Path(path).parent.parent)
        pip = f'{folder}/bin/pip install'
        raise UserError(
            f'There is no {path}: make the environment of the peers with `python3 -m venv {folder}`, '
            f'`{pip} -r benchmarks/requirements.txt` and `{pip} --no-deps -r benchmarks/peers.txt`.'
        )
    return found


class Late(Exception):  # noqa: N818
    """A part took longer than it may."""


@contextlib.contextmanager
def within(seconds: int, part: str) -> Iterator[None]:
    """Ends what takes longer with `Late`, and with it the processes that it has started."""

    def late(*_: object) -> None:
        raise Late(f'{part} took longer than --part_seconds={seconds}, so that it was given up.')

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
