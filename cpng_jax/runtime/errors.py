"""The exceptions whose messages are meant for the user, without a traceback."""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """Something the user can set right: the message names the value, what was expected and what to do."""


class BusyError(UserError):
    """Another process is writing to the same folder."""


class DivergedError(UserError):
    """Training left the finite numbers."""


class LostProcessError(UserError):
    """Another process of the run has ended: the same command goes on from the latest checkpoint."""


@contextlib.contextmanager
def files_named() -> Iterator[None]:
    """Makes of a file that cannot be read or written, the disk being full, say, a sentence that names it.

    Yields:
      Nothing; also a decorator.

    Raises:
      UserError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        what = 'a file' if error.filename is None else error.filename
        raise UserError(f'Cannot read or write {what}: {error.strerror or error}.') from error
