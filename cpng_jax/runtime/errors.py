"""The exceptions whose messages are meant for the user, without a traceback, and what helps to write them."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


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


def reason(error: Exception) -> str:
    """Says in a line why something failed: by the system, or the first line of the message, or the type."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(key: str, known: Iterable[str]) -> str:
    """Says which known key a misspelt one is most like.

    Args:
      key: the key that does not exist.
      known: the keys that do.

    Returns:
      The known key that is spelt most alike.
    """
    # Keys of the same section first: model.tme_steps is nearer to model.time_steps than to any other key.
    return max(known, key=lambda other: difflib.SequenceMatcher(None, key, other).ratio())


def if_alike(name: str, known: Iterable[str]) -> str:
    """Ends the sentence on a name that does not exist.

    Args:
      name: the name.
      known: those that do exist.

    Returns:
      '; the nearest is ' and the known name that is spelt most alike, or '' where none is much alike.
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f'; the nearest is {close[0]!r}' if close else ''
