"""Streams in chunks: the state that neurons are left in, handed on to the next call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpng_jax.nn.adaptive_neuron import AdaptedLIF
from cpng_jax.nn.deviation_neuron import DeviationLIF
from cpng_jax.nn.neuron import lif, lif_reference, potentials
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.terms import Affine, Normalised
from tests.equations import eq_2

STEPS = 6
CURRENTS = np.float32(np.random.default_rng(0).normal(0.6, 1, (STEPS, 3, 4)))
UPSTREAM = np.float32(np.random.default_rng(1).normal(size=CURRENTS.shape))
run = jax.jit(lif, static_argnames=('surrogate', 'detach_reset', 'return_state', 'time_steps'))


@pytest.mark.parametrize('tau', [0.5, 1.0, 0.0])
@pytest.mark.parametrize('split', range(1, STEPS))
def test_two_chunks_spike_as_one(split, tau):
    whole, _ = run(CURRENTS, 1.0, tau=tau)
    first, _, state = run(CURRENTS[:split], 1.0, tau=tau, return_state=True)
    second, _, last = run(CURRENTS[split:], 1.0, tau=tau, initial_state=state, return_state=True)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    u, s = eq_2(CURRENTS, tau, 1.0)
    np.testing.assert_allclose(state, (u * (1 - s))[split - 1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last, (u * (1 - s))[-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        potentials(CURRENTS[split:], tau=tau, initial_state=state), u[split:], rtol=1e-5, atol=1e-6
    )


@given(st.lists(st.integers(1, STEPS - 1), unique=True))
def test_any_number_of_chunks_spikes_as_one(ends):
    whole, _ = run(CURRENTS, 1.0)
    state, spikes = None, []
    for chunk in np.split(CURRENTS, sorted(ends)):
        part, _, state = run(chunk, 1.0, initial_state=state, return_state=True)
        spikes.append(part)
    np.testing.assert_array_equal(np.concatenate(spikes), whole)


@pytest.mark.parametrize('detach_reset', [False, True])
@pytest.mark.parametrize('split', range(1, STEPS))
def test_gradients_flow_through_the_state(split, detach_reset):
    """Through the chunks they are those of the whole, by all that is differentiable, and those of the definition."""

    def chunks(neurons, currents, tau, v_th, state):
        options = {'tau': tau, 'v_th': v_th, 'detach_reset': detach_reset, 'return_state': True}
        first, _, state = neurons(currents[:split], 1.0, initial_state=state, **options)
        second, _, left = neurons(currents[split:], 1.0, initial_state=state, **options)
        return jnp.sum(UPSTREAM * jnp.concatenate([first, second])) + jnp.sum(UPSTREAM[0] * left)

    def whole(currents, tau, v_th, state):
        options = {'tau': tau, 'v_th': v_th, 'detach_reset': detach_reset, 'return_state': True}
        spikes, _, left = lif_reference(currents, 1.0, initial_state=state, **options)
        return jnp.sum(UPSTREAM * spikes) + jnp.sum(UPSTREAM[0] * left)

    arguments = (CURRENTS, np.float32(0.5), np.float32(1), np.float32(np.linspace(-1, 1, 12).reshape(3, 4)))
    by_all = lambda function: jax.jit(jax.grad(function, argnums=(0, 1, 2, 3)))(*arguments)
    expected = by_all(whole)
    assert all(np.abs(gradient).max() > 0.01 for gradient in expected)
    for gradient, other in zip(by_all(lambda *given: chunks(lif, *given)), expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-5)


def test_a_still_image_goes_on_from_a_state():
    """Currents that are the same at every step, with a norm, and in a lower precision."""
    affine = Affine(*(jnp.asarray(value, jnp.float32) for value in ([0.1] * 4, [1.5] * 4, [0.2] * 4)))
    term = Normalised(jnp.asarray(CURRENTS[:1], jnp.bfloat16), affine)
    whole, _ = lif(term, 1.0, time_steps=STEPS)
    first, _, state = lif(term, 1.0, time_steps=2, return_state=True)
    second, _, _ = lif(term, 1.0, time_steps=STEPS - 2, initial_state=state, return_state=True)
    assert state.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    assert 0 < whole.mean() < 1


def test_the_module_takes_and_gives_the_state():
    layer = LIF(tau=0.75)
    variables = {'surrogate': {'beta': jnp.float32(1)}}
    whole = layer.apply(variables, CURRENTS)
    first, state = layer.apply(variables, CURRENTS[:2], return_state=True)
    (second, _), seen = layer.apply(
        variables, CURRENTS[2:], initial_state=state, return_state=True, mutable=['membrane', 'potentials']
    )
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    u, _ = eq_2(CURRENTS, 0.75, 1.0)
    np.testing.assert_allclose(seen['potentials']['potentials'], u[2:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen['membrane']['membrane'].mean, u[2:].mean(), rtol=1e-5)


def test_what_is_no_state_is_refused():
    for state, error, message in [
        (np.zeros((3, 5), np.float32), ValueError, r'shape of a time step, \(3, 4\), got \(3, 5\)'),
        (np.zeros((3, 4), np.int32), TypeError, 'initial_state must be floating, got dtype int32'),
    ]:
        for function in (lif, lif_reference):
            with pytest.raises(error, match=message):
                function(CURRENTS, 1.0, initial_state=state)
    for options in ({'return_state': True}, {'initial_state': np.zeros((3, 4), np.float32)}):
        with pytest.raises(ValueError, match="implementation is 'pallas', expected 'scan' with initial_state"):
            lif(CURRENTS, 1.0, implementation='pallas', **options)
        with pytest.raises(ValueError, match='AdaptedLIF takes and gives no state'):
            AdaptedLIF().init(jax.random.key(0), CURRENTS, **options)
        with pytest.raises(ValueError, match='DeviationLIF takes and gives no state'):
            DeviationLIF().init(jax.random.key(0), CURRENTS, **options)
