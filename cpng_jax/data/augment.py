"""Random changes of training images, on the host: functions of an image and a numpy generator."""

import numpy as np


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
