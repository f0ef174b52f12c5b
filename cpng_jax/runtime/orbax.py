"""What Orbax, which checkpoints are written and read with, has to be helped with."""

import glob
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from etils import epath

_Path: Any = type(epath.Path('/'))


class _Literal(_Path):
    """A path as Orbax uses them, whose own name is no pattern where files below it are looked for by one."""

    def glob(self, pattern: str) -> Iterator['_Literal']:
        return map(type(self), glob.glob(os.path.join(glob.escape(os.fspath(self)), pattern)))


def path(folder: pathlib.Path) -> epath.Path:
    """Makes a path to hand to Orbax, which would not find its own files below a name such as lr[0.1]."""
    return _Literal(folder)


def reason(error: Exception) -> str:
    """Says in a line why something has failed: what it did to whom, without the page of settings that follows."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.split(r""" \[\w+=["']""", line)[0]


def hush() -> None:
    """Has what a failed read or write leaves behind end in silence.

    Where one of many fails, Orbax raises its error and closes the event loop that the others report their end to. Each
    of these would still do so, from a thread, and have a traceback printed after the error has been dealt with.
    """
    before = sys.unraisablehook
    if getattr(before, 'hushes_orbax', False):
        return

    def hook(unraisable: Any) -> None:
        if not _left_behind(unraisable.exc_value):
            before(unraisable)

    hook.hushes_orbax = True
    sys.unraisablehook = hook


def _left_behind(error: BaseException | None) -> bool:
    closed = isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'
    # Of a read that is given up, because another has failed, Orbax makes an error of its own.
    return closed or (error is not None and isinstance(error.__cause__, GeneratorExit))
