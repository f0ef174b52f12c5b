"""Streams of events, their integration to frames, and random changes of frames."""

import os
import pathlib
import uuid
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from cpng_jax.data.dataset import Augmentation, Example
from cpng_jax.runtime import signals
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError

SLICINGS = ('count', 'time')
SCALES = ('none', 'max')


class Events(NamedTuple):
    """A recording of an event camera, in the order of time.

    Attributes:
      x: column from the left, integer `[N]`.
      y: row from the top, integer `[N]`.
      polarity: 1 where the pixel got brighter (ON), 0 where it got darker (OFF), uint8 `[N]`.
      t: microseconds, int64 `[N]`.
    """

    x: np.ndarray
    y: np.ndarray
    polarity: np.ndarray
    t: np.ndarray


def frames(
    events: Events,
    *,
    time_steps: int,
    slicing: str,
    size: tuple[int, int],
    sensor: tuple[int, int],
    scale: str = 'none',
) -> np.ndarray:
    """Counts the events of each time slice, pixel and polarity.

    Args:
      events: the recording, at least one event.
      time_steps: number of slices T.
      slicing: 'count' for slices of N // T events each, what is left over going to the last one (Fang et al. 2021,
        "Incorporating learnable membrane time constant", and SpikingJelly's split by number); 'time' for slices of
        equal duration.
      size: height and width H and W of the frames in pixels.
      sensor: height and width of the sensor in pixels, at least `size`.
      scale: 'none' for counts; 'max' for 255 times their share in the largest of a slice's pixels of the sensor, of
        both polarities, rounded down, then brought to `size` by Pillow's bilinear reduction, as the code of TET does.
        That has a slice as grey with transparency, which weighs one polarity by the other: not done here, each
        polarity is an image of its own.

    Returns:
      Counts, uint8 `[T, H, W, 2]`, OFF before ON; a count above 255 is stored as 255. Or those shares.

    Raises:
      ValueError: there are no events, `slicing` or `scale` has no such value, or the frames are larger than the sensor.
    """
    if not len(events.t):
        raise ValueError('events hold no event, expected at least one.')
    if slicing not in SLICINGS:
        raise ValueError(f'slicing is {slicing!r}, expected one of {", ".join(SLICINGS)}.')
    if scale not in SCALES:
        raise ValueError(f'scale is {scale!r}, expected one of {", ".join(SCALES)}.')
    (height, width), (rows, columns) = size, sensor
    if height > rows or width > columns:
        raise ValueError(f'size is {height} x {width}, expected at most the {rows} x {columns} pixels of the sensor.')
    if scale == 'max':
        height, width = sensor
    if slicing == 'count':
        step = len(events.t) // time_steps
        # Fewer events than slices: each share is empty, and all that is left over goes to the last slice.
        slices = np.minimum(np.arange(len(events.t)) // step, time_steps - 1) if step else time_steps - 1
    else:
        elapsed = events.t - events.t[0]
        slices = elapsed * time_steps // (elapsed[-1] + 1)
    # Each event falls into the pixel of the small frame that covers its place. This keeps every event, and its count
    # an integer, whereas resampling an image of counts would blur them and lose those between the samples. With 128
    # to 48 a pixel covers 2 or 3 pixels of the sensor in each direction.
    column = events.x.astype(np.int64) * width // columns
    row = events.y.astype(np.int64) * height // rows
    cell = ((slices * height + row) * width + column) * 2 + events.polarity
    counts = np.bincount(cell, minlength=time_steps * height * width * 2)
    counts = counts.reshape(time_steps, height, width, 2)
    return _shares_of_the_largest(counts, size) if scale == 'max' else np.minimum(counts, 255).astype(np.uint8)


def _shares_of_the_largest(counts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # A slice without events stays empty.
    shares = (255 * counts // np.maximum(counts.max(axis=(1, 2, 3), keepdims=True), 1)).astype(np.uint8)
    if shares.shape[1:3] == size:
        return shares
    from PIL import Image

    reduced = np.empty((len(shares), *size, 2), np.uint8)
    for step, polarity in np.ndindex(len(shares), 2):
        image = Image.fromarray(shares[step, ..., polarity])
        reduced[step, ..., polarity] = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return reduced


def units(scale: str) -> tuple[np.ndarray, np.ndarray]:
    """What frames are normalised by: the network sees counts as they are, or shares of the largest, 0 to 1.

    Args:
      scale: as for `frames`.

    Returns:
      `(mean, std)` of a `Dataset`, float32 `[2]`.
    """
    return np.zeros(2, np.float32), np.full(2, 1 if scale == 'max' else 1 / 255, np.float32)


def flip_and_roll(frames: np.ndarray, rng: np.random.Generator, *, flip: bool, roll: int) -> np.ndarray:
    """Mirrors left and right with probability 1/2, then shifts in a circle, all slices alike.

    That is what the code of TET does (Deng et al. 2022, "Temporal efficient training of spiking neural network").

    Args:
      frames: `[T, H, W, C]`.
      rng: source of the choice and of the shift.
      flip: whether to mirror at all.
      roll: the largest shift in pixels, in each direction along both axes; 0 for none.

    Returns:
      `[T, H, W, C]`.
    """
    if flip and rng.integers(2):
        frames = frames[:, :, ::-1]
    if roll:
        down, right = rng.integers(-roll, roll, size=2, endpoint=True)
        frames = np.roll(frames, (down, right), axis=(1, 2))
    return frames


def random_shift(config: Config) -> Augmentation:
    """Makes the augmentation of frames that `config.data` describes: flip and roll.

    Args:
      config: `config.data`.

    Returns:
      The augmentation.
    """
    flip, roll = config.flip, config.roll

    def augment(example: Example, rng: np.random.Generator) -> Example:
        return {**example, 'image': flip_and_roll(example['image'], rng, flip=flip, roll=roll)}

    return augment


def cached_frames(
    path: pathlib.Path,
    count: int,
    recordings: Callable[[], Iterable[Events]],
    *,
    time_steps: int,
    slicing: str,
    size: tuple[int, int],
    sensor: tuple[int, int],
    scale: str = 'none',
) -> np.ndarray:
    """Opens the frames of all recordings, which are integrated once and kept in a file.

    Args:
      path: the file, `.npy`; its name tells apart whatever the frames depend on but their scale, which is added.
      count: number of recordings.
      recordings: gives them, one after the other; called only if there is no such file yet.
      time_steps: as for `frames`, like those that follow.
      slicing: see there.
      size: see there.
      sensor: see there.
      scale: see there.

    Returns:
      Read from the file as needed, not to be written to: uint8 `[count, T, H, W, 2]`.

    Raises:
      UserError: the file cannot be written.
    """
    shape = (count, time_steps, *size, 2)
    path = path if scale == 'none' else path.with_stem(f'{path.stem}-{scale}')
    stored = _open(path, shape)
    if stored is not None:
        return stored
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Processes that start together each write a file of their own; the last one to finish leaves its file.
        temporary = path.with_name(f'{path.stem}.{uuid.uuid4().hex}.tmp')
        with signals.temporary(temporary):
            with temporary.open('xb') as file:
                np.lib.format.write_array_header_1_0(file, {'descr': '|u1', 'fortran_order': False, 'shape': shape})
                how = {'time_steps': time_steps, 'slicing': slicing, 'size': size, 'sensor': sensor, 'scale': scale}
                for events in recordings():
                    file.write(frames(events, **how).tobytes())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise UserError(f'Cannot write the event frames to {path}: {error.strerror}.') from error
    stored = _open(path, shape)
    if stored is None:
        raise ValueError(f'{path} was written with another number of recordings than the {count} announced.')
    return stored


def _open(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns what a file holds, or None if it is absent, damaged or something else: it can be made again."""
    try:
        stored = np.load(path, mmap_mode='r')
    except (FileNotFoundError, NotADirectoryError, ValueError, EOFError):
        return None
    except OSError as error:
        raise UserError(f'Cannot read the event frames in {path}: {error.strerror}.') from error
    return stored if stored.shape == shape and stored.dtype == np.uint8 else None
