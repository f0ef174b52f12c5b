"""Stopping on a signal without losing work."""

import os
import pathlib
import signal
import threading
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818  it is no error
    """Training ended on a signal, after a checkpoint.

    Attributes:
      exit_code: what a shell expects of a process ended by that signal.
    """

    def __init__(self, signum: int, step: int, workdir: str | os.PathLike[str]) -> None:
        self.exit_code = 128 + signum
        super().__init__(
            f'{signal.Signals(signum).name}: saved at step {step} in {pathlib.Path(workdir)}; '
            'the same command goes on from there.'
        )


class StopRequest:
    """Inside a `with`, notes SIGINT and SIGTERM for the loop to ask about; a second one ends the program at once.

    Attributes:
      requested: whether a signal came.
      signal: which one, 0 before.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal != 0

    def __enter__(self) -> 'StopRequest':
        # Python lets only the main thread handle signals; a loop in another thread is stopped by its caller.
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._note) for signum in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, signum: int, _: FrameType | None) -> None:
        self.signal = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}
