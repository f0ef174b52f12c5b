"""Stopping a run on SIGINT or SIGTERM after a checkpoint."""

import os
import pathlib
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818  not an error
    """Training ended on a signal, after a checkpoint.

    Attributes:
      exit_code: 128 + the number of the signal, as shells expect it.
    """

    def __init__(self, signum: int, step: int, workdir: str | os.PathLike[str]) -> None:
        self.exit_code = 128 + signum
        super().__init__(
            f'{signal.Signals(signum).name}: saved at step {step} in {pathlib.Path(workdir)}; '
            'the same command goes on from there.'
        )


class StopRequest:
    """Inside a `with`, records SIGINT and SIGTERM for the loop to poll; a second one ends the program at once.

    Where several processes form one run, a signal to any of them counts for all.

    Attributes:
      signal: number of the signal received, 0 before.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, object] = {}

    def after(self, step: int) -> bool:
        """Whether to stop after a step; the same on all processes, each of which has to ask after each step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal != 0

    def __enter__(self) -> 'StopRequest':
        # Python lets only the main thread handle signals; a loop in another thread is stopped by its caller.
        if threading.current_thread() is threading.main_thread():
            # With several processes, JAX's own handler for SIGTERM tells the others: SIGINT is passed on to it.
            handlers = (
                {signal.SIGINT: self._pass_on} if jax.process_count() > 1 else dict.fromkeys(_SIGNALS, self._note)
            )
            self._before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, signum: int, _: FrameType | None) -> None:
        self.signal = signum
        self._restore()

    def _pass_on(self, *_: object) -> None:
        self._restore()
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}
