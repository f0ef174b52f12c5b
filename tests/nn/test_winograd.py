"""Winograd's convolution against SciPy in float64, its gradients against each other, and what rounding may cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpng_jax.nn import convolution, parts, winograd
from tests.nn.test_convolution import OPTIONS, by_scipy, gradients, ours, plain


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def all_three(x, kernel, d_y):
    d_x = winograd.convolve(d_y, kernel, transposed=True)
    return winograd.convolve(x, kernel), d_x, winograd.by_kernel(x, d_y)


def test_the_matrices_do_what_the_equation_says():
    outputs, kernels, inputs = winograd._OUTPUTS, winograd._KERNELS, winograd._INPUTS
    g, d = drawn(3, 6)
    np.testing.assert_allclose(
        outputs @ ((kernels @ g) * (inputs @ d)), np.correlate(d, g, 'valid'), rtol=0, atol=1e-14
    )


@settings(max_examples=15, deadline=None)
@given(
    examples=st.integers(1, 4),
    edges=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    one_by_one=st.booleans(),
)
def test_any_map_in_float64(examples, edges, channels, one_by_one):
    x, kernel, d_y = drawn(
        (examples, *edges, channels[0]), (3, 3, *channels), (examples, *edges, channels[1]), seed=examples
    )
    cached = parts._CACHED
    parts._CACHED = 1 if one_by_one else cached  # an example at a time, or all at once
    try:
        with jax.enable_x64(True):
            y, d_x, d_kernel = map(np.asarray, jax.jit(all_three)(x, kernel, d_y))
    finally:
        parts._CACHED = cached
    np.testing.assert_allclose(y, by_scipy(x, kernel), rtol=0, atol=1e-12)
    assert (d_x.shape, d_kernel.shape) == (x.shape, kernel.shape)
    # Linear in each of both, so that the gradients follow from the products alone: <d_y, y> for a kernel and an input.
    other_x, other_kernel = drawn(x.shape, kernel.shape, seed=7)
    np.testing.assert_allclose(np.sum(d_x * other_x), np.sum(d_y * by_scipy(other_x, kernel)), atol=1e-11)
    np.testing.assert_allclose(np.sum(d_kernel * other_kernel), np.sum(d_y * by_scipy(x, other_kernel)), atol=1e-11)


@pytest.mark.parametrize('spikes', [False, True])
@pytest.mark.parametrize(('examples', 'edge', 'channels'), [(16, 8, 256), (5, 32, 64)])
def test_rounding_in_float32_is_bounded(examples, edge, channels, spikes):
    x, kernel, d_y = drawn(
        (examples, edge, edge, channels), (3, 3, channels, channels), (examples, edge, edge, channels)
    )
    x = np.float64(x > 0.8) if spikes else x
    # The reference: XLA's own convolution in float64, which test_convolution holds to SciPy's.
    with jax.enable_x64(True):
        right = [np.asarray(plain(jnp.asarray(x), jnp.asarray(kernel)))]
        right += map(np.asarray, gradients(plain, jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(d_y)))
    x, kernel, d_y = map(jnp.float32, (x, kernel, d_y))
    assert winograd.pays(x, kernel, channels=64)
    mine = [jax.jit(ours)(x, kernel), *gradients(ours, x, kernel, d_y)]
    for array, expected in zip(mine, right, strict=True):
        # Of the largest value; the direct way is within 3e-7, but for the kernel's gradient, a long sum: 3e-6.
        assert np.abs(array - expected).max() < 6e-6 * np.abs(expected).max()


@pytest.mark.parametrize(
    ('shape', 'kernel', 'forward', 'backward'),
    [
        ((80, 4, 4, 64), (3, 3, 64, 128), True, True),
        ((80, 4, 4, 32), (3, 3, 32, 128), False, True),
        ((80, 4, 4, 31), (3, 3, 31, 128), False, False),
        ((63, 4, 4, 64), (3, 3, 64, 64), False, False),  # too few tiles
        ((80, 5, 5, 64), (3, 3, 64, 64), False, False),  # 25 of 64 pixels
        ((80, 7, 7, 64), (3, 3, 64, 64), True, True),  # 49 of 64
        ((80, 8, 8, 64), (5, 5, 64, 64), False, False),
        ((80, 8, 8, 64), (1, 1, 64, 64), False, False),
    ],
)
def test_the_way_that_convolve_takes(shape, kernel, forward, backward, monkeypatch):
    taken = []
    for name in ('convolve', 'by_kernel'):
        function = getattr(winograd, name)
        monkeypatch.setattr(
            winograd, name, lambda *given, f=function, name=name, **named: taken.append(name) or f(*given, **named)
        )
    x, kernel = jnp.zeros(shape), jnp.zeros(kernel)
    jax.eval_shape(lambda x, kernel: jax.vjp(ours, x, kernel)[1](plain(x, kernel)), x, kernel)
    assert taken.count('convolve') == 2 * forward
    assert taken.count('by_kernel') == backward


@pytest.mark.parametrize(
    ('dtype', 'options'),
    [
        ('bfloat16', {}),
        ('float32', {'padding': ((0, 0), (1, 1))}),
        ('float32', {'padding': ((2, 2), (2, 2)), 'rhs_dilation': (2, 2)}),
        ('float32', {'lhs_dilation': (2, 2)}),
        ('float32', {'feature_group_count': 2}),
    ],
)
def test_what_is_not_plain_goes_to_xla(dtype, options):
    channels = 64 * options.get('feature_group_count', 1)
    x, kernel, _ = (jnp.asarray(array, dtype) for array in drawn((80, 4, 4, channels), (3, 3, 64, 64), ()))
    given = {'padding': ((1, 1), (1, 1)), **OPTIONS, **options}
    y = convolution.convolve(x, kernel, (1, 1), **given)
    np.testing.assert_array_equal(y, jax.lax.conv_general_dilated(x, kernel, (1, 1), **given))


def test_same_is_a_pixel_of_zeros_around():
    x, kernel, _ = map(jnp.float32, drawn((80, 4, 4, 64), (3, 3, 64, 64), ()))
    same = convolution.convolve(x, kernel, (1, 1), 'SAME', **OPTIONS)
    np.testing.assert_array_equal(same, ours(x, kernel))


def test_several_devices_are_not_asked_part_by_part(monkeypatch):
    x = jax.ShapeDtypeStruct((64, 32, 32, 64), jnp.float32)
    assert winograd._parts(x, 64) == 8  # 80 MB in parts of 16 MiB at most
    monkeypatch.setattr(jax, 'device_count', lambda: 2)
    assert winograd._parts(x, 64) == 1
