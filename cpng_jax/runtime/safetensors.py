"""Arrays by name in `.safetensors` files, which many programs read."""

import pathlib
from collections.abc import Mapping

import numpy as np

from cpng_jax.runtime import files
from cpng_jax.runtime.errors import UserError, reason
from cpng_jax.runtime.npz import Arrays
from cpng_jax.runtime.packages import needed

SUFFIX = '.safetensors'


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> pathlib.Path:
    """Writes arrays into a file, in one go.

    Args:
      path: of the file.
      arrays: by name.
      metadata: what the file says of them, texts.

    Returns:
      The path.

    Raises:
      UserError: safetensors is not installed.
    """
    in_order = {name: np.array(array, order='C') for name, array in arrays.items()}
    return files.replace(path, needed('safetensors.numpy', path.name).save(in_order, dict(metadata)))


def read(path: pathlib.Path) -> Arrays:
    """Reads the arrays of a file.

    Args:
      path: of the file.

    Returns:
      Arrays by name.

    Raises:
      UserError: it cannot be read, or is no such file; or safetensors is not installed.
    """
    library = needed('safetensors.numpy', str(path))
    try:
        return library.load(path.read_bytes())
    except Exception as error:  # safetensors raises its own, and others for dtypes that numpy lacks.
        raise UserError(
            f'{path} cannot be read ({reason(error)}); expected a .safetensors file of arrays by name.'
        ) from error
