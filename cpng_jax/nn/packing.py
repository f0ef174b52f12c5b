"""Spikes, and other small whole multiples of a unit, as bytes: what is kept of them for the backward pass."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cpng_jax.nn.scheduling import on_one_cpu
from cpng_jax.nn.surrogate import Array

# Spikes that are added up in one byte, at most.
_ADDED = 255


def packed(x: Array, unit: float = 1.0) -> Array:
    """Packs whole multiples of a unit, 0 to 255 times it.

    Args:
      x: the numbers, or booleans.
      unit: what they are multiples of.

    Returns:
      uint8, counted down from 255: XLA sees through a mere conversion and would keep floats.
    """
    return jnp.uint8(255) - (x if unit == 1 else x / unit).astype(jnp.uint8)


class Unpacked(NamedTuple):
    """Makes numbers of what is kept; a function that equals another one like it.

    Attributes:
      unit: that `packed` was given; None where numbers are kept as they are.
      dtype: of the numbers.
    """

    unit: float | None
    dtype: Any

    def __call__(self, kept: Array) -> Array:
        """Returns the numbers."""
        return kept if self.unit is None else (255 - kept.astype(self.dtype)) * jnp.asarray(self.unit, self.dtype)


def share_of_spikes(spikes: Array, per_channel: bool = False) -> Array:
    """The share of neurons, time steps and examples that spiked. No gradient flows through it.

    Args:
      spikes: 0 or 1, `[T, B, ...]`.
      per_channel: of each channel, the last axis, by itself.

    Returns:
      float32, a scalar, or `[C]` per channel.
    """
    spikes = jax.lax.stop_gradient(spikes)
    several = math.prod(spikes.shape[:2])
    many = next(n for n in range(min(several, _ADDED), 0, -1) if several % n == 0)
    if per_channel or many == 1 or not on_one_cpu(spikes):
        return jnp.mean(spikes, tuple(range(spikes.ndim - per_channel)), dtype=jnp.float32)
    # XLA:CPU would write floats down to add them up. Bytes are there already.
    counts = jnp.sum(spikes.reshape(many, -1).astype(jnp.uint8), 0, dtype=jnp.uint8)
    return jnp.mean(counts, dtype=jnp.float32) / many
