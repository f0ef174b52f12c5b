"""Convolution as XLA does it, with inputs kept as bytes, and ways round where XLA on a CPU is many times too slow."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cpng_jax.nn import canonical, patches, winograd
from cpng_jax.nn.canonical import Window
from cpng_jax.nn.packing import Unpacked, packed
from cpng_jax.nn.scheduling import after, apart
from cpng_jax.nn.surrogate import Array, at_least_float32
from cpng_jax.nn.varying import on_cpu, varying_alike

# Pixels that the gradient of a kernel sums over in one go, since with more of them XLA:CPU falls out of its caches; and
# parts at most, since each is a convolution of its own that costs time to compile.
_PIXELS, _PARTS = 2048, 16


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
    if on_cpu(x) and _is_plain(x, kernel, options):
        window = _window(x, kernel, strides, padding, options)
        way = _way_on_cpu(window, unit, x, kernel)
    if way == _Way(way.directly, None):
        return way.directly(x, kernel)
    return _with_own_gradient(*varying_alike((x, kernel)), way)


def _is_plain(x: Array, kernel: Array, options: Mapping[str, Any]) -> bool:
    """Whether a convolution has neither groups nor dilations."""
    dilations = (options.get(name) or (1,) for name in ('lhs_dilation', 'rhs_dilation'))
    return kernel.shape[2] == x.shape[-1] and all(set(dilation) == {1} for dilation in dilations)


def _window(x: Array, kernel: Array, strides: Sequence[int], padding: Any, options: Mapping[str, Any]) -> Window:
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (down, right), (height, width) = strides, map(tuple, padding)
    return Window((down, right), (height, width), options.get('precision'))


def _way_on_cpu(window: Window, unit: float | None, x: Array, kernel: Array) -> '_Way':
    """The fastest way. Those round XLA's are written for what most layers are; elsewhere what is left out is speed."""
    edge = kernel.shape[0]
    by_xla = _Way(functools.partial(canonical.convolve, window=window), unit, canonical=window)
    if edge % 2 == 0 or set(window.padding) != {(edge // 2, edge // 2)}:
        return by_xla
    if edge == 1:
        return _Way(functools.partial(_pointwise, strides=window.strides), unit)
    by_patches = window if patches.pays_by_kernel(kernel, window) else None
    way = by_xla._replace(parts=_parts(x, kernel, window), patches=by_patches)
    outputs = window.outputs(x, kernel)
    if min(outputs) < edge:
        way = way._replace(directly=functools.partial(_by_taps, window=window), canonical=None)
    elif patches.pays(len(x) * math.prod(outputs), kernel):
        way = way._replace(directly=functools.partial(patches.convolve, window=window), canonical=None)
    if set(window.strides) != {1}:
        return way
    return way._replace(
        minimal=winograd.pays(x, kernel, channels=64), minimal_by_kernel=winograd.pays(x, kernel, channels=32)
    )


def _pointwise(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    """Convolution by a 1x1 kernel: a matrix product, of which XLA:CPU makes no more than of any other convolution.

    It takes half of that time, and its gradient by the kernel a third.
    """
    down, right = strides
    wide = at_least_float32(x.dtype)
    return jnp.matmul(x[:, ::down, ::right], kernel[0, 0], preferred_element_type=wide).astype(x.dtype)


@functools.partial(jax.jit, static_argnames='window', inline=True)
def _by_taps(x: Array, kernel: Array, window: Window) -> Array:
    """Convolution, tap by tap: each meets some pixels, in a matrix product.

    XLA takes a map that is smaller than the kernel for the kernel, and XLA:CPU then a hundred times as long. The zeros
    around are left out. JAX differentiates this into matrix products as well.
    """
    outputs, wide = window.outputs(x, kernel), at_least_float32(x.dtype)
    y = jnp.zeros((len(x), *outputs, kernel.shape[-1]), wide)
    for tap in itertools.product(*map(range, kernel.shape[:2])):
        met = [*map(_met, x.shape[1:3], outputs, window.strides, (begin for begin, _ in window.padding), tap)]
        if all(here.start < here.stop for here, _ in met):  # Or all that the tap meets is padding.
            (down, from_down), (right, from_right) = met
            product = jnp.matmul(x[:, from_down, from_right], kernel[tap], preferred_element_type=wide)
            y = y.at[:, down, right].add(product)
    return y.astype(x.dtype)


def _met(edge: int, outputs: int, stride: int, padding: int, tap: int) -> tuple[slice, slice]:
    """Along H or W, the outputs at which a tap meets a pixel, and these pixels."""
    first = max(0, -((tap - padding) // stride))
    last = min(outputs - 1, (edge - 1 + padding - tap) // stride)
    pixel = stride * first + tap - padding
    return slice(first, last + 1), slice(pixel, pixel + stride * (last - first) + 1, stride)


def _parts(x: Array, kernel: Array, window: Window) -> int:
    """Into how many parts of equal size the examples go, so that none has too many pixels."""
    wanted = min(_PARTS, len(x) * math.prod(window.outputs(x, kernel)) // _PIXELS)
    return max(part for part in range(1, max(wanted, 1) + 1) if len(x) % part == 0)


class _Way(NamedTuple):
    """How a convolution and its gradients are computed, hashable for custom_vjp.

    Attributes:
      directly: the convolution, where it is neither Winograd's nor `canonical`'s.
      unit: see `convolve`.
      parts: of the examples, which the gradient by the kernel is summed over.
      minimal: the convolution and its gradient by the input are Winograd's.
      minimal_by_kernel: its gradient by the kernel is.
      patches: how the kernel goes over a map, if the gradient by it is `patches.by_kernel`.
      canonical: the same, if the convolution and its gradients are those of `canonical`: XLA's, fast in loops as well.
    """

    directly: Callable[[Array, Array], Array]
    unit: float | None
    parts: int = 1
    minimal: bool = False
    minimal_by_kernel: bool = False
    patches: Window | None = None
    canonical: Window | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _with_own_gradient(x: Array, kernel: Array, way: _Way) -> Array:
    """Convolution that keeps bytes, if there is a unit, and takes the way that is said."""
    return _convolved(x, kernel, way, Unpacked(None, x.dtype))


@functools.partial(apart, static=(2, 3))
def _convolved(kept: Array, kernel: Array, way: _Way, floats: Unpacked) -> Array:
    if way.minimal:
        return winograd.convolve(kept, kernel, floats)
    if way.canonical:
        return canonical.convolve(kept, kernel, way.canonical, floats)
    return way.directly(floats(kept), kernel)


def _forward(x: Array, kernel: Array, way: _Way) -> tuple[Array, tuple[Array, Array]]:
    # Convolved are the bytes, so that XLA makes them now. It would do so in the backward pass and keep until then what
    # the input was made of; under jit nothing but these residuals has to live that long.
    kept = x if way.unit is None else packed(x, way.unit)
    floats = Unpacked(way.unit, x.dtype)
    return _convolved(kept, kernel, way, floats), (kept, kernel)


def _backward(way: _Way, residuals: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    (kept, kernel), floats = residuals, Unpacked(way.unit, d_y.dtype)
    d_kernel = _by_kernel(way, floats, kept, d_y, kernel)
    # XLA puts it off, and keeps what it needs; where that is more than the result, it comes first.
    earlier = after(d_y, d_kernel) if d_y.size > kernel.size else d_y
    return _by_input(way, floats, kept, earlier, kernel), d_kernel


@functools.partial(apart, static=(0, 1))
def _by_input(way: _Way, floats: Unpacked, kept: Array, d_y: Array, kernel: Array) -> Array:
    if way.minimal:
        return winograd.convolve(d_y, kernel, transposed=True)
    if way.canonical:
        return canonical.by_input(d_y, kernel, way.canonical, kept.shape[1:3])
    return jax.vjp(lambda x: way.directly(x, kernel), floats(kept))[1](d_y)[0]


@functools.partial(apart, static=(0, 1))
def _by_kernel(way: _Way, floats: Unpacked, kept: Array, d_y: Array, kernel: Array) -> Array:
    if way.minimal_by_kernel:
        return winograd.by_kernel(kept, d_y, floats)
    if way.patches:
        return patches.by_kernel(kept, d_y, way.patches, kernel.shape[:2], floats).astype(kernel.dtype)
    # A part takes every `parts`-th example, so that it has examples of every device that shares the batch.
    in_parts = lambda array: array.reshape(len(array) // way.parts, way.parts, *array.shape[1:])
    xs, d_ys = in_parts(floats(kept)), in_parts(d_y)
    d_kernel = jnp.zeros(kernel.shape, at_least_float32(kernel.dtype))
    for part in range(way.parts):
        d_kernel += _of_part(way, xs[:, part], d_ys[:, part], kernel).astype(d_kernel.dtype)
    return d_kernel.astype(kernel.dtype)


def _of_part(way: _Way, x: Array, d_y: Array, kernel: Array) -> Array:
    if way.canonical:
        return canonical.by_kernel(x, d_y, way.canonical, kernel.shape[:2])
    return jax.vjp(lambda kernel: way.directly(x, kernel), kernel)[1](d_y)[0]


_with_own_gradient.defvjp(_forward, _backward)
