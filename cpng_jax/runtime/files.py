"""Writing a file in one go."""

import os
import pathlib
import uuid


def replace(path: pathlib.Path, contents: bytes | str) -> pathlib.Path:
    """Replaces a file in one go: a reader, or a process that is killed, finds the old one or the new one.

    Two processes that write the same file at once do not meet: the later one leaves its contents.

    Args:
      path: of the file.
      contents: what it shall hold; a text as UTF-8.

    Returns:
      The path.
    """
    temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex}.tmp')
    try:
        with temporary.open('xb') as file:
            file.write(contents.encode() if isinstance(contents, str) else contents)
            file.flush()
            os.fsync(file.fileno())
        return temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
