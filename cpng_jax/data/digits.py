"""Scikit-learn's digits: 1,797 scans of handwritten digits, 8 x 8 pixels, part of the package."""

import numpy as np

from cpng_jax.data.arrays import from_arrays
from cpng_jax.data.dataset import Dataset
from cpng_jax.data.entry import IMAGES, Entry, Kind
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError


def load(config: Config) -> Dataset:
    """Splits the digits into 1,437 training and 360 test scans, stratified, the same each time.

    Args:
      config: `config.data`; its augmentation applies.

    Returns:
      The `Dataset`.

    Raises:
      UserError: scikit-learn is not installed.
    """
    return from_arrays(config, scans())


def scans() -> tuple[np.ndarray, np.ndarray]:
    """Reads the scans.

    Returns:
      Images, uint8 `[1797, 8, 8, 1]`, and labels, integer `[1797]`.

    Raises:
      UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError('The digits come with scikit-learn: pip install scikit-learn') from error
    pixels, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    return np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1), labels


ENTRY = Entry(load, lambda _: Kind((8, 8, 1), 10), IMAGES)
