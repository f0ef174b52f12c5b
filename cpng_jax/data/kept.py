"""Arrays that take long to make, kept in a file beside the data that they are made from."""

import io
import pathlib
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from cpng_jax.runtime import files


def kept(
    path: pathlib.Path,
    make: Callable[[], Mapping[str, np.ndarray]],
    right: Callable[..., bool] = lambda **_: True,
) -> Mapping[str, np.ndarray]:
    """Opens arrays that are made once; where the file cannot be written they are made each time.

    Args:
      path: of the file, `.npz`; its name tells apart whatever the arrays depend on.
      make: gives the arrays by name; called only if there is no such file yet.
      right: says of the arrays, by name, whether they can be those.

    Returns:
      The arrays by name.
    """
    try:
        # np.load leaves a file open that it finds damaged.
        with path.open('rb') as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        if right(**arrays):
            return arrays
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile):
        pass  # absent, damaged or something else: it can be made again
    arrays = make()
    contents = io.BytesIO()
    np.savez(contents, **arrays)  # pyright: ignore[reportArgumentType]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, contents.getvalue())
    except OSError:
        pass  # data that others own
    return arrays
