"""Signals: a run stops on them after a checkpoint, a program with nothing to save ends at once."""

import contextlib
import os
import pathlib
import select
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

from cpng_jax.runtime.streams import program_name

# What asks to stop: a person, a closed terminal, a scheduler, a limit on CPU time.
_NAMES = ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU')
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# A second one of these ends a run that is stopping. It has to come some seconds after the first: shells, launchers and
# `timeout` send one twice.
_IMPATIENT = (signal.SIGINT, signal.SIGTERM)
_AGAIN = 1.0

_ending = threading.Lock()
_temporary: set[pathlib.Path] = set()


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
    """Inside a `with`, from `listen` on, notes a signal for the loop to poll; a second Ctrl-C or SIGTERM is not noted.

    Where several processes form one run, a signal to any of them counts for all.

    Attributes:
      signal: number of the signal received, 0 before.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._at = 0.0
        self._before: dict[int, object] = {}

    def listen(self) -> None:
        """Takes signals from here on: call it once there is something to save."""
        # Python lets only the main thread handle signals; a loop in another thread is stopped by its caller.
        if threading.current_thread() is threading.main_thread():
            # With several processes, JAX's own handler for SIGTERM tells the others: the rest is passed on to it.
            passed_on = (signal.SIGTERM,) if jax.process_count() > 1 else ()
            heard = [signum for signum in _heard() if signum not in passed_on]
            self._before = {signum: signal.signal(signum, self._note) for signum in heard}

    def after(self, step: int) -> bool:
        """Whether to stop after a step; the same on all processes, each of which has to ask after each step."""
        if jax.process_count() > 1:
            if not multihost_utils.reached_preemption_sync_point(step):
                return False
            # JAX tells the others of SIGTERM alone.
            noted = multihost_utils.process_allgather(np.array(self.signal, np.int32))
            self.signal = int(np.max(noted)) or int(signal.SIGTERM)
        return self.signal != 0

    def __enter__(self) -> 'StopRequest':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._restore()
        # Noted too late to be polled: for whoever took signals before. Of several processes JAX keeps it for the next.
        if self.signal and jax.process_count() == 1 and not (kind and issubclass(kind, Stopped)):
            signal.raise_signal(self.signal)

    def _note(self, signum: int, _: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._at = signum, time.monotonic()
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
        elif signum in _IMPATIENT and time.monotonic() - self._at > _AGAIN:
            self._restore()
            signal.raise_signal(signum)

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}


def end_program_on_signals() -> None:
    """Has signals end this program at once, with a line and exit code 128 + their number, outside of a `StopRequest`.

    Left to Python, Ctrl-C is an exception somewhere within JAX, which may swallow it, or crash on it while it compiles
    (0.10); and it would have to wait until a compilation, or a wait for another process, is over.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    # Python's handlers run in the main thread, between two of its own instructions; the numbers go to a thread at once.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for signum in _heard():
        signal.signal(signum, _end)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_watch, args=(read,), name='signals', daemon=True).start()


@contextlib.contextmanager
def temporary(path: pathlib.Path) -> Iterator[None]:
    """Removes a file at the end of the `with`, and where a signal ends the program before.

    Args:
      path: of the file, which need not be there.
    """
    _temporary.add(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _temporary.discard(path)


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
    """Keeps processes that are started in the `with` from getting these signals, for as long as they live."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heard() -> list[int]:
    """The signals but those that are ignored, as SIGHUP is under nohup, or handled outside of Python."""
    return [signum for signum in SIGNALS if signal.getsignal(signum) not in (signal.SIG_IGN, None)]


def _watch(read: int) -> None:
    """Ends the program where no loop takes a signal, or where the main thread does not get to handle a second one."""
    noted = None
    while True:
        for signum in os.read(read, 64):
            if signum not in SIGNALS:
                continue
            if signal.getsignal(signum) is _end:
                _end(signum)
            noted = noted or time.monotonic()
            if signum in _IMPATIENT and time.monotonic() - noted > _AGAIN:
                _end(signum)


def _end(signum: int, _: FrameType | None = None) -> None:
    """Ends the program; handler of signals, which the thread above calls as well, whichever is first."""
    if not _ending.acquire(blocking=False):
        return
    for path in list(_temporary):
        path.unlink(missing_ok=True)
    if os.isatty(1):
        os.write(1, b'\x1b[?25h')  # A progress bar hides the cursor.
    if select.select([], [2], [], 0)[1]:  # A reader that has stopped reading would hold this up for ever.
        os.write(2, f'{program_name()}: ended by {signal.Signals(signum).name}.\n'.encode())
    os._exit(128 + signum)


def _forget() -> None:
    """In a forked process signals do what they do by default, and their numbers are not the parent's."""
    signal.set_wakeup_fd(-1)
    for signum in _heard():
        signal.signal(signum, signal.SIG_DFL)
