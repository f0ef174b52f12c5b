"""Decoding of photographs straight to the crop a network sees, with Pillow.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which skips most of the inverse DCT, wherever the crop still has
enough pixels for what is asked for.
"""

import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cpng_jax.runtime.errors import UserError

# Of the crop, as is customary for ImageNet: share of the area, and width by height (Szegedy et al., 2015).
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_TRIES = 10

# Edge of the crop as it is decoded by edge of the result, at least. At 1 the scaling to the result blurs visibly, which
# does no harm to a random crop; at 2 the result can hardly be told from that of the whole image.
_RANDOM_MARGIN, _CENTRE_MARGIN = 1, 2


class Box(NamedTuple):
    """A rectangle in pixels of the whole image; edges may lie between pixels."""

    left: float
    top: float
    width: float
    height: float


def decode_random_resized_crop(
    data: bytes, size: int, rng: np.random.Generator, *, name: str = 'an image'
) -> np.ndarray:
    """Decodes a crop of random size and aspect, scaled to a square (A.1).

    Args:
      data: an encoded image, JPEG as a rule.
      size: edge of the result in pixels.
      rng: source of the crop.
      name: of the image, for messages.

    Returns:
      RGB, uint8 `[size, size, 3]`.

    Raises:
      UserError: Pillow cannot decode the image, or is not installed.
    """
    return _decode(data, lambda width, height: random_box(width, height, rng), size, _RANDOM_MARGIN, name)


def decode_resize_centre_crop(data: bytes, resize: int, size: int, *, name: str = 'an image') -> np.ndarray:
    """Decodes the centre of an image whose shorter edge is scaled to `resize` (A.1).

    Args:
      data: an encoded image, JPEG as a rule.
      resize: the shorter edge after scaling, in pixels.
      size: edge of the result in pixels, at most `resize`.
      name: of the image, for messages.

    Returns:
      RGB, uint8 `[size, size, 3]`.

    Raises:
      UserError: Pillow cannot decode the image, or is not installed.
    """
    return _decode(data, lambda width, height: centre_box(width, height, resize, size), size, _CENTRE_MARGIN, name)


def decode_resize(data: bytes, size: int, *, name: str = 'an image') -> np.ndarray:
    """Decodes an image as a whole, scaled to a square whatever its aspect.

    Args:
      data: an encoded image.
      size: edge of the result in pixels.
      name: of the image, for messages.

    Returns:
      RGB, uint8 `[size, size, 3]`.

    Raises:
      UserError: Pillow cannot decode the image, or is not installed.
    """
    return _decode(data, lambda width, height: Box(0, 0, width, height), size, _CENTRE_MARGIN, name)


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Draws the rectangle of a random crop: share of the area uniform in 0.08 to 1, aspect log-uniform in 3/4 to 4/3.

    A rectangle that does not fit is drawn again, ten times at most; then the largest in the centre with an
    aspect within these bounds is taken.

    Args:
      width: of the image.
      height: of the image.
      rng: source of the choice.

    Returns:
      The rectangle, at whole pixels.
    """
    for _ in range(_TRIES):
        area = width * height * rng.uniform(_AREA[0], _AREA[1])
        aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h)
    w, h = min(width, round(height * _ASPECT[1])), min(height, round(width / _ASPECT[0]))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def centre_box(width: int, height: int, resize: int, size: int) -> Box:
    """Finds the centre crop in pixels of the image as it is before scaling.

    Args:
      width: of the image.
      height: of the image.
      resize: the shorter edge after scaling.
      size: edge of the crop after scaling.

    Returns:
      The rectangle.
    """
    short = min(width, height)
    scaled = [int(resize * edge / short) for edge in (width, height)]
    left, top = (round((edge - size) / 2) for edge in scaled)
    across, down = width / scaled[0], height / scaled[1]
    return Box(left * across, top * down, size * across, size * down)


def import_pillow() -> Any:
    """Imports Pillow.

    Returns:
      Its module `Image`.

    Raises:
      UserError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError('Photographs are decoded with Pillow: pip install pillow') from error
    return Image


def _open(data: bytes, name: str) -> Any:
    pillow = import_pillow()
    try:
        return pillow.open(io.BytesIO(data))
    except (OSError, ValueError, pillow.DecompressionBombError) as error:
        # The text of the first is about an object of Python.
        reason = 'it is no image, or damaged' if isinstance(error, pillow.UnidentifiedImageError) else error
        raise UserError(f'{name} cannot be decoded ({reason}): replace it, or prepare the data set again.') from error


def _decode(data: bytes, box_in: Callable[[int, int], Box], size: int, margin: int, name: str) -> np.ndarray:
    """Decodes no more than a rectangle of the image needs, given by the image's width and height, and scales it."""
    from PIL import Image

    image = _open(data, name)
    width, height = image.size
    box = box_in(width, height)
    try:
        # The size given is the least; the image, and with it the crop, may come larger. Formats other than JPEG come
        # as they are.
        wanted = margin * size
        drafted = image.draft('RGB', (math.ceil(width * wanted / box.width), math.ceil(height * wanted / box.height)))
        # How much of the decoded image shows the whole one: its last column and row may be filled up only in part.
        across, down = (drafted[1][2] / width, drafted[1][3] / height) if drafted else (1, 1)
        left, top = box.left * across, box.top * down
        right, bottom = left + box.width * across, top + box.height * down
        inside = (left, top, min(right, image.size[0]), min(bottom, image.size[1]))
        scaled = _rgb(image).resize((size, size), Image.Resampling.BILINEAR, box=inside)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f'{name} cannot be decoded ({error}): replace it, or prepare the data set again.') from error
    return np.asarray(scaled)


def _rgb(image: Any) -> Any:
    """Converts an image of any mode to RGB; transparency is dropped."""
    from PIL import Image

    if image.mode.startswith('I;16'):
        # Pillow would clip at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == 'P' and 'transparency' in image.info:
        # Straight to RGB, Pillow warns.
        image = image.convert('RGBA')
    return image.convert('RGB')
