"""Batches on the devices, one ahead of the training step, and the throughput of training."""

import time
from collections.abc import Iterator

import jax
import numpy as np

from cpng_jax.runtime import sharding


class Prefetcher:
    """Sends batches to the devices and sums how long these were idle for want of one.

    Attributes:
      waited: seconds so far. A wait during which the devices became idle counts as a whole, so it is an upper bound.
    """

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], mesh: jax.sharding.Mesh) -> None:
        """Takes the source of batches.

        Args:
          batches: numpy arrays `[B, ...]`, B being this process's share of a batch.
          mesh: devices that share a batch.
        """
        self._batches, self._mesh = batches, mesh
        self.waited = 0.0

    def next(self, pending: jax.Array | None = None) -> dict[str, jax.Array]:
        """Takes the next batch from the source and starts its transfer to the devices.

        Args:
          pending: a result of the last step, not ready while the devices compute; None if they are idle already.

        Returns:
          Global arrays, split over the devices.
        """
        start = time.monotonic()
        batch = next(self._batches)
        if pending is None or pending.is_ready():  # pyright: ignore[reportAttributeAccessIssue]
            self.waited += time.monotonic() - start
        return sharding.put_batch(batch, self._mesh)


class Timer:
    """Measures the throughput of training since its start or last reset."""

    def __init__(self, prefetcher: Prefetcher, batch_size: int, step: int) -> None:
        """Starts the timer.

        Args:
          prefetcher: whose waiting time counts.
          batch_size: examples in a step.
          step: steps made.
        """
        self._prefetcher, self._batch_size = prefetcher, batch_size
        self.reset(step)

    def reset(self, step: int) -> None:
        """Starts anew at a step."""
        self._step, self._time, self._waited = step, time.monotonic(), self._prefetcher.waited

    def throughput(self, step: int) -> dict[str, float]:
        """Measures the steps made since the start.

        Args:
          step: steps made.

        Returns:
          `seconds`, `images_per_second`, and `data_wait`, the share of the time, 0 to 1, that the devices were idle
          for want of data.
        """
        seconds = max(time.monotonic() - self._time, 1e-9)  # a clock may stand still
        return {
            'seconds': seconds,
            'images_per_second': (step - self._step) * self._batch_size / seconds,
            'data_wait': (self._prefetcher.waited - self._waited) / seconds,
        }
