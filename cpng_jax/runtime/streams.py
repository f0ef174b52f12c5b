"""Standard output and error of a program, which goes on where they are closed or cannot be written."""

import errno
import io
import os
import pathlib
import sys
from typing import Any

# Nobody reads any more: the pipe is closed, the terminal is gone.
_NO_READER = (errno.EPIPE, errno.EIO)


class Stream(io.FileIO):
    """Standard output or error; from the first bytes on that cannot be written, what it is given is dropped.

    Attributes:
      lost: why bytes were dropped; None where they were not, or had no reader any more.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, 'wb', closefd=False)
        self.lost: OSError | None = None

    def write(self, data: Any) -> int | None:
        """Writes bytes, or drops them; returns how many."""
        try:
            return super().write(data)
        except OSError as error:
            discard(self.fileno())
            if error.errno not in _NO_READER:
                self.lost = error
                if self.fileno() == 1:
                    reason = error.strerror or str(error)
                    print(f'{program_name()}: cannot write to standard output: {reason}.', file=sys.stderr)
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Has the program go on where its standard output or error is closed, as by `| head -1`, or the disk is full."""
    for descriptor, name in enumerate(('stdout', 'stderr'), 1):
        stream = getattr(sys, name)
        if stream is None:  # closed at the start: no file that is opened later may get its number
            discard(descriptor)
            setattr(sys, name, io.TextIOWrapper(Stream(descriptor), write_through=True))
        elif stream is getattr(sys, f'__{name}__'):
            stream.flush()
            raw = Stream(descriptor)
            text = io.TextIOWrapper(
                raw if isinstance(stream.buffer, io.FileIO) else io.BufferedWriter(raw),  # python -u
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, text)


def note(sentence: object) -> None:
    """Prints the name of the program and a sentence on standard error, for what goes on all the same."""
    print(f'{program_name()}: {sentence}', file=sys.stderr, flush=True)


def output_error() -> OSError | None:
    """Why what the program printed is not whole: None where it is, or where its reader had enough."""
    sys.stdout.flush()
    buffer = getattr(sys.stdout, 'buffer', None)
    return getattr(getattr(buffer, 'raw', buffer), 'lost', None)


def discard(descriptor: int) -> None:
    """Has a file descriptor lead nowhere: what is written to it is dropped."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def program_name() -> str:
    """The program's name for messages: train.py, or cpng_jax.experiments for the __main__.py of a package."""
    path = pathlib.Path(sys.argv[0])
    return f'{path.parent.parent.name}.{path.parent.name}' if path.name == '__main__.py' else path.name
