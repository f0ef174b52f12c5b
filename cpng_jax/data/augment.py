"""Random changes of training images, on the host: functions of an image and a numpy generator."""

import numpy as np

from cpng_jax.config import Config
from cpng_jax.data.dataset import Augmentation, Example


def random_crop(image: np.ndarray, padding: int, rng: np.random.Generator) -> np.ndarray:
    """Shifts an image at random: pads each side with zeros and crops to the old size (A.1).

    Args:
      image: `[H, W, C]`.
      padding: pixels added on each side; 0 leaves the image as it is.
      rng: source of the shift.

    Returns:
      `[H, W, C]`.
    """
    if not padding:
        return image
    height, width, _ = image.shape
    top, left = rng.integers(0, 2 * padding + 1, size=2)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return padded[top : top + height, left : left + width]


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors an image left to right in half of the cases (A.1).

    Args:
      image: `[..., H, W, C]`.
      rng: source of the choice.

    Returns:
      The same shape.
    """
    return image[..., ::-1, :] if rng.random() < 0.5 else image


def standard(config: Config) -> Augmentation:
    """Makes the augmentation of images that `config.data` describes: crop, flip.

    Args:
      config: `config.data`.

    Returns:
      The augmentation.
    """
    padding, flip = config.crop_padding, config.flip

    def augment(example: Example, rng: np.random.Generator) -> Example:
        image = random_crop(example['image'], padding, rng)
        return {**example, 'image': random_flip(image, rng) if flip else image}

    return augment
