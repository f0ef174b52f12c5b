"""Simulated event recordings of scikit-learn's digits: a data set of events that needs no download.

Nothing here was filmed. Each scan is moved along a closed triangle before a modelled event camera, as real displays
were for N-MNIST (Orchard et al. 2015, "Converting static image datasets to spiking neuromorphic datasets using
saccades") and for CIFAR10-DVS (Li et al. 2017, "CIFAR10-DVS: an event-stream dataset for object classification").
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cpng_jax.data import digits
from cpng_jax.data.arrays import from_arrays
from cpng_jax.data.dataset import Dataset
from cpng_jax.data.entry import EVENTS, Entry, event_frames
from cpng_jax.data.events import Events, cached_frames, units
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.paths import local

# Pixels in each direction, of which fewer see nothing of some digits.
_SMALLEST = 4


class Camera(NamedTuple):
    """The modelled camera and the movement before it.

    Attributes:
      contrast: change of the logarithm of the intensity that makes an event.
      mismatch: standard deviation of that threshold over the pixels, as a share of it.
      dark: intensity of a black pixel, white being 1 more; it bounds the logarithm.
      path: corners of the triangle, (down, right) in pixels of the scan; the last movement returns to the first.
      saccade: microseconds from one corner to the next.
      micro_steps: of each movement; between them the logarithm of the intensity is taken as linear in time.
      seed: of the mismatch, which belongs to the camera and is the same in all recordings.
    """

    contrast: float = 0.25
    mismatch: float = 0.03
    dark: float = 0.1
    path: tuple[tuple[float, float], ...] = ((-0.5, -0.5), (0.5, 0.0), (-0.5, 0.5))
    saccade: int = 100_000
    micro_steps: int = 10
    seed: int = 0


def load(config: Config) -> Dataset:
    """Opens the recordings as frames, split as the digits are; they are simulated at the first use and then kept.

    Args:
      config: `config.data`; the sensor has `event_size` pixels in each direction.

    Returns:
      The `Dataset`.

    Raises:
      UserError: scikit-learn is not installed, the sensor is too small, or `config.dir` cannot be written to.
    """
    if config.event_size < _SMALLEST:
        raise UserError(
            f'config.data.event_size is {config.event_size}, expected at least {_SMALLEST}: a smaller sensor records '
            'nothing of some digits.'
        )
    images, labels = digits.scans()
    camera, size = Camera(), config.event_size
    version = hashlib.sha256(repr(camera).encode()).hexdigest()[:8]
    name = f'frames-T{config.time_steps}-{config.slicing}-{size}-{version}.npy'
    stored = cached_frames(
        local(config.dir, 'config.data.dir') / 'digits_events' / name,
        len(images),
        lambda: recordings(images[..., 0] / 255, size, camera),
        time_steps=config.time_steps,
        slicing=config.slicing,
        size=(size, size),
        sensor=(size, size),
        scale=config.frame_scale,
    )
    mean, std = units(config.frame_scale)
    return dataclasses.replace(from_arrays(config, (stored, labels)), mean=mean, std=std)


def recordings(images: np.ndarray, size: int, camera: Camera) -> Iterator[Events]:
    """Simulates what the camera records of each image.

    Args:
      images: intensities from 0 to 1, `[N, E, E]`; black lies around them.
      size: edge of the sensor in pixels.
      camera: the camera and the movement.

    Yields:
      The `Events` of each image.
    """
    corners = np.array([*camera.path, camera.path[0]])
    steps = np.arange(camera.micro_steps * len(camera.path) + 1)
    down, right = (np.interp(steps / camera.micro_steps, np.arange(len(corners)), column) for column in corners.T)
    rows, columns = (_interpolation(images.shape[1], size, shift) for shift in (down, right))
    times = steps * (camera.saccade // camera.micro_steps)
    noise = np.random.default_rng(camera.seed).standard_normal((size, size))
    contrast = camera.contrast * np.maximum(1 + camera.mismatch * noise, 0.5)
    for image in images:
        yield simulate(np.log(rows @ image @ columns.swapaxes(1, 2) + camera.dark), times, contrast)


def simulate(log_intensity: np.ndarray, times: np.ndarray, contrast: np.ndarray | float) -> Events:
    """Makes the events of a pixel that fires whenever its log intensity has moved by a threshold since its last event.

    That is the ideal pixel of Lichtsteiner et al. 2008, "A 128 x 128 120 dB 15 us latency asynchronous temporal
    contrast vision sensor": without noise, dead time or leak. The reference is the first picture.

    Args:
      log_intensity: at the given times, linear in between, `[M, H, W]`.
      times: microseconds, increasing, integer `[M]`.
      contrast: the threshold, above 0, one for all pixels or `[H, W]`.

    Returns:
      The `Events`, times rounded to microseconds.
    """
    level = (log_intensity - log_intensity[0]) / contrast
    # The last threshold passed, in whole thresholds. It stays until the level is a whole threshold away from it.
    passed = np.empty(level.shape, np.int64)
    passed[0] = 0
    for step in range(1, len(level)):
        passed[step] = np.clip(passed[step - 1], np.floor(level[step]), np.ceil(level[step]))
    change = np.diff(passed, axis=0)
    counts = np.abs(change).reshape(-1)
    step, y, x = (np.repeat(index.reshape(-1), counts) for index in np.indices(change.shape))
    # The 1st, 2nd, ... threshold that a pixel passes within a step.
    nth = np.arange(len(step)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    sign = np.sign(change[step, y, x])
    start, end = level[step, y, x], level[step + 1, y, x]
    fraction = (passed[step, y, x] + sign * nth - start) / (end - start)
    t = np.round(times[step] + fraction * (times[step + 1] - times[step])).astype(np.int64)
    order = np.argsort(t, kind='stable')
    return Events(x[order], y[order], (sign > 0).astype(np.uint8)[order], t[order])


def _interpolation(edge: int, size: int, shifts: np.ndarray) -> np.ndarray:
    """Makes the matrices that enlarge a line of pixels linearly and shift it; zeros lie around the line.

    Args:
      edge: pixels before.
      size: pixels after.
      shifts: in pixels before, `[M]`.

    Returns:
      `[M, size, edge]`.
    """
    centres = (np.arange(size) + 0.5) * edge / size - 0.5 - shifts[:, None]
    return np.maximum(0, 1 - np.abs(centres[..., None] - np.arange(edge)))


ENTRY = Entry(load, event_frames(10), ('dir', *EVENTS))
