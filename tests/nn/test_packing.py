"""Spikes as bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpng_jax.nn.adaptive_neuron import AdaptedLIF
from cpng_jax.nn.analog_neuron import QCFS, ReLU
from cpng_jax.nn.deviation_neuron import DeviationLIF
from cpng_jax.nn.diet_neuron import DietLIF
from cpng_jax.nn.neuron import lif
from cpng_jax.nn.packing import Unpacked, in_bytes, packed
from cpng_jax.nn.soft_reset import SoftResetIF
from cpng_jax.nn.terms import Normalised, Whole


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


# Laid out, in a loop because a step is small, and in segments.
@pytest.mark.parametrize(('time_steps', 'neurons'), [(3, 2**16), (3, 8), (12, 8)])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('unit', [1.0, 0.25])
def test_currents_that_are_known_to_be_whole_are_kept_as_bytes_and_nothing_else_changes(
    time_steps, neurons, dtype, unit
):
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (time_steps, 4, neurons // 4, 4)
    x, cotangent = (jax.random.normal(key, shape, dtype) for key in keys[:2])
    spikes = jax.random.randint(keys[2], shape, 0, 4).astype(dtype) * jnp.asarray(unit, dtype)
    run = lambda term: jax.vjp(lambda x, spikes: lif([Normalised(x, None), term(spikes)], 1.5)[0], x, spikes)
    known, pull = run(lambda spikes: Whole(spikes, unit))
    plain, pull_plain = run(lambda spikes: spikes)
    np.testing.assert_array_equal(known, plain)
    for mine, right in zip(pull(cotangent), pull_plain(cotangent), strict=True):
        assert mine.dtype == dtype
        np.testing.assert_array_equal(mine, right)
    kept = lambda pull: sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    assert kept(pull_plain) - kept(pull) == spikes.nbytes - spikes.size


@pytest.mark.parametrize('layer', [AdaptedLIF, DeviationLIF, DietLIF, SoftResetIF, ReLU, QCFS])
def test_other_neurons_take_them_for_an_array(layer):
    spikes = jax.random.bernoulli(jax.random.key(0), 0.3, (1, 2, 8)).astype(jnp.float32)
    variables = layer().init(jax.random.key(1), spikes)
    mutable = ['batch_stats', 'surrogate', 'membrane']
    answers = [layer().apply(variables, term, mutable=mutable)[0] for term in (Whole(spikes, 1.0), spikes)]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize('unit', [None, 1.0, 0.25])
def test_bytes_are_handed_on_as_what_they_were(unit):
    x = jnp.asarray([0.0, 0.5, 1.0, 7.25]) if unit is None else jnp.arange(9.0) * unit
    for jit in (lambda f: f, jax.jit):
        np.testing.assert_array_equal(jit(lambda x: in_bytes(x, unit))(x), x)
        np.testing.assert_array_equal(jit(jax.grad(lambda x: jnp.sum(in_bytes(x, unit) ** 2)))(x), 2 * x)
