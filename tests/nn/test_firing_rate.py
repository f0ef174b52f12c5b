"""The share of neurons that spike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import firing_rate


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.floats(0, 1), st.integers(0, 10), st.booleans())
def test_it_is_the_mean_of_the_spikes(shape, share, seed, per_channel):
    spikes = np.random.default_rng(seed).random(shape) < share
    mean = spikes.astype(np.float64).mean(tuple(range(len(shape) - per_channel)))
    for dtype in (jnp.float32, jnp.bfloat16, bool):
        found = firing_rate(jnp.asarray(spikes, dtype), per_channel)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, mean, rtol=2e-7)


@pytest.mark.parametrize('shape', [(4, 128), (2, 64, 33, 4), (5, 16, 32, 32, 64)])
@pytest.mark.parametrize('value', [0, 1])
def test_no_digit_is_lost_where_all_spike_or_none(shape, value):
    assert jax.jit(firing_rate)(jnp.full(shape, value, jnp.float32)) == value


def test_no_gradient_flows_through_it():
    np.testing.assert_array_equal(jax.grad(firing_rate)(jnp.ones((4, 8))), 0)


# Laid out, in a loop because a step is small, and in segments.
@pytest.mark.parametrize(('time_steps', 'neurons'), [(3, 2**16), (3, 8), (12, 8)])
@pytest.mark.parametrize('per_channel', [False, True])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_layer_reports_that_of_its_spikes(time_steps, neurons, per_channel, dtype):
    currents = jax.random.normal(jax.random.key(0), (time_steps, 4, neurons // 4, 4), dtype) + 0.5
    layer = LIF(per_channel=per_channel)
    spikes, reported = jax.jit(lambda x: layer.apply({}, x, mutable=['surrogate', 'firing_rate']))(currents)
    mean = np.asarray(spikes, np.float64).mean((0, 1, 2) if per_channel else None)
    assert 0 < mean.min() <= mean.max() < 1
    np.testing.assert_allclose(reported['firing_rate']['firing_rate'], mean, rtol=1e-6)
