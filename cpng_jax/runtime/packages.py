"""Packages that are needed for some files alone: those of the extra `export`."""

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
      UserError: it, or what it needs itself, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition('.')[0]
        raise UserError(
            f'{what} needs the package {error.name}, which is not installed: pip install {package}, or cpng_jax with '
            "its extra: pip install 'PATH/TO/cpng_jax.whl[export]'."
        ) from error
