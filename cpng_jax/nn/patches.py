"""The gradient by a kernel as one matrix product, with a copy of what each output depends on: patches of the input."""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cpng_jax.nn import parts
from cpng_jax.nn.canonical import Window
from cpng_jax.nn.scheduling import room
from cpng_jax.nn.surrogate import Array, at_least_float32

# Numbers in a patch up to which all patches at once are as fast as a sum over parts of the examples: first layers.
_FEW = 64
# Channels, in and out, from which on copies cost less than is saved at a stride.
_CHANNELS = 32


def pays(kernel: Array, window: Window) -> bool:
    """Whether this way is as fast as any on a CPU.

    Args:
      kernel: `[K, L, C, features]`.
      window: how it goes over a map.

    Returns:
      True for few channels at stride 1, and where a CPU does all for many at others: of these, XLA's way takes twice as
      long.
    """
    if set(window.strides) == {1}:
        return math.prod(kernel.shape[:3]) <= _FEW
    return min(kernel.shape[2:]) >= _CHANNELS and jax.device_count() == 1


@functools.partial(jax.jit, static_argnames=('window', 'sizes', 'unpack'), inline=True)
def by_kernel(
    x: Array,
    d_y: Array,
    window: Window,
    sizes: tuple[int, ...],
    unpack: Callable[[Array], Array] = lambda x: x,
) -> Array:
    """The gradient of a convolution by its kernel.

    Args:
      x: its input, `[N, H, W, C]`.
      d_y: gradient of its output, `[N, H', W', features]`.
      window: how it goes over the input.
      sizes: height and width of the kernel, K and L.
      unpack: makes numbers of `x`, a part of the examples at a time.

    Returns:
      `[K, L, C, features]`, in at least float32.
    """
    height, width = d_y.shape[1:3]
    down, right = window.strides
    wide = at_least_float32(d_y.dtype)
    every = lambda start, many, stride: slice(start, start + stride * (many - 1) + 1, stride)

    def part(x: Array, d_y: Array) -> Array:
        x = jnp.pad(unpack(x), ((0, 0), *window.padding, (0, 0)))
        taps = itertools.product(*map(range, sizes))
        patches = jnp.concatenate([x[:, every(i, height, down), every(j, width, right)] for i, j in taps], -1)
        return jnp.tensordot(patches, d_y, ((0, 1, 2), (0, 1, 2)), preferred_element_type=wide)

    channels, features = x.shape[-1], d_y.shape[-1]
    rows = math.prod(sizes) * channels
    # Few channels go at once.
    many = 1 if rows <= _FEW else parts.count(len(x), rows * math.prod(d_y.shape[:3]) * wide.itemsize)
    products = parts.summed(part, many, room((rows, features), wide, d_y), x, d_y)
    return products.reshape(*sizes, channels, features)
