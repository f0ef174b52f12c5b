"""A lock on a folder that ends with the process that holds it, and says whose it is."""

import contextlib
import datetime
import errno
import fcntl
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator

from cpng_jax.runtime.errors import BusyError

_PAUSE = 0.2  # seconds between two attempts

# Of this process, which its own locks would not stop.
_held: set[tuple[int, int, str]] = set()


@contextlib.contextmanager
def held(folder: pathlib.Path, what: str, *, patience: float = 0, file_name: str = '.lock') -> Iterator[None]:
    """Inside a `with`, holds the lock of a folder, against other processes and other machines.

    It is a lock of POSIX, on a file that says who holds it. The system drops such a lock when the process ends, however
    it ends, and no child has a part in it: a worker that outlives a killed run keeps nobody out. NFS and, mounted with
    `flock`, Lustre carry it between machines. On a file system without locks a sentence on standard error says so, and
    the work goes on.

    Args:
      folder: which is there.
      what: is done in it, for the message to others: 'the run'.
      patience: seconds to wait for another to end.
      file_name: of the file, which stays, empty.

    Raises:
      BusyError: another has the lock, and keeps it.
      OSError: the file cannot be written.
    """
    place = os.stat(folder)
    key = place.st_dev, place.st_ino, file_name
    deadline = time.monotonic() + patience
    if key in _held:
        raise BusyError(f'{what} in {folder} is under way in this process: wait for its end, or take another folder.')
    # Closing any descriptor of the file drops the lock: this process opens it only here.
    with (folder / file_name).open('a+') as file:
        while not _taken(file.fileno(), folder):
            if time.monotonic() >= deadline:
                file.seek(0)
                owner = file.read().strip() or 'a process that has not said which'
                raise BusyError(
                    f'{what} in {folder} is under way, by {owner}: wait for its end, or take another folder.'
                )
            time.sleep(_PAUSE)
        file.truncate(0)
        file.write(_myself())
        file.flush()
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)
            with contextlib.suppress(OSError):
                file.truncate(0)


def _taken(descriptor: int, folder: pathlib.Path) -> bool:
    """Tries to lock a file once; True also where the file system has no locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        print(
            f'The file system of {folder} has no locks ({error.strerror}): see to it yourself that nothing else '
            'writes there.',
            file=sys.stderr,
        )
    return True


def _myself() -> str:
    now = datetime.datetime.now(datetime.UTC)
    return f'process {os.getpid()} on {socket.gethostname()}, since {now:%Y-%m-%d %H:%M:%S} UTC\n'
