"""Scikit-learn's digits: 1,797 scans of handwritten digits, 8 x 8 pixels, part of the package."""

import numpy as np

from cpng_jax.data.augment import standard
from cpng_jax.data.dataset import ArraySource, Dataset, channel_statistics, stratified_split
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError

_TEST_SHARE = 0.2


def load(config: Config) -> Dataset:
    """Splits the digits into 1,437 training and 360 test scans, stratified, the same each time.

    Args:
      config: `config.data`; its augmentation applies.

    Returns:
      The `Dataset`.

    Raises:
      UserError: scikit-learn is not installed.
    """
    images, labels = scans()
    train, test = split(labels)
    mean, std = channel_statistics(images[train])
    return Dataset(
        train=ArraySource(images[train], labels[train]),
        test=ArraySource(images[test], labels[test]),
        augment=standard(config, channels=1),
        class_names=[str(digit) for digit in range(10)],
        image_shape=(8, 8, 1),
        mean=mean,
        std=std,
    )


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


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits the scans, and whatever is made from them, always alike: indices for training and test."""
    return stratified_split(labels, _TEST_SHARE)
