"""Convolution as XLA does it, with inputs kept as bytes, and ways round where XLA on a CPU is many times too slow."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cpng_jax.nn import winograd
from cpng_jax.nn.packing import Unpacked, packed
from cpng_jax.nn.scheduling import after, apart
from cpng_jax.nn.surrogate import Array, at_least_float32
from cpng_jax.nn.varying import on_cpu, varying_alike

# Pixels that the gradient of a kernel sums over in one go, since with more of them XLA:CPU falls out of its caches; and
# parts at most, since each is a convolution of its own that costs time to compile.
_PIXELS, _PARTS = 2048, 16
# Numbers that an output depends on, up to which that gradient is a product with a copy of them all instead: of a first
# layer, as fast as in parts, and once.
_FEW = 64


def convolve(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any, *, unit: float | None = None, **options: Any
) -> Array:
    """Convolves in the place of `jax.lax.conv_general_dilated`, which `nn.Conv` would take.

    The result is the same; but on a CPU some float32 layers differ by up to 6e-6 of the largest value.

    Args:
      x: `[N, H, W, C]`.
      kernel: square, `[K, K, C, features]`.
      strides: steps in H and W.
      padding: pairs for H and W, or a word, that `conv_general_dilated` knows.
      unit: says that `x` holds whole multiples of this, 0 to 255 times it: it is then kept for the backward pass as one
        byte, without loss. 1 for spikes.
      **options: what else `nn.Conv` hands to `conv_general_dilated`: order of dimensions, dilations, groups, precision.

    Returns:
      `[N, H', W', features]`.
    """
    # Hashable, for custom_vjp, which takes whatever is not an array that way.
    way = _Way(
        functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options), unit
    )
    # The ways round are written for what most layers are; elsewhere what is left out is speed alone.
    if on_cpu(x) and _is_plain(x, kernel, strides, padding, options):
        if kernel.shape[0] == 1:
            way = way._replace(directly=functools.partial(_pointwise, strides=tuple(strides)))
        elif set(strides) == {1}:
            parts = _parts(x)
            way = way._replace(
                directly=_by_taps if min(x.shape[1:3]) < kernel.shape[0] else way.directly,
                parts=parts,
                patches=parts > 1 and math.prod(kernel.shape[:3]) <= _FEW,
                minimal=winograd.pays(x, kernel, channels=64),
                minimal_by_kernel=winograd.pays(x, kernel, channels=32),
            )
    if way == _Way(way.directly, None):
        return way.directly(x, kernel)
    return _with_own_gradient(*varying_alike((x, kernel)), way)


def _is_plain(x: Array, kernel: Array, strides: Sequence[int], padding: Any, options: Mapping[str, Any]) -> bool:
    """Whether at stride 1 it would keep height and width, with zeros around, and has neither groups nor dilations."""
    edge = kernel.shape[0]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    dilations = (options.get(name) or (1,) for name in ('lhs_dilation', 'rhs_dilation'))
    return (
        edge % 2 == 1
        and [tuple(pair) for pair in padding] == [(edge // 2, edge // 2)] * 2
        and kernel.shape[2] == x.shape[-1]
        and all(set(dilation) == {1} for dilation in dilations)
    )


def _pointwise(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    """Convolution by a 1x1 kernel: a matrix product, of which XLA:CPU makes no more than of any other convolution.

    It takes half of that time, and its gradient by the kernel a third.
    """
    down, right = strides
    wide = at_least_float32(x.dtype)
    return jnp.matmul(x[:, ::down, ::right], kernel[0, 0], preferred_element_type=wide).astype(x.dtype)


@functools.partial(jax.jit, inline=True)
def _by_taps(x: Array, kernel: Array) -> Array:
    """Convolution with stride 1 and zeros around: each tap of the kernel meets some pixels, in a matrix product.

    XLA:CPU takes a hundred times as long where the map is smaller than the kernel; and the zeros are left out. JAX
    differentiates this into matrix products as well.
    """
    (height, width), reach = x.shape[1:3], kernel.shape[0] // 2
    wide = at_least_float32(x.dtype)
    y = jnp.zeros((*x.shape[:3], kernel.shape[-1]), wide)
    for i, j in itertools.product(range(-reach, reach + 1), repeat=2):
        if abs(i) < height and abs(j) < width:  # Or all that the tap meets is padding.
            # Outputs at which the tap meets a pixel, and these pixels, i rows down and j columns to the right.
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


class _Way(NamedTuple):
    """How a convolution and its gradients are computed, hashable for custom_vjp.

    Attributes:
      directly: the convolution, as JAX differentiates it.
      unit: see `convolve`.
      parts: of the examples, which the gradient by the kernel is summed over.
      minimal: the convolution and its gradient by the input are Winograd's.
      minimal_by_kernel: its gradient by the kernel is.
      patches: its gradient by the kernel is a matrix product with what each output depends on.
    """

    directly: Callable[[Array, Array], Array]
    unit: float | None
    parts: int = 1
    minimal: bool = False
    minimal_by_kernel: bool = False
    patches: bool = False

    @property
    def products(self) -> bool:
        """Whether matrix products do it, which are as fast `apart` as elsewhere. Convolutions of XLA's are not."""
        return self.minimal or self.directly is _by_taps or getattr(self.directly, 'func', None) is _pointwise

    @property
    def products_by_kernel(self) -> bool:
        """Whether matrix products make the gradient by the kernel."""
        return self.products or self.minimal_by_kernel or self.patches


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _with_own_gradient(x: Array, kernel: Array, way: _Way) -> Array:
    """Convolution that keeps bytes, if there is a unit, and takes the way that is said."""
    return _convolved(x, kernel, way, Unpacked(None, x.dtype))


