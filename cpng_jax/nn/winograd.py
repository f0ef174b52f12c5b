"""Convolution by a 3x3 kernel with a quarter of the multiplications: Winograd's minimal filtering F(4x4, 3x3).

A 4x4 tile of outputs depends on 6x6 inputs. Transformed, outputs are products of inputs and kernel at 36 points, each a
matrix product over channels, in place of 144 multiplications for each pair of channels. In one dimension, with inputs
d, kernel g and matrices of constants:

    y = A' [(G g) * (B' d)],    and backward    dg = G' [(A dy) * (B' d)]

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016. Their points are 0, 1, -1, 2, -2 and
infinity; these here lose a quarter as much to rounding in float32.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cpng_jax.nn import parts
from cpng_jax.nn.surrogate import Array

# Edge of a tile of outputs, of the inputs that it depends on, and of the kernel.
_TILE, _WINDOW, _KERNEL = 4, 6, 3
# Tiles from which on the products take longer than transforming the kernel, or its gradient.
_ENOUGH = 64


def _matrices(points: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A', G and B' (Cook and Toom's), `[4, 6]`, `[6, 3]`, `[6, 6]`, for these points and infinity."""
    others = [np.delete(points, i) for i in range(len(points))]
    scale = [np.prod(point - rest) for point, rest in zip(points, others, strict=True)]
    powers = np.vander(points, _TILE, increasing=True)
    outputs = np.column_stack([powers.T, np.eye(_TILE)[-1]])
    kernel = np.vstack([powers[:, :_KERNEL] / np.reshape(scale, (-1, 1)), np.eye(_KERNEL)[-1]])
    inputs = np.vstack([*(np.append(np.poly(rest)[::-1], 0) for rest in others), np.poly(points)[::-1]])
    return outputs, kernel, inputs


_OUTPUTS, _KERNELS, _INPUTS = _matrices((0, 0.75, -0.75, 1.5, -1.5))


def _both_ways(matrix: np.ndarray, arrays: Array) -> Array:
    """What a matrix `[n, m]` makes of arrays `[m * m, ...]` along H and along W: `[n * n, ...]`.

    One matrix product takes no longer than sums one by one, and is a tenth of the program.
    """
    return lax.dot_general(jnp.asarray(np.kron(matrix, matrix), arrays.dtype), arrays, (((1,), (0,)), ((), ())))


def _to_points(arrays: list[Array], axis: int) -> Array:
    """Stacks what B' makes of six arrays. Rows of points a and -a are the sum and the difference of two."""
    rows = [_sum(_INPUTS[0], arrays)]
    for a, minus_a in ((1, 2), (3, 4)):
        even, odd = (_sum((_INPUTS[a] + sign * _INPUTS[minus_a]) / 2, arrays) for sign in (1, -1))
        rows += [lax.add(even, odd), lax.sub(even, odd)]
    return _stacked([*rows, _sum(_INPUTS[5], arrays)], axis)


def _sum(factors: np.ndarray, arrays: list[Array]) -> Array:
    times = lambda array, factor: array if factor == 1 else lax.mul(array, float(factor))
    terms = [times(array, factor) for factor, array in zip(factors, arrays, strict=True) if factor]
    return functools.reduce(lax.add, terms)


def _stacked(rows: list[Array], axis: int) -> Array:
    """Has XLA compute each row once: fused with what follows, it would do so for every number that depends on it."""
    return lax.optimization_barrier(jnp.stack(rows, axis))


