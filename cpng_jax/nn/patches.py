"""Convolutions as one matrix product, with a copy of what each output depends on: patches of the input."""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cpng_jax.nn import parts
from cpng_jax.nn.canonical import Window
from cpng_jax.nn.surrogate import Array, at_least_float32

# Numbers in a patch up to which all patches at once are as fast as a sum over parts of the examples: first layers.
_FEW = 64
# Channels, in and out, from which on copies cost less than is saved at a stride.
_CHANNELS = 32
# Outputs for each channel up to which a convolution takes less time so than XLA's, which copies its kernel.
_OUTPUTS_A_CHANNEL = 2


def pays(outputs: int, kernel: Array) -> bool:
    """Whether this way is the faster one on a CPU, of a convolution and its gradient by the input.

    Args:
      outputs: pixels of all examples.
      kernel: `[K, L, C, features]`.

    Returns:
      True for few pixels of many channels.
    """
    return outputs <= _OUTPUTS_A_CHANNEL * min(kernel.shape[2:])


def convolve(x: Array, kernel: Array, window: Window) -> Array:
    """Convolves, in a way that JAX differentiates into matrix products.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[K, L, C, features]`.
      window: how.

    Returns:
      `[N, H', W', features]`.
    """
    sizes, features = kernel.shape[:2], kernel.shape[-1]
    wide = at_least_float32(x.dtype)
    patches = _patches(x, window, sizes)
    return jnp.matmul(patches, kernel.reshape(-1, features), preferred_element_type=wide).astype(x.dtype)


def pays_by_kernel(kernel: Array, window: Window) -> bool:
    """Whether this way is as fast as any on a CPU, of a gradient by the kernel.

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
    wide = at_least_float32(d_y.dtype)

    def part(x: Array, d_y: Array) -> Array:
        patches = _patches(unpack(x), window, sizes)
        return jnp.tensordot(patches, d_y, ((0, 1, 2), (0, 1, 2)), preferred_element_type=wide)

    channels, features = x.shape[-1], d_y.shape[-1]
    rows = math.prod(sizes) * channels
    # Few channels go at once.
    many = 1 if rows <= _FEW else parts.count(len(x), rows * math.prod(d_y.shape[:3]) * wide.itemsize)
    products = parts.summed(part, many, x, d_y)
    return products.reshape(*sizes, channels, features)


def _patches(x: Array, window: Window, sizes: tuple[int, ...]) -> Array:
    """What each output depends on, `[N, H', W', K * L * C]`."""
    x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))

    def every(tap: int, edge: int, size: int, stride: int) -> slice:
        return slice(tap, tap + edge - size + 1, stride)

    def met(*taps: int) -> Array:
        return x[:, *map(every, taps, x.shape[1:3], sizes, window.strides)]

    return jnp.concatenate([met(*taps) for taps in itertools.product(*map(range, sizes))], -1)
