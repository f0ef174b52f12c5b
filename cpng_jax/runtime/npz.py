"""Arrays by name in `.npz` files; needs numpy alone."""

import io
import pathlib
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from cpng_jax.runtime import files
from cpng_jax.runtime.errors import UserError, reason

Arrays = dict[str, np.ndarray]


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays into a new `.npz` file, in one go: a process that is killed leaves none.

    Args:
      path: of the file, which must not be there yet.
      arrays: by name.

    Raises:
      UserError: the name does not end with .npz, the file is there, or it cannot be written.
    """
    if path.suffix != '.npz':
        raise UserError(f'The weights file is {str(path)!r}, expected a name that ends with .npz.')
    if path.exists():
        raise UserError(f'{path} is there already and stays as it is: remove it, or choose another name.')
    contents = io.BytesIO()
    np.savez_compressed(contents, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, contents.getvalue())
    except OSError as error:
        raise UserError(f'Cannot write {path}: {error.strerror or error}.') from error


def read(path: pathlib.Path) -> Arrays:
    """Reads the arrays of a `.npz` file; objects, which would need pickle, are refused.

    Args:
      path: of the file.

    Returns:
      Arrays by name.

    Raises:
      UserError: it cannot be read, or is no such file.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError('it is another kind of file, or damaged')
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        if not all(isinstance(array, np.ndarray) for array in found.values()):
            raise ValueError('not all that it holds are arrays')
        return found
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path} cannot be read ({reason(error)}); expected a .npz file of arrays by name.') from error
