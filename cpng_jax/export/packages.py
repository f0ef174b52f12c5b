"""The packages that files of other programs need, those of the extra `export`."""

import importlib
from typing import Any

from cpng_jax.runtime.errors import UserError


def needed(name: str, what: str) -> Any:
    """Imports a package of the extra `export`.

    Args:
      name: of the package.
      what: needs it, for the sentence.

    Returns:
      The module.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f'{what} needs the package {error.name}, which is not installed: pip install {name}, or cpng_jax with its '
            "extra: pip install 'PATH/TO/cpng_jax.whl[train,export]'."
        ) from error
