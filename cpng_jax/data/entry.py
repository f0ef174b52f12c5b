"""What a line of the table of data sets says, and groups of keys that several of them read."""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from cpng_jax.data.dataset import Dataset
from cpng_jax.runtime.config import Config

# Keys of `config.data`, next to those that every data set has.
IMAGES = ('crop_padding', 'cutout')
COLOUR = (*IMAGES, 'policy')
PHOTOGRAPHS = (*COLOUR, 'resize', 'image_size')
EVENTS = ('event_size', 'slicing', 'frame_scale', 'roll', 'time_steps')


class Kind(NamedTuple):
    """What reaches the network, without its values.

    Attributes:
      image_shape: `(H, W, C)` of an image, `(T, H, W, C)` of events.
      classes: their number.
    """

    image_shape: tuple[int, ...]
    classes: int


class Entry(NamedTuple):
    """A data set, as its file declares it.

    Attributes:
      load: opens it, from `config.data`.
      kind: says from `config.data` what it is to a network; None has it opened for that.
      keys: of `config.data` it reads, next to those that every data set has; None where nobody knows.
      prepare: makes it in a folder of data sets, for `python -m cpng_jax.data.prepare`; None where nothing has to be.
    """

    load: Callable[[Config], Dataset]
    kind: Callable[[Config], Kind] | None = None
    keys: tuple[str, ...] | None = None
    prepare: Callable[[pathlib.Path], None] | None = None

    @property
    def module(self) -> str:
        """Name of the module that opens it, within the package."""
        function = self.load.func if isinstance(self.load, functools.partial) else self.load
        return function.__module__.removeprefix('cpng_jax.')


def event_frames(classes: int) -> Callable[[Config], Kind]:
    """Makes the `kind` of square frames of events with both polarities.

    Args:
      classes: their number.

    Returns:
      The function for an `Entry`.
    """
    return lambda config: Kind((config.time_steps, config.event_size, config.event_size, 2), classes)


def photographs(classes: int) -> Callable[[Config], Kind]:
    """Makes the `kind` of photographs, which reach the network as colour images of one size.

    Args:
      classes: their number.

    Returns:
      The function for an `Entry`.
    """
    return lambda config: Kind((config.image_size, config.image_size, 3), classes)
