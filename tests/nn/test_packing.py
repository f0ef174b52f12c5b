"""Spikes as bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpng_jax.nn.packing import Unpacked, packed, share_of_spikes


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('unit', [1.0, 0.25, 1 / 9])
def test_what_is_packed_comes_back(unit, dtype):
    # bfloat16 has 8 bits: the multiples that it tells apart by far.
    x = jnp.arange(256 if dtype == jnp.float32 else 64).astype(dtype) * jnp.asarray(unit, dtype)
    kept = packed(x, unit)
    assert kept.dtype == jnp.uint8
    if unit != 1 / 9:  # whose multiples floats round, so that one may be cut off to the one below
        np.testing.assert_array_equal(Unpacked(unit, dtype)(kept), x)
    assert Unpacked(None, dtype)(x) is x


def test_booleans_are_packed_as_numbers_are():
    spikes = np.random.default_rng(0).random((3, 5)) < 0.5
    np.testing.assert_array_equal(packed(jnp.asarray(spikes)), packed(jnp.asarray(spikes, jnp.float32)))


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.floats(0, 1), st.integers(0, 10), st.booleans())
def test_the_share_of_spikes_is_their_mean(shape, share, seed, per_channel):
    spikes = np.random.default_rng(seed).random(shape) < share
    mean = spikes.astype(np.float64).mean(tuple(range(len(shape) - per_channel)))
    for dtype in (jnp.float32, jnp.bfloat16, bool):
        found = share_of_spikes(jnp.asarray(spikes, dtype), per_channel)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, mean, rtol=2e-7)


@pytest.mark.parametrize('shape', [(4, 128), (2, 64, 33, 4), (5, 16, 32, 32, 64)])
@pytest.mark.parametrize('value', [0, 1])
def test_no_byte_overflows_where_all_spike_or_none(shape, value):
    assert share_of_spikes(jnp.full(shape, value, jnp.float32)) == value


def test_no_gradient_flows_through_the_share():
    np.testing.assert_array_equal(jax.grad(share_of_spikes)(jnp.ones((4, 8))), 0)
