"""Maximum pooling and its gradient, against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from cpng_jax.nn import layers
from cpng_jax.nn.max_windows import max_of_windows


def by_loops(x, d_y, window, stride):
    """The maximum of each window, and the gradient by x, which goes to the first of the greatest pixels."""
    reach = window // 2
    size = [-(-edge // stride) for edge in x.shape[1:3]]
    y, d_x = np.empty((len(x), *size, x.shape[-1])), np.zeros(x.shape)
    for n, i, j, c in np.ndindex(y.shape):
        rows, columns = (range(max(0, stride * k - reach), stride * k + reach + 1) for k in (i, j))
        pixels = [(r, s) for r in rows if r < x.shape[1] for s in columns if s < x.shape[2]]
        values = [x[n, r, s, c] for r, s in pixels]
        first = pixels[int(np.argmax(values))]
        y[n, i, j, c] = max(values)
        d_x[(n, *first, c)] += d_y[n, i, j, c]
    return y, d_x


@settings(max_examples=20)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 9),
)
def test_maximum_and_gradient_are_those_of_loops(height, width, window, stride, spikes, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, height, width, 2)).astype(np.float32)
    x = (x > 0.5).astype(np.float32) if spikes else x  # nothing but ties
    d_y = rng.normal(size=(2, -(-height // stride), -(-width // stride), 2)).astype(np.float32)
    y, pull = jax.vjp(lambda x: max_of_windows(x, window, stride), x)
    (d_x,) = pull(d_y)
    expected, expected_d_x = by_loops(x, d_y.astype(np.float64), window, stride)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(d_x, expected_d_x, rtol=1e-5, atol=1e-6)
    assert d_x.shape == x.shape


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_max_pool_is_that_of_flax(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 12, 10, 4)), dtype)
    d_y = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 6, 5, 4)), dtype)
    flax = lambda x: nn.max_pool(x.reshape(6, 12, 10, 4), (3, 3), (2, 2), ((1, 1), (1, 1))).reshape(d_y.shape)
    expected, expected_pull = jax.vjp(flax, x)
    out, pull = jax.vjp(lambda x: layers.max_pool(x, 3, 2), x)
    (d_x,), (expected_d_x,) = pull(d_y), expected_pull(d_y)
    assert out.dtype == d_x.dtype == dtype
    np.testing.assert_array_equal(out, expected)
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-6  # which XLA adds up in, rounding each time
    np.testing.assert_allclose(d_x.astype(np.float32), expected_d_x.astype(np.float32), atol=tolerance * 4)


def test_windows_that_a_byte_cannot_number_are_left_to_flax():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 20, 20, 1)), jnp.float32)
    padded = np.pad(x[0, 0, :, :, 0], 8, constant_values=-np.inf)
    expected = np.lib.stride_tricks.sliding_window_view(padded, (17, 17)).max((2, 3))
    out, pull = jax.vjp(lambda x: layers.max_pool(x, 17, 1), x)
    np.testing.assert_array_equal(out[0, 0, :, :, 0], expected)
    assert float(jnp.sum(pull(out)[0])) == pytest.approx(float(expected.sum()), rel=1e-5)


def test_nan_is_handed_on():
    y = max_of_windows(jnp.ones((1, 5, 5, 1)).at[0, 0, 0, 0].set(jnp.nan), 3, 2)
    np.testing.assert_array_equal(jnp.isnan(y[0, :, :, 0]), [[True, False, False], [False] * 3, [False] * 3])


def test_nan_is_handed_on_where_it_is_differentiated_too():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1).at[0, 1, 2, 0].set(jnp.nan)
    pooled = lambda x: max_of_windows(x, 3, 2)
    differentiated = jax.jit(lambda x: jax.vjp(pooled, x)[0])(x)
    assert 0 < np.isnan(differentiated).sum() < differentiated.size
    np.testing.assert_array_equal(differentiated, pooled(x))