def _tiles(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many tiles cover the height and the width of a map, `[N, H, W, C]`."""
    return -(-shape[1] // _TILE), -(-shape[2] // _TILE)


def _windows(x: Array) -> Array:
    """B' d B of each window of 6x6 inputs, which overlap and reach over the edges: `[36, windows, C]`.

    Along H and then along W, in sums: a product would need a copy of them.
    """
    height, width = _tiles(x.shape)
    x = _to_whole_tiles(x, beyond=_KERNEL // 2)
    every = lambda array, start, count, axis: lax.slice_in_dim(
        array, start, start + _TILE * (count - 1) + 1, _TILE, axis
    )
    rows = _to_points([every(x, i, height, 1) for i in range(_WINDOW)], 0)
    both = _to_points([every(rows, j, width, 3) for j in range(_WINDOW)], 1)
    return both.reshape(_WINDOW**2, -1, x.shape[-1])


def _cotangents(d_y: Array) -> Array:
    """A dy A' of each tile of 4x4 gradients of outputs: `[36, tiles, features]`."""
    (height, width), features = _tiles(d_y.shape), d_y.shape[-1]
    tiles = _to_whole_tiles(d_y, beyond=0).reshape(-1, height, _TILE, width, _TILE, features)
    return _both_ways(_OUTPUTS.T, tiles.transpose(2, 4, 0, 1, 3, 5).reshape(_TILE**2, -1, features))


def _to_whole_tiles(x: Array, beyond: int) -> Array:
    """Adds zeros at the far edges until tiles are whole, and so many more around."""
    add = ((beyond, _TILE * tiles - edge + beyond) for tiles, edge in zip(_tiles(x.shape), x.shape[1:3], strict=True))
    return jnp.pad(x, ((0, 0), *add, (0, 0)))


def _outputs(products: Array, shape: tuple[int, ...]) -> Array:
    """A' m A of each tile, put together to maps of a shape `[N, H, W, features]`."""
    (height, width), features = _tiles(shape), shape[-1]
    y = _both_ways(_OUTPUTS, products).reshape(_TILE, _TILE, -1, height, width, features)
    y = y.transpose(2, 3, 0, 4, 1, 5).reshape(-1, height * _TILE, width * _TILE, features)
    return y[:, : shape[1], : shape[2]]


def pays(x: Array, kernel: Array, *, channels: int) -> bool:
    """Whether this way is the faster one on a CPU, of a 3x3 convolution with stride 1 and a pixel of zeros around.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[K, K, C, features]`.
      channels: from how many on transforming takes less than is saved, in and out.

    Returns:
      True only for 3x3 kernels and float32, on so many tiles that transforming the kernel does not count, and on maps
      that most of the tiles are full of.
    """
    examples, height, width, _ = x.shape
    tiles = math.prod(_tiles(x.shape))
    return (
        x.dtype == kernel.dtype == jnp.float32
        and kernel.shape[:2] == (_KERNEL, _KERNEL)
        and min(kernel.shape[2:]) >= channels
        and examples * tiles >= _ENOUGH
        and 2 * height * width > tiles * _TILE**2
    )


def _parts(x: Array, features: int) -> int:
    """Into how many parts of equal size the examples go, so that each stays in the caches."""
    return parts.count(len(x), _WINDOW**2 * len(x) * math.prod(_tiles(x.shape)) * (x.shape[-1] + features) * 4)


# Inline, jit leaves no mark in the program: it is traced once for all layers of a network that are alike.
@functools.partial(jax.jit, static_argnames=('unpack', 'transposed'), inline=True)
def convolve(
    x: Array, kernel: Array, unpack: Callable[[Array], Array] = lambda x: x, *, transposed: bool = False
) -> Array:
    """Convolves with stride 1 and a pixel of zeros around.

    Args:
      x: `[N, H, W, C]`, float32 or what `unpack` makes that of.
      kernel: `[3, 3, C, features]`.
      unpack: makes numbers of `x`, a part of the examples at a time.
      transposed: the gradient by the inputs instead: `x` is that of the outputs, `[N, H, W, features]`.

    Returns:
      `[N, H, W, features]`, or the gradient, `[N, H, W, C]`.
    """
    contracted, features = (2, kernel.shape[2]) if transposed else (1, kernel.shape[3])
    taps = _KERNELS[:, ::-1] if transposed else _KERNELS
    weights = _both_ways(taps, kernel.reshape(_KERNEL**2, *kernel.shape[2:]))

    def part(x: Array) -> Array:
        products = lax.dot_general(_windows(unpack(x)), weights, (((2,), (contracted,)), ((0,), (0,))))
        return _outputs(products, (*x.shape[:3], features))

    return parts.mapped(part, _parts(x, features), x)


@functools.partial(jax.jit, static_argnums=2, inline=True)
def by_kernel(x: Array, d_y: Array, unpack: Callable[[Array], Array] = lambda x: x) -> Array:
    """The gradient by the kernel of a convolution with stride 1 and a pixel of zeros around.

    Args:
      x: its input, `[N, H, W, C]`.
      d_y: gradient of its output, `[N, H, W, features]`, float32.
      unpack: makes numbers of `x`, a part of the examples at a time.

    Returns:
      `[3, 3, C, features]`.
    """

    def part(x: Array, d_y: Array) -> Array:
        return lax.dot_general(_windows(unpack(x)), _cotangents(d_y), (((1,), (1,)), ((0,), (0,))))

    products = parts.summed(part, _parts(x, d_y.shape[-1]), x, d_y)
    return _both_ways(_KERNELS.T, products).reshape(_KERNEL, _KERNEL, *products.shape[1:])
