"""AutoAugment and RandAugment: sequences of image operations drawn at random, done by Pillow. Not in the paper."""

from collections.abc import Callable
from typing import Any

import numpy as np

# Magnitudes run from 0 to 9 in AutoAugment, to 30 in RandAugment.
_AUTO_LEVELS = 9
_RAND_LEVELS = 30

# name -> change at the full magnitude; those of _SIGNED go either way.
_RANGES = {
    'shear_x': 0.3,
    'shear_y': 0.3,
    'translate_x': 150 / 331,  # of the edge: AutoAugment was written for 331 pixels
    'translate_y': 150 / 331,
    'rotate': 30.0,
    'brightness': 0.9,
    'color': 0.9,
    'contrast': 0.9,
    'sharpness': 0.9,
    'posterize': 4.0,
    'solarize': 256.0,
    'autocontrast': 0.0,
    'equalize': 0.0,
    'invert': 0.0,
    'identity': 0.0,
}
_SIGNED = {
    'shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate', 'brightness', 'color', 'contrast', 'sharpness'
}  # fmt: skip

Step = tuple[str, float, int]

# Cubuk et al. (2019), Table 7: policy found on CIFAR10; operation, probability, magnitude.
CIFAR10_POLICY: tuple[tuple[Step, Step], ...] = (
    (('invert', 0.1, 7), ('contrast', 0.2, 6)),
    (('rotate', 0.7, 2), ('translate_x', 0.3, 9)),
    (('sharpness', 0.8, 1), ('sharpness', 0.9, 3)),
    (('shear_y', 0.5, 8), ('translate_y', 0.7, 9)),
    (('autocontrast', 0.5, 8), ('equalize', 0.9, 2)),
    (('shear_y', 0.2, 7), ('posterize', 0.3, 7)),
    (('color', 0.4, 3), ('brightness', 0.6, 7)),
    (('sharpness', 0.3, 9), ('brightness', 0.7, 9)),
    (('equalize', 0.6, 5), ('equalize', 0.5, 1)),
    (('contrast', 0.6, 7), ('sharpness', 0.6, 5)),
    (('color', 0.7, 7), ('translate_x', 0.5, 8)),
    (('equalize', 0.3, 7), ('autocontrast', 0.4, 8)),
    (('translate_y', 0.4, 3), ('sharpness', 0.2, 6)),
    (('brightness', 0.9, 6), ('color', 0.2, 8)),
    (('solarize', 0.5, 2), ('invert', 0.0, 3)),
    (('equalize', 0.2, 0), ('autocontrast', 0.6, 0)),
    (('equalize', 0.2, 8), ('equalize', 0.6, 4)),
    (('color', 0.9, 9), ('equalize', 0.6, 6)),
    (('autocontrast', 0.8, 4), ('solarize', 0.2, 8)),
    (('brightness', 0.1, 3), ('color', 0.7, 0)),
    (('solarize', 0.4, 5), ('autocontrast', 0.9, 3)),
    (('translate_y', 0.9, 9), ('translate_y', 0.7, 9)),
    (('autocontrast', 0.9, 2), ('solarize', 0.8, 3)),
    (('equalize', 0.8, 8), ('invert', 0.1, 3)),
    (('translate_y', 0.7, 9), ('autocontrast', 0.9, 1)),
)

# Table 9: policy found on a part of ImageNet.
IMAGENET_POLICY: tuple[tuple[Step, Step], ...] = (
    (('posterize', 0.4, 8), ('rotate', 0.6, 9)),
    (('solarize', 0.6, 5), ('autocontrast', 0.6, 5)),
    (('equalize', 0.8, 8), ('equalize', 0.6, 3)),
    (('posterize', 0.6, 7), ('posterize', 0.6, 6)),
    (('equalize', 0.4, 7), ('solarize', 0.2, 4)),
    (('equalize', 0.4, 4), ('rotate', 0.8, 8)),
    (('solarize', 0.6, 3), ('equalize', 0.6, 7)),
    (('posterize', 0.8, 5), ('equalize', 1.0, 2)),
    (('rotate', 0.2, 3), ('solarize', 0.6, 8)),
    (('equalize', 0.6, 8), ('posterize', 0.4, 6)),
    (('rotate', 0.8, 8), ('color', 0.4, 0)),
    (('rotate', 0.4, 9), ('equalize', 0.6, 2)),
    (('equalize', 0.0, 7), ('equalize', 0.8, 8)),
    (('invert', 0.6, 4), ('equalize', 1.0, 8)),
    (('color', 0.6, 4), ('contrast', 1.0, 8)),
    (('rotate', 0.8, 8), ('color', 1.0, 2)),
    (('color', 0.8, 8), ('solarize', 0.8, 7)),
    (('sharpness', 0.4, 7), ('invert', 0.6, 8)),
    (('shear_x', 0.6, 5), ('equalize', 1.0, 9)),
    (('color', 0.4, 0), ('equalize', 0.6, 3)),
    (('equalize', 0.4, 7), ('solarize', 0.2, 4)),
    (('solarize', 0.6, 5), ('autocontrast', 0.6, 5)),
    (('invert', 0.6, 4), ('equalize', 1.0, 8)),
    (('color', 0.6, 4), ('contrast', 1.0, 8)),
    (('equalize', 0.8, 8), ('equalize', 0.6, 3)),
)

