"""Data sets of event recordings that the user has as arrays."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cpng_jax.data.arrays import Arrays, from_arrays
from cpng_jax.data.dataset import Dataset
from cpng_jax.data.events import Events, cached_frames, units
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.paths import local

Recordings = tuple[Sequence[Any], Sequence[int] | np.ndarray]
"""Recordings `(x, y, t, p)`, read one after the other, and labels, integer `[N]`."""


def from_recordings(
    config: Config,
    train: Recordings,
    test: Recordings | None = None,
    *,
    sensor: tuple[int, int],
    cache: str,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Makes a data set of event recordings, whose events are counted in `time_steps` frames as `config.data` says.

    The longer edge of the frames is `event_size`, the other in proportion to the sensor. Frames are made at the first
    use and kept in a file: remove its folder where recordings have changed and number, labels, first and last have not.

    Args:
      config: `config.data`.
      train: recordings and their labels, integer `[N]` from 0 on. A recording is `(x, y, t, p)`, each `[E]` in the
        order of time: column from the left and row from the top, in pixels, microseconds, all integers; and polarity,
        above 0 where the pixel got brighter. An object that reads recording `i` when asked for `[i]` will do.
      test: the same; None tests on a fifth of each class, as `from_arrays` does.
      sensor: its height and width in pixels.
      cache: name of the folder in `config.data.dir` that frames are kept in.
      class_names: in the order of the labels; None names a class after its label.

    Returns:
      The `Dataset`; its images are counts of events, uint8 `[T, H, W, 2]`, OFF before ON, or with `frame_scale` 'max'
      what `events.frames` makes of them.

    Raises:
      ValueError: a recording or the labels are other ones.
      UserError: the frames are larger than the sensor, or cannot be written.
    """
    longest = max(sensor)
    if config.event_size > longest:
        raise UserError(f'config.data.event_size is {config.event_size}, expected at most the {longest} of the sensor.')
    height, width = (max(1, round(config.event_size * edge / longest)) for edge in sensor)
    folder = local(config.dir, 'config.data.dir') / cache

    def frames(split: str, recordings: Sequence[Any], labels: Sequence[int] | np.ndarray) -> Arrays:
        if not len(recordings) or len(recordings) != len(labels):
            raise ValueError(
                f'{split} has {len(recordings)} recordings and {len(labels)} labels, expected equally many.'
            )
        version = _version(recordings, labels, sensor)
        stored = cached_frames(
            folder / f'{split}-T{config.time_steps}-{config.slicing}-{height}x{width}-{version}.npy',
            len(recordings),
            lambda: _events(split, recordings, sensor),
            time_steps=config.time_steps,
            slicing=config.slicing,
            size=(height, width),
            sensor=sensor,
            scale=config.frame_scale,
        )
        return stored, np.asarray(labels)

    tested = None if test is None else frames('test', *test)
    dataset = from_arrays(config, frames('train', *train), tested, class_names=class_names)
    mean, std = units(config.frame_scale)
    return dataclasses.replace(dataset, mean=mean, std=std)


def _version(recordings: Sequence[Any], labels: Sequence[int] | np.ndarray, sensor: tuple[int, int]) -> str:
    """Tells recordings apart by what is cheap to read of many."""
    digest = hashlib.sha256(repr((len(recordings), *sensor)).encode())
    for values in (labels, *recordings[0], *recordings[len(recordings) - 1]):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:8]


def _events(split: str, recordings: Sequence[Any], sensor: tuple[int, int]) -> Iterator[Events]:
    for index in range(len(recordings)):
        yield _checked(f'recording {index} of {split}', recordings[index], sensor)


def _checked(name: str, recording: Any, sensor: tuple[int, int]) -> Events:
    if len(recording) != 4:
        raise ValueError(f'{name} has {len(recording)} parts, expected the four arrays (x, y, t, p).')
    x, y, t, p = (np.asarray(part) for part in recording)
    if len({part.shape for part in (x, y, t, p)}) > 1 or x.ndim != 1 or not len(x):
        shapes = ', '.join(str(list(part.shape)) for part in (x, y, t, p))
        raise ValueError(f'{name} has x, y, t, p of {shapes}, expected one length of at least 1.')
    for axis, part, edge in (('x', x, sensor[1]), ('y', y, sensor[0])):
        if part.dtype.kind not in 'iu' or part.min() < 0 or part.max() >= edge:
            raise ValueError(
                f'{name} has {axis} from {part.min()} to {part.max()} ({part.dtype}), expected integers from 0 to '
                f'{edge - 1} of the sensor.'
            )
    if t.dtype.kind not in 'iu':
        raise ValueError(f'{name} has times in {t.dtype}, expected integers: microseconds.')
    t = t.astype(np.int64)
    if (np.diff(t) < 0).any():
        raise ValueError(f'{name} goes back in time at event {int(np.argmax(np.diff(t) < 0)) + 1}: sort it by t.')
    return Events(x, y, (p > 0).astype(np.uint8), t)
