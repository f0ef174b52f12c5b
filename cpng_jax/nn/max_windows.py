"""The greatest of each window of a map, in a form that XLA makes good loops of on a CPU.

Its own gradient of `jax.lax.reduce_window` takes nine times as long there and four index arrays of the map's size. Here
a byte for each window says which of its pixels was the greatest, and nothing else is kept.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from cpng_jax.nn.scheduling import apart
from cpng_jax.nn.surrogate import Array, at_least_float32

# Edge of a window, whose pixels a byte can number.
LARGEST = 15


def max_of_windows(x: Array, window: int, stride: int) -> Array:
    """Takes the maximum over square windows, padded so that every pixel has one about it.

    Args:
      x: `[N, H, W, C]`, floating.
      window: edge of a window, odd, at most `LARGEST`.
      stride: step from one window to the next.

    Returns:
      `[N, ceil(H / stride), ceil(W / stride), C]`. The gradient goes to the first of the greatest, row by row.
    """
    return _max_pool(x, window, stride, x.shape[1:3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, window: int, stride: int, size: tuple[int, int]) -> Array:
    return functools.reduce(jnp.maximum, _pixels(x, window, stride))


def _pixels(x: Array, window: int, stride: int) -> list[Array]:
    """One pixel of each window after another, row by row: `window**2` arrays of the shape of the result."""
    reach = window // 2
    height, width = (-(-edge // stride) for edge in x.shape[1:3])
    beyond = (reach, reach + stride)  # more than is read
    x = jnp.pad(x, ((0, 0), beyond, beyond, (0, 0)), constant_values=-jnp.inf)
    every = lambda start, count: slice(start, start + stride * (count - 1) + 1, stride)
    return [x[:, every(i, height), every(j, width)] for i in range(window) for j in range(window)]


@functools.partial(apart, static=(1, 2, 3))
def _forward(x: Array, window: int, stride: int, size: tuple[int, int]) -> tuple[Array, Array]:
    del size
    first, *others = _pixels(x, window, stride)
    greatest, which = first, jnp.zeros(first.shape, jnp.uint8)
    for number, pixel in enumerate(others, 1):
        which = jnp.where(pixel > greatest, jnp.uint8(number), which)
        greatest = jnp.maximum(greatest, pixel)  # hands NaN on, which is greater than nothing
    return greatest, which


def _backward(window: int, stride: int, size: tuple[int, int], which: Array, d_y: Array) -> tuple[Array]:
    """Adds up what each pixel is given, in blocks of `stride` x `stride` pixels, all pixels of one place at a time."""
    reach = window // 2
    count, height, width, channels = d_y.shape
    rows, columns = (-(-(edge + reach) // stride) for edge in (size[0] + reach, size[1] + reach))
    wide = d_y.astype(at_least_float32(d_y.dtype))

    def of_place(a: int, b: int) -> Any:
        total = jnp.zeros((count, rows, columns, channels), wide.dtype)
        for i in range(a, window, stride):
            for j in range(b, window, stride):
                given = jnp.where(which == i * window + j, wide, 0)
                down, right = i // stride, j // stride
                beyond = (down, rows - height - down), (right, columns - width - right)
                total += jnp.pad(given, ((0, 0), *beyond, (0, 0)))
        return total

    places = [jnp.stack([of_place(a, b) for b in range(stride)], axis=3) for a in range(stride)]
    padded = jnp.stack(places, axis=2).reshape(count, rows * stride, columns * stride, channels)
    return (padded[:, reach : reach + size[0], reach : reach + size[1]].astype(d_y.dtype),)


_max_pool.defvjp(_forward, _backward)
