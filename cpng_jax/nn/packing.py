"""Spikes, and other small whole multiples of a unit, as bytes: what is kept of them for the backward pass."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cpng_jax.nn.scheduling import afresh
from cpng_jax.nn.surrogate import Array


def packed(x: Array, unit: float = 1.0) -> Array:
    """Packs whole multiples of a unit, 0 to 255 times it.

    Args:
      x: the numbers, or booleans.
      unit: what they are multiples of.

    Returns:
      uint8, counted down from 255: XLA sees through a mere conversion and would keep floats.
    """
    return jnp.uint8(255) - (x if unit == 1 else x / unit).astype(jnp.uint8)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def in_bytes(x: Array, unit: float | None) -> Array:
    """Hands an array on `afresh`, in bytes, if there is a unit: what is computed again needs no more to be kept."""
    return Unpacked(unit, x.dtype)(afresh(x if unit is None else packed(x, unit)))


in_bytes.defvjp(lambda x, unit: (in_bytes(x, unit), None), lambda unit, _, d_x: (d_x,))


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
