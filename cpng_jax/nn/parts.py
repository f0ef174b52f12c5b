"""Examples in parts, so that what is made of one stays in the caches of a CPU."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from cpng_jax.nn.surrogate import Array
from cpng_jax.nn.varying import varying_alike

# Bytes that may be made of a part.
_CACHED = 16 * 2**20


def count(examples: int, size: int) -> int:
    """Into how many parts of equal size examples go.

    Args:
      examples: N.
      size: bytes that are made of all of them.

    Returns:
      A divisor of N.
    """
    if jax.device_count() > 1:  # Devices share the examples, and would have to be asked for each part.
        return 1
    small_enough = (n for n in range(1, examples) if examples % n == 0 and size <= n * _CACHED)
    return next(small_enough, examples)


def split(parts: int, x: Array) -> Array:
    """Reshapes `[N, ...]` to `[parts, N / parts, ...]`."""
    return x.reshape(parts, len(x) // parts, *x.shape[1:])


def mapped(function: Callable[[Array], Array], parts: int, x: Array) -> Array:
    """Puts together what a function makes of each part.

    Args:
      function: takes a part of `x`.
      parts: see `count`.
      x: `[N, ...]`.

    Returns:
      What the function would make of `x`.
    """
    if parts == 1:
        return function(x)
    y = lax.map(function, split(parts, x))
    return y.reshape(len(x), *y.shape[2:])


def summed(function: Callable[..., Array], parts: int, *arrays: Array) -> Array:
    """Adds up what a function makes of each part.

    Args:
      function: takes a part of each array.
      parts: see `count`.
      *arrays: `[N, ...]`.

    Returns:
      The sum.
    """
    if parts == 1:
        return function(*arrays)
    of_parts = [split(parts, array) for array in arrays]
    of_part = jax.eval_shape(function, *(array[0] for array in of_parts))
    # Of the type that a scan asks for: that of what it adds, also inside `jax.shard_map`.
    start, _ = varying_alike((jnp.zeros(of_part.shape, of_part.dtype), of_parts))
    return lax.scan(lambda total, now: (jnp.add(total, function(*now)), None), start, of_parts)[0]
