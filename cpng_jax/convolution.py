"""Convolution as XLA does it, except where XLA on a CPU is many times slower than it could be."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cpng_jax.surrogate import Array

# Pixels from which on XLA:CPU gets slower, the more of them the gradient of a kernel sums over in one go; and parts
# at most, since each costs time to compile.
_PIXELS, _PARTS = 2048, 16

Convolution = Callable[[Array, Array], Array]


def convolve(x: Array, kernel: Array, strides: Sequence[int], padding: Any, **options: Any) -> Array:
    """Convolves as `jax.lax.conv_general_dilated` does, whose place it takes in `nn.Conv`.

    Args:
      x: `[N, H, W, C]`.
      kernel: square, `[K, K, C, features]`.
      strides: steps in H and W.
      padding: as of `conv_general_dilated`; K // 2 on each side where the map is smaller than the kernel.
      **options: as of `conv_general_dilated`.

    Returns:
      `[N, H', W', features]`.
    """
    # One object for custom_vjp, which wants what is not an array hashable.
    xla = functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    if jax.default_backend() == 'cpu' and set(strides) == {1}:
        if min(x.shape[1:3]) < kernel.shape[0]:
            return _by_taps(x, kernel)
        parts = _parts(x)
        if parts > 1 and kernel.shape[0] > 1:
            return _with_summed_gradient(x, kernel, parts, xla)
    return xla(x, kernel)


def _by_taps(x: Array, kernel: Array) -> Array:
    """Convolution with stride 1 and zeros around: each tap of the kernel meets some pixels, in a matrix product.

    XLA:CPU takes a hundred times as long where the map is smaller than the kernel; and the zeros are left out.
    """
    (height, width), reach = x.shape[1:3], kernel.shape[0] // 2
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.zeros((*x.shape[:3], kernel.shape[-1]), wide)
    for i, j in itertools.product(range(-reach, reach + 1), repeat=2):
        if abs(i) < height and abs(j) < width:
            here = slice(max(0, -i), height - max(0, i)), slice(max(0, -j), width - max(0, j))
            there = slice(max(0, i), height + min(0, i)), slice(max(0, j), width + min(0, j))
            product = jnp.matmul(x[:, *there], kernel[reach + i, reach + j], preferred_element_type=wide)
            y = y.at[:, *here].add(product)
    return y.astype(x.dtype)


def _parts(x: Array) -> int:
    """Into how many parts of equal size the examples go, so that none has too many pixels."""
    batch, height, width = x.shape[:3]
    wanted = min(_PARTS, batch * height * width // _PIXELS)
    return max(part for part in range(1, max(wanted, 1) + 1) if batch % part == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _with_summed_gradient(x: Array, kernel: Array, parts: int, xla: Convolution) -> Array:
    """Convolution with stride 1 whose gradient by the kernel is summed over parts of the examples."""
    del parts
    return xla(x, kernel)


def _forward(x: Array, kernel: Array, parts: int, xla: Convolution) -> tuple[Array, tuple[Array, Array]]:
    return _with_summed_gradient(x, kernel, parts, xla), (x, kernel)


def _backward(parts: int, xla: Convolution, residuals: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    (d_x,) = jax.vjp(lambda x: xla(x, kernel), x)[1](d_y)
    # Every part has examples of every device.
    xs, d_ys = (array.reshape(len(array) // parts, parts, *array.shape[1:]) for array in (x, d_y))
    d_kernel = jnp.zeros(kernel.shape, jnp.promote_types(kernel.dtype, jnp.float32))
    for part in range(parts):
        _, gradient = jax.vjp(lambda kernel, part=part: xla(xs[:, part], kernel), kernel)
        d_kernel += gradient(d_ys[:, part])[0]
    return d_x, d_kernel.astype(kernel.dtype)


_with_summed_gradient.defvjp(_forward, _backward)