def _convolved(kept: Array, kernel: Array, way: _Way, floats: Unpacked) -> Array:
    return winograd.convolve(kept, kernel, floats) if way.minimal else way.directly(floats(kept), kernel)


def _forward(x: Array, kernel: Array, way: _Way) -> tuple[Array, tuple[Array, Array]]:
    # Convolved are the bytes, so that XLA makes them now. It would do so in the backward pass and keep until then what
    # the input was made of; under jit nothing but these residuals has to live that long.
    kept = x if way.unit is None else packed(x, way.unit)
    floats = Unpacked(way.unit, x.dtype)
    compute = lambda kept, kernel: _convolved(kept, kernel, way, floats)
    return (apart(compute, kept, kernel) if way.products else compute(kept, kernel)), (kept, kernel)


def _backward(way: _Way, residuals: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    kept, kernel = residuals
    floats = Unpacked(way.unit, d_y.dtype)
    # What XLA makes of the kernel in the forward pass is made again, and not kept.
    by_xla = lambda function, kept, d_y, kernel: function(kept, d_y, after(kernel, d_y))
    by_input, by_kernel = functools.partial(_by_input, way, floats), functools.partial(_by_kernel, way, floats)
    d_x = (apart if way.products else by_xla)(by_input, kept, d_y, kernel)
    return d_x, (apart if way.products_by_kernel else by_xla)(by_kernel, kept, d_y, kernel)


def _by_input(way: _Way, floats: Unpacked, kept: Array, d_y: Array, kernel: Array) -> Array:
    if way.minimal:
        return winograd.convolve(d_y, kernel, transposed=True)
    return jax.vjp(lambda x: way.directly(x, kernel), floats(kept))[1](d_y)[0]


def _by_kernel(way: _Way, floats: Unpacked, kept: Array, d_y: Array, kernel: Array) -> Array:
    if way.minimal_by_kernel:
        return winograd.by_kernel(kept, d_y, floats)
    if way.patches:
        return _by_patches(floats(kept), d_y, kernel)
    # A part takes every `parts`-th example, so that it has examples of every device that shares the batch.
    in_parts = lambda array: array.reshape(len(array) // way.parts, way.parts, *array.shape[1:])
    xs, d_ys = in_parts(floats(kept)), in_parts(d_y)
    d_kernel = jnp.zeros(kernel.shape, at_least_float32(kernel.dtype))
    for part in range(way.parts):
        _, gradient = jax.vjp(lambda kernel, part=part: way.directly(xs[:, part], kernel), kernel)
        d_kernel += gradient(d_ys[:, part])[0].astype(d_kernel.dtype)
    return d_kernel.astype(kernel.dtype)


def _by_patches(x: Array, d_y: Array, kernel: Array) -> Array:
    """The gradient by a kernel of stride 1, with zeros around, from a copy of what each output depends on."""
    (height, width), edge = x.shape[1:3], kernel.shape[0]
    around = (edge // 2, edge // 2)
    x = jnp.pad(x, ((0, 0), around, around, (0, 0)))
    taps = itertools.product(range(edge), repeat=2)
    patches = jnp.concatenate([x[:, i : i + height, j : j + width] for i, j in taps], -1)
    wide = at_least_float32(kernel.dtype)
    product = jnp.tensordot(patches, d_y, ((0, 1, 2), (0, 1, 2)), preferred_element_type=wide)
    return product.reshape(kernel.shape).astype(kernel.dtype)


_with_own_gradient.defvjp(_forward, _backward)
