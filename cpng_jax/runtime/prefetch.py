"""Batches on the devices, one ahead of the step that works."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from cpng_jax.runtime import sharding
from cpng_jax.training.step import Batch


class Feed:
    """Sends batches to the devices and notes how long these had nothing to do for want of one.

    Attributes:
      waited: seconds so far; of a wait during which the devices became idle, all counts, so it is an upper bound.
    """

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], mesh: jax.sharding.Mesh) -> None:
        """Takes batches of numpy arrays, this process's share of each.

        Args:
          batches: from `setup.train_batches`.
          mesh: devices that share a batch.
        """
        self._batches, self._mesh = batches, mesh
        self.waited = 0.0

    def next(self, at_work: jax.Array | None = None) -> Batch:
        """Makes the next batch and starts its way to the devices.

        Args:
          at_work: an array that is ready when the devices have nothing left to do; None if they are idle already.

        Returns:
          Global arrays.
        """
        began = time.monotonic()
        batch = next(self._batches)
        if at_work is None or at_work.is_ready():  # pyright: ignore[reportAttributeAccessIssue]
            self.waited += time.monotonic() - began
        return sharding.put_batch(batch, self._mesh)


class Mark(NamedTuple):
    """A point of a run: the time in seconds of an arbitrary clock, the step, and what the feed had waited."""

    time: float
    step: int
    waited: float

    @classmethod
    def now(cls, step: int, feed: Feed) -> 'Mark':
        """Notes the point that a run has come to."""
        return cls(time.monotonic(), step, feed.waited)

    def since(self, before: 'Mark', batch_size: int) -> dict[str, float]:
        """Measures the way from another mark.

        Args:
          before: an earlier mark.
          batch_size: examples in a step.

        Returns:
          `seconds`, `images_per_second`, and `data_wait`, the share of the time, 0 to 1, that the devices had nothing
          to do for want of data.
        """
        seconds = max(self.time - before.time, 1e-9)
        images = (self.step - before.step) * batch_size
        return {
            'seconds': seconds,
            'images_per_second': images / seconds,
            'data_wait': (self.waited - before.waited) / seconds,
        }
