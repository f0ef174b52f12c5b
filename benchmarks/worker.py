"""One side of `benchmarks.race`: a process that builds a piece of work and runs it when it is told to.

    python -m benchmarks.worker benchmarks.ours

Requests come on stdin and answers leave on stdout, a line of JSON each; what a library prints goes to stderr. Between
requests the process waits for a line and computes nothing. Both sides run this file, so it imports neither JAX nor
PyTorch nor this project.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TextIO

import numpy as np

from benchmarks.cases import Arrays, Case

_STATUS = pathlib.Path('/proc/self/status')
_CLEAR_REFS = pathlib.Path('/proc/self/clear_refs')


class Work(NamedTuple):
    """A piece of work that is built.

    Attributes:
      step: does it once and returns when the results are there.
      device: what it runs on.
      peak_bytes: most bytes that an accelerator has held; None on a CPU.
    """

    step: Callable[[], None]
    device: str
    peak_bytes: Callable[[], int | None]


class Side(Protocol):
    """A module that does the work of the cases with one library.

    Attributes:
      VERSIONS: of what counts, such as {'jax': '0.10.2'}.
      DIFFERS: in words, how its dynamics differ from ours; empty if they do not.
    """

    VERSIONS: dict[str, str]
    DIFFERS: str

    def build(self, case: Case) -> Work:
        """Builds a case."""
        ...

    def check(self, case: Case, given: Arrays) -> Arrays:
        """Computes outputs and gradients from given inputs and weights, which are in our layout."""
        ...


def memory_line(name: str) -> int | None:
    """Reads a line such as `VmHWM` of this process's status, in bytes; None where there is none."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(name + ':'):
                return int(line.split()[1]) * 1024
    return None


def settle() -> None:
    """Hands memory that building left behind back to the system and forgets the peak, where the system lets it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text('5')


class Session:
    """Answers requests with one side."""

    def __init__(self, side: Side) -> None:
        """Takes the module that does the work."""
        self._side = side
        self._work: Work | None = None
        self._resident = 0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does what a request says.

        Args:
          request: `do` and what it needs: `build` with `case`; `run` with `steps`; `check` with `case` and the paths
            `given` and `out`; `weights` with `case` and `out`, of our side alone; `settle`; `memory`.

        Returns:
          The answer: `build_s`, `first_step_s`, `device`, `versions` and `differs`; `seconds` of each step;
          `peak_bytes` and `measured`, what they are; or nothing.
        """
        return getattr(self, '_' + request.pop('do'))(**request)

    def _build(self, case: dict[str, Any]) -> dict[str, Any]:
        self._resident = memory_line('VmRSS') or 0
        began = time.perf_counter()
        self._work = self._side.build(Case(**case))
        built = time.perf_counter()
        self._work.step()
        return {
            'build_s': built - began,
            'first_step_s': time.perf_counter() - built,
            'device': self._work.device,
            'versions': self._side.VERSIONS,
            'differs': self._side.DIFFERS,
        }

    def _run(self, steps: int) -> dict[str, Any]:
        assert self._work is not None
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            self._work.step()
            seconds.append(time.perf_counter() - began)
        return {'seconds': seconds}

    def _settle(self) -> dict[str, Any]:
        settle()
        return {}

    def _memory(self) -> dict[str, Any]:
        assert self._work is not None
        device = self._work.peak_bytes()
        if device is not None:
            return {'peak_bytes': device, 'measured': 'on the device'}
        peak = memory_line('VmHWM')
        return {'peak_bytes': peak and peak - self._resident, 'measured': 'of the process, above what it held before'}

    def _check(self, case: dict[str, Any], given: str, out: str) -> dict[str, Any]:
        with np.load(given) as arrays:
            np.savez(out, allow_pickle=False, **self._side.check(Case(**case), dict(arrays)))
        return {}

    def _weights(self, case: dict[str, Any], out: str) -> dict[str, Any]:
        side: Any = self._side
        np.savez(out, allow_pickle=False, **side.weights(Case(**case)))
        return {}


def serve(side: Side, requests: TextIO, answers: TextIO) -> None:
    """Answers until there are no more requests; an error is an answer too, `{'error': ...}`."""
    session = Session(side)
    for line in requests:
        try:
            answer = session.answer(json.loads(line))
        except Exception as error:  # whatever a library raises, the parent should hear of it
            answer = {'error': f'{type(error).__name__}: {error}'}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    """Serves with the module that the command line names."""
    with os.fdopen(os.dup(1), 'w') as answers:
        os.dup2(2, 1)  # so that no library's message gets between the answers
        serve(importlib.import_module(sys.argv[1]), sys.stdin, answers)  # pyright: ignore[reportArgumentType]


if __name__ == '__main__':
    main()
