"""XLA's convolution, and its gradients as convolutions of the same layout, the one that XLA on a CPU has fast code for.

What JAX makes of the gradients are convolutions with other dimensions in the place of examples and channels. XLA:CPU
puts these into order, but not within a loop or a branch: there the gradient by a kernel took a hundred times as long.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from cpng_jax.nn import parts
from cpng_jax.nn.surrogate import Array

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')
# Of H and W each.
Pairs = tuple[tuple[int, int], tuple[int, int]]


class Window(NamedTuple):
    """How a kernel goes over a map, hashable.

    Attributes:
      strides: steps in H and W.
      padding: zeros before and after, in H and W.
      precision: as `jax.lax.conv_general_dilated` takes it.
    """

    strides: tuple[int, int]
    padding: Pairs
    precision: Any = None

    def outputs(self, x: Array, kernel: Array) -> tuple[int, int]:
        """Height and width of what a kernel `[K, L, C, features]` makes of a map `[N, H, W, C]`."""
        edges = zip(x.shape[1:3], kernel.shape[:2], self.padding, self.strides, strict=True)
        height, width = ((edge + sum(padding) - size) // stride + 1 for edge, size, padding, stride in edges)
        return height, width


def convolve(x: Array, kernel: Array, window: Window, unpack: Callable[[Array], Array] = lambda x: x) -> Array:
    """Convolves.

    Args:
      x: `[N, H, W, C]`, or what `unpack` makes that of.
      kernel: `[K, L, C, features]`.
      window: how.
      unpack: makes numbers of `x`, a part of the examples at a time.

    Returns:
      `[N, H', W', features]`.
    """
    part = lambda x: _convolve(unpack(x), kernel, window.padding, window, strides=window.strides)
    return _in_parts(part, x, (len(x), *window.outputs(x, kernel), kernel.shape[-1]), kernel)


def by_input(d_y: Array, kernel: Array, window: Window, edges: tuple[int, ...]) -> Array:
    """The gradient of a convolution by its input: with the kernel turned round, of gradients set apart by the strides.

    Args:
      d_y: gradient by the outputs, `[N, H', W', features]`.
      kernel: `[K, L, C, features]`.
      window: how they were made.
      edges: H and W.

    Returns:
      `[N, H, W, C]`.
    """
    sizes, apart = kernel.shape[:2], _apart(d_y, window)
    before = [size - 1 - begin for size, (begin, _) in zip(sizes, window.padding, strict=True)]
    padding = _reaching(before, [edge + size - 1 for edge, size in zip(edges, sizes, strict=True)], apart)
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    part = lambda d_y: _convolve(d_y, turned, padding, window, set_apart=window.strides)
    return _in_parts(part, d_y, (len(d_y), *edges, kernel.shape[2]), kernel)


def _in_parts(function: Callable[[Array], Array], x: Array, shape: tuple[int, ...], kernel: Array) -> Array:
    """Of so many examples at a time that inputs and outputs stay in the caches."""
    many = parts.count(len(x), (x.size + math.prod(shape)) * kernel.dtype.itemsize)
    return parts.mapped(function, many, x)


def by_kernel(x: Array, d_y: Array, window: Window, sizes: tuple[int, ...]) -> Array:
    """The gradient of a convolution by its kernel: of inputs by gradients set apart, with examples as channels.

    Args:
      x: `[N, H, W, C]`.
      d_y: gradient by the outputs, `[N, H', W', features]`.
      window: how they were made.
      sizes: K and L.

    Returns:
      `[K, L, C, features]`.
    """
    needed = [size + apart - 1 for size, apart in zip(sizes, _apart(d_y, window), strict=True)]
    padding = _reaching([begin for begin, _ in window.padding], needed, x.shape[1:3])
    x, kernel = x.transpose(3, 1, 2, 0), d_y.transpose(1, 2, 0, 3)
    return _convolve(x, kernel, padding, window, kernel_apart=window.strides).transpose(1, 2, 0, 3)


def _apart(d_y: Array, window: Window) -> list[int]:
    """Height and width of outputs that are set apart by the strides."""
    return [stride * (edge - 1) + 1 for edge, stride in zip(d_y.shape[1:3], window.strides, strict=True)]


def _reaching(before: list[int], needed: list[int], edges: Any) -> Pairs:
    """So much padding before, and after it what is missing to what is needed; less than none cuts off."""
    height, width = ((begin, need - edge - begin) for begin, need, edge in zip(before, needed, edges, strict=True))
    return height, width


def _convolve(
    x: Array,
    kernel: Array,
    padding: Pairs,
    window: Window,
    *,
    strides: tuple[int, int] = (1, 1),
    set_apart: tuple[int, int] = (1, 1),
    kernel_apart: tuple[int, int] = (1, 1),
) -> Array:
    return lax.conv_general_dilated(
        jnp.asarray(x), kernel, strides, padding, set_apart, kernel_apart, _LAYOUT, precision=window.precision
    )
