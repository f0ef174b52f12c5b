"""Gradients of convolutions in the one layout that XLA:CPU is fast at, in float64 and by what is compiled."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpng_jax.nn import canonical, parts, patches
from cpng_jax.nn.canonical import Window
from cpng_jax.nn.convolution import convolve
from tests.nn.test_convolution import OPTIONS


def directly(x, kernel, window):
    """Convolution, a tap after the other, in float64."""
    (down, right), (height, width) = window.strides, x.shape[1:3]
    padded = np.pad(np.float64(x), ((0, 0), *window.padding, (0, 0)))
    edges = [
        (edge + sum(pad) - size) // stride + 1
        for edge, pad, size, stride in zip((height, width), window.padding, kernel.shape, window.strides, strict=False)
    ]
    y = np.zeros((len(x), *edges, kernel.shape[-1]))
    for i, j in np.ndindex(*kernel.shape[:2]):
        met = padded[:, i::down, j::right][:, : edges[0], : edges[1]]
        y += np.einsum('nhwc,cf->nhwf', met, np.float64(kernel[i, j]))
    return y


@st.composite
def windows(draw):
    """Kernels of one to four, even ones too, that reach over the edges by less than their size."""
    pair = lambda values: (draw(values), draw(values))
    sizes, strides, more = pair(st.integers(1, 4)), pair(st.integers(1, 3)), pair(st.integers(0, 6))
    padding = tuple((draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1))) for size in sizes)
    edges = tuple(max(1, size - sum(pad)) + add for size, pad, add in zip(sizes, padding, more, strict=True))
    return Window(strides, padding), sizes, edges


@settings(max_examples=40, deadline=None)
@given(given=windows(), examples=st.integers(1, 3), one_by_one=st.booleans())
def test_any_window_in_float64(given, examples, one_by_one):
    window, sizes, edges = given
    rng = np.random.default_rng(examples)
    x, other_x = rng.normal(size=(2, examples, *edges, 2))
    kernel, other_kernel = rng.normal(size=(2, *sizes, 2, 3))
    right = directly(x, kernel, window)
    d_y = rng.normal(size=right.shape)
    cached = parts._CACHED
    parts._CACHED = 1 if one_by_one else cached
    few = patches._FEW
    patches._FEW = 0  # in parts, as many channels go
    try:
        with jax.enable_x64(True):
            y, y_by_patches, d_x, d_kernel, by_patches = map(
                np.asarray,
                (
                    canonical.convolve(x, kernel, window),
                    patches.convolve(jnp.asarray(x), jnp.asarray(kernel), window),
                    canonical.by_input(jnp.asarray(d_y), jnp.asarray(kernel), window, edges),
                    canonical.by_kernel(jnp.asarray(x), jnp.asarray(d_y), window, sizes),
                    patches.by_kernel(jnp.asarray(x), jnp.asarray(d_y), window, sizes),
                ),
            )
    finally:
        parts._CACHED, patches._FEW = cached, few
    for convolved in (y, y_by_patches):
        np.testing.assert_allclose(convolved, right, rtol=0, atol=1e-12)
    assert (d_x.shape, d_kernel.shape, by_patches.shape) == (x.shape, kernel.shape, kernel.shape)
    # Linear in each of both, so that the gradients follow from the convolution alone: <d_y, y> of another one.
    np.testing.assert_allclose(np.sum(d_x * other_x), np.sum(d_y * directly(other_x, kernel, window)), atol=1e-11)
    expected = np.sum(d_y * directly(x, other_kernel, window))
    for gradient in (d_kernel, by_patches):
        np.testing.assert_allclose(np.sum(gradient * other_kernel), expected, atol=1e-11)


LAYOUT = 'b01f_01io->b01f'


def layouts(function, *arguments):
    """Of the convolutions in a compiled program."""
    return re.findall(r' convolution\(.*?dim_labels=(\S+?),', jax.jit(function).lower(*arguments).compile().as_text())


@pytest.mark.parametrize(
    ('edge', 'stride', 'channels', 'map_edge'),
    [(3, 1, 8, 12), (3, 2, 16, 12), (5, 1, 8, 12), (7, 2, 3, 14), (4, 2, 8, 12), (3, 1, 8, 3), (3, 2, 16, 5)],
)
@pytest.mark.parametrize('unit', [None, 1.0])
def test_a_loop_has_convolutions_that_xla_is_fast_at(edge, stride, channels, map_edge, unit):
    rng = np.random.default_rng(0)
    xs = jnp.float32(rng.integers(0, 2, (3, 2, map_edge, map_edge, channels)))
    kernel = jnp.float32(rng.normal(size=(edge, edge, channels, 8)))
    padding = (((edge - 1) // 2, edge // 2),) * 2

    def looped(apply, xs, kernel):
        def step(total, x):
            value, gradients = jax.value_and_grad(
                lambda x, k: jnp.sum(jnp.sin(apply(x, k, (stride,) * 2, padding, **OPTIONS))), (0, 1)
            )(x, kernel)
            return total + value, gradients

        return jax.lax.scan(step, jnp.float32(0), xs)

    mine = lambda xs, kernel: looped(lambda *given, **options: convolve(*given, unit=unit, **options), xs, kernel)
    theirs = lambda xs, kernel: looped(jax.lax.conv_general_dilated, xs, kernel)
    found = layouts(mine, xs, kernel)
    assert found
    assert set(found) == {LAYOUT}
    # What the layout is about: JAX's own gradients have others.
    assert set(layouts(theirs, xs, kernel)) > {LAYOUT}
    for array, right in zip(*(jax.tree.leaves(jax.jit(f)(xs, kernel)) for f in (mine, theirs)), strict=True):
        np.testing.assert_allclose(array, right, rtol=1e-4, atol=1e-4)


def test_parts_are_small_enough_and_equal(monkeypatch):
    monkeypatch.setattr(parts, '_CACHED', 100)
    assert [parts.count(12, size) for size in (1, 100, 101, 250, 401, 10_000)] == [1, 1, 2, 3, 6, 12]
    x = jnp.arange(24.0).reshape(12, 2)
    assert parts.split(3, x).shape == (3, 4, 2)
    for many in (1, 3, 12):
        total = parts.summed(lambda a, b: jnp.sum(a * b, 0), many, x, x)
        np.testing.assert_array_equal(total, np.sum(np.square(x), 0))


def test_parts_inside_shard_map():
    """What varies over devices keeps its type where parts are added up and put together."""
    mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    spread, same = jax.sharding.PartitionSpec('data'), jax.sharding.PartitionSpec()
    x = jnp.arange(24.0).reshape(12, 2)
    total = lambda x: jax.lax.psum(parts.summed(lambda a: jnp.sum(a, 0), 3, parts.mapped(jnp.square, 4, x)), 'data')
    mapped = jax.shard_map(total, mesh=mesh, in_specs=(spread,), out_specs=same)
    np.testing.assert_array_equal(jax.jit(mapped)(x), np.sum(np.square(x), 0))
