"""Scikit-learn's digits: 1,797 scans of handwritten digits, 8 x 8 pixels, part of the package."""

import numpy as np

from cpng_jax.config import Config
from cpng_jax.data.augment import random_crop
from cpng_jax.data.dataset import ArraySource, Dataset, Example
from cpng_jax.errors import UserError

_TEST_SHARE = 0.2
_SPLIT_SEED = 0


def load(config: Config) -> Dataset:
    """Splits the digits into 1,437 training and 360 test scans, stratified, the same each time.

    Args:
      config: `config.data`; `crop_padding` shifts training scans by up to so many pixels.

    Returns:
      The `Dataset`.

    Raises:
      UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UserError('The digits come with scikit-learn: pip install scikit-learn') from error
    pixels, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    split = train_test_split(images, labels, test_size=_TEST_SHARE, stratify=labels, random_state=_SPLIT_SEED)
    train_images, test_images, train_labels, test_labels = (np.asarray(array) for array in split)
    padding = config.crop_padding

    def augment(example: Example, rng: np.random.Generator) -> Example:
        return {**example, 'image': random_crop(example['image'], padding, rng)}

    scaled = train_images / 255
    return Dataset(
        train=ArraySource(train_images, train_labels),
        test=ArraySource(test_images, test_labels),
        augment=augment,
        class_names=[str(digit) for digit in range(10)],
        image_shape=(8, 8, 1),
        mean=scaled.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32),
        std=scaled.std(axis=(0, 1, 2), dtype=np.float64).astype(np.float32),
    )