_AUTO_POLICIES = {'cifar10': CIFAR10_POLICY, 'imagenet': IMAGENET_POLICY}

# Cubuk et al. (2020), Sec. 3.
_RAND_OPERATIONS = [name for name in _RANGES if name != 'invert']


def autoaugment(image: np.ndarray, rng: np.random.Generator, *, policy: str = 'cifar10') -> np.ndarray:
    """Applies one of the 25 sub-policies that AutoAugment found (Cubuk et al., 2019).

    Args:
      image: RGB, uint8 `[H, W, 3]`.
      rng: source of all choices.
      policy: what it was found on, 'cifar10' or 'imagenet'.

    Returns:
      uint8 `[H, W, 3]`.
    """
    pairs = _AUTO_POLICIES[policy]
    steps = pairs[rng.integers(len(pairs))]
    chosen = [(name, level / _AUTO_LEVELS) for name, probability, level in steps if rng.random() < probability]
    return _apply(image, chosen, rng)


def randaugment(image: np.ndarray, rng: np.random.Generator, *, steps: int = 2, magnitude: int = 9) -> np.ndarray:
    """Applies operations drawn with equal probability, all of one magnitude (Cubuk et al., 2020).

    Args:
      image: RGB, uint8 `[H, W, 3]`.
      rng: source of all choices.
      steps: number of operations, N in the paper.
      magnitude: from 0 to 30, M in Sec. 4.1 of the paper; its Sec. 2 has a scale to 10 of the same range.

    Returns:
      uint8 `[H, W, 3]`.
    """
    names = rng.choice(_RAND_OPERATIONS, size=steps)
    return _apply(image, [(str(name), magnitude / _RAND_LEVELS) for name in names], rng)


def _apply(image: np.ndarray, steps: list[tuple[str, float]], rng: np.random.Generator) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(image)
    for name, share in steps:
        sign = -1 if name in _SIGNED and rng.random() < 0.5 else 1
        picture = operation(name)(picture, sign * share * _RANGES[name])
    return np.asarray(picture)


def operation(name: str) -> Callable[[Any, float], Any]:
    """Returns an operation on a Pillow image and its change, in units of the operation.

    Args:
      name: a key of the ranges: 'rotate' by degrees, 'shear_x' by a slope, 'translate_x' by a share of the edge,
        'brightness' and its like by a change of the factor 1, 'posterize' by bits lost, 'solarize' by levels inverted.

    Returns:
      The function; the size stays, and what comes in from outside is black.
    """
    from PIL import Image, ImageEnhance, ImageOps

    def affine(picture: Any, *matrix: float) -> Any:
        return picture.transform(picture.size, Image.Transform.AFFINE, matrix)

    def enhance(kind: Any) -> Callable[[Any, float], Any]:
        return lambda picture, change: kind(picture).enhance(1 + change)

    operations: dict[str, Callable[[Any, float], Any]] = {
        'shear_x': lambda picture, slope: affine(picture, 1, slope, 0, 0, 1, 0),
        'shear_y': lambda picture, slope: affine(picture, 1, 0, 0, slope, 1, 0),
        'translate_x': lambda picture, share: affine(picture, 1, 0, share * picture.size[0], 0, 1, 0),
        'translate_y': lambda picture, share: affine(picture, 1, 0, 0, 0, 1, share * picture.size[1]),
        'rotate': lambda picture, degrees: picture.rotate(degrees),
        'brightness': enhance(ImageEnhance.Brightness),
        'color': enhance(ImageEnhance.Color),
        'contrast': enhance(ImageEnhance.Contrast),
        'sharpness': enhance(ImageEnhance.Sharpness),
        'posterize': lambda picture, bits: ImageOps.posterize(picture, 8 - round(bits)),
        'solarize': lambda picture, levels: ImageOps.solarize(picture, round(256 - levels)),
        'autocontrast': lambda picture, _: ImageOps.autocontrast(picture),
        'equalize': lambda picture, _: ImageOps.equalize(picture),
        'invert': lambda picture, _: ImageOps.invert(picture),
        'identity': lambda picture, _: picture,
    }
    return operations[name]
