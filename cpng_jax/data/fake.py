"""Random images in the shape of any data set, for dry runs and benchmarks: nothing is read, nothing can be learnt.

The augmentation is that of the configuration; only ImageNet's decoding and cropping has nothing to work on.
"""

import numpy as np

from cpng_jax.data.augment import standard
from cpng_jax.data.dataset import Dataset, Example
from cpng_jax.data.entry import Kind
from cpng_jax.data.events import random_shift
from cpng_jax.runtime.config import Config

# Different images; a split repeats them.
_POOL = 64


class FakeSource:
    """A split of random bytes; the labels run through the classes."""

    def __init__(self, length: int, shape: tuple[int, ...], classes: int) -> None:
        """Makes `length` examples of uint8 images of a shape."""
        self.length, self.labels = length, np.arange(length, dtype=np.int32) % classes
        self.images = np.random.default_rng(0).integers(0, 256, (min(length, _POOL), *shape), np.uint8)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        return {'image': self.images[index % len(self.images)], 'label': self.labels[index]}


def load(config: Config, kind: Kind) -> Dataset:
    """Makes a data set of random images, with `config.fake_examples` training examples.

    Args:
      config: `config.data`; with `per_class` above 0 there are so many training examples of each class.
      kind: what the images are.

    Returns:
      The `Dataset`.
    """
    shape, classes = kind
    return Dataset(
        train=FakeSource(config.per_class * classes or config.fake_examples, shape, classes),
        test=FakeSource(config.fake_examples // 4, shape, classes),
        augment=random_shift(config) if len(shape) == 4 else standard(config, channels=shape[-1]),
        class_names=[f'class {label}' for label in range(classes)],
        image_shape=shape,
        mean=np.full(shape[-1], 0.5, np.float32),
        std=np.full(shape[-1], 0.3, np.float32),
    )
