"""Paths that users give: what every flag, key and function that takes one makes of it."""

import os
import pathlib
import re
import sys

from cpng_jax.runtime.errors import UserError

# Also with a single slash, which is all that pathlib leaves of the two.
_ADDRESS = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')
# What TensorStore, under checkpoints, takes for something else; and what Orbax and TFDS take for a bucket.
_MISREAD = re.compile(r'.*(\\|gs:/)|/(gs|s3|az|hf)/', flags=re.DOTALL)
# What Linux takes in a name, and in a path; a run writes files whose names come on top.
_LONGEST_NAME, _LONGEST_PATH, _LEFT_FOR_FILES = 255, 4096, 512


def local(value: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Makes a path of what a user has given for one: `~` is expanded; whether it is there is not looked at.

    Args:
      value: what was given.
      name: of the flag, key or argument, for messages.

    Returns:
      The path, relative if it was given so. It may be handed to this function again.

    Raises:
      UserError: it is empty, an address such as gs://bucket, or no path that a run can lie at.
    """
    text = os.fspath(value)
    if not text:
        raise UserError(f"{name} is '', expected a path; . is the current folder.")
    if _ADDRESS.match(text):
        raise UserError(
            f'{name} is {text!r}, an address; expected a path on this machine: mount the storage and give the path '
            'that leads there (docs/clusters.md has how, for buckets of Google Cloud).'
        )
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise UserError(f'{name} is {text!r}, which is not UTF-8: rename the folder.') from None
    if b'\0' in encoded:
        raise UserError(f'{name} is {text!r}: no path has a zero byte in it.')
    path = pathlib.Path(os.path.expanduser(text))
    if text.startswith('~') and path.parts[0] == '~':
        raise UserError(f'{name} is {text!r}, but there is no home directory: set HOME, or write the path out.')
    if path.parts and (path.parts[0].startswith('~') or _ADDRESS.match(f'{path}/')):
        path = path.absolute()  # ./~ and ./gs: are folders of that name, and shall stay so when asked again
    if misread := _MISREAD.match(f'{path.absolute()}/'):
        raise UserError(
            f'{name} is {text!r}: libraries read {(misread[1] or misread[0])!r} in a path as something else; rename it.'
        )
    longest = max(path.parts, key=_size, default='')
    if _size(longest) > _LONGEST_NAME:
        raise UserError(
            f'{name} has the name {longest[:20]}... of {_size(longest)} bytes in it, '
            f'expected at most {_LONGEST_NAME}: choose a shorter one.'
        )
    if _size(str(path.absolute())) > _LONGEST_PATH - _LEFT_FOR_FILES:
        raise UserError(
            f'{name} is a path of {_size(str(path.absolute()))} bytes, {str(path)[:20]}..., '
            f'expected at most {_LONGEST_PATH - _LEFT_FOR_FILES}: choose a shorter one.'
        )
    return path


def import_last(folder: str) -> None:
    """Has the modules of a folder be found by imports after all else, so that a file called jax.py hides nothing.

    Args:
      folder: its absolute path.
    """
    if folder not in sys.path and not (folder == os.getcwd() and '' in sys.path):
        sys.path.append(folder)


def _size(name: str) -> int:
    return len(name.encode())
