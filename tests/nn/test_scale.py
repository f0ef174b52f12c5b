"""The height of the surrogate gradient apart from its width: neurons against Eq. 7 and 8 with a factor of f."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpng_jax import LIF, VGG, lif
from cpng_jax.nn.adaptive_neuron import AdaptedLIF
from cpng_jax.nn.deviation_neuron import DeviationLIF
from cpng_jax.nn.neuron import lif_reference
from cpng_jax.nn.terms import Affine, Normalised
from tests.equations import eq_2, eq_7_and_8

f32: Any = functools.partial(np.asarray, dtype=np.float32)
rng = np.random.default_rng(0)
CURRENTS, UPSTREAM = f32(rng.normal(0.5, 1, (4, 3, 5))), f32(rng.normal(size=(4, 3, 5)))
OF_EACH_CHANNEL = np.array([0.3, 0.7, 1.0, 1.6, 2.5])


@functools.partial(jax.jit, static_argnames=('neurons', 'shape', 'detach_reset'))
def run(neurons, currents, tau, v_th, state, beta, scale, upstream, shape, detach_reset):
    """Spikes, and the cotangents of currents, tau, v_th, state and scale."""

    def forward(currents, tau, v_th, state, scale):
        options = {'surrogate': shape, 'detach_reset': detach_reset, 'scale': scale, 'initial_state': state}
        return neurons(currents, beta, tau=tau, v_th=v_th, **options)[0]

    spikes, pull = jax.vjp(forward, currents, tau, v_th, state, scale)
    return spikes, pull(upstream)


@pytest.mark.parametrize(
    ('steps', 'shape', 'detach_reset', 'scale'),
    [
        (1, 'triangular', False, 0.6),
        (7, 'triangular', True, OF_EACH_CHANNEL),
        (7, 'rectangular', False, 2.5),
        (7, 'arctan', False, OF_EACH_CHANNEL),
    ],
    ids=str,
)
def test_gradients_by_all_are_those_of_the_equations(steps, shape, detach_reset, scale):
    rng = np.random.default_rng(1)
    currents, upstream = rng.normal(0.5, 1, (steps, 4, 5)), rng.normal(size=(steps, 4, 5))
    state, beta, tau, v_th = rng.normal(size=(4, 5)), 0.7, 0.83, 1.1
    # From a state is from rest, with what is left of it added to the first current.
    u, s = eq_2(np.concatenate([currents[:1] + tau * state, currents[1:]]), tau, v_th)
    d_u, d_tau, d_v_th = eq_7_and_8(upstream, u, s, beta, tau, v_th, shape, detach_reset, scale)
    expected = d_u, d_tau + np.sum(d_u[0] * state), d_v_th, tau * d_u[0], np.zeros_like(scale)
    for neurons in (lif, lif_reference):
        with jax.enable_x64(True):
            spikes, gradients = run(neurons, currents, tau, v_th, state, beta, scale, upstream, shape, detach_reset)
        np.testing.assert_array_equal(spikes, s)
        for gradient, right in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(gradient, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('implementation', ['scan', 'pallas'])
@pytest.mark.parametrize('steps', [4, 1], ids=['varying', 'constant'])
def test_both_implementations_and_constant_currents(steps, implementation):
    currents = CURRENTS[:steps]
    u, s = eq_2(np.broadcast_to(currents, CURRENTS.shape), 0.5, 1.0)
    d_u, *_ = eq_7_and_8(UPSTREAM, u, s, 0.8, 0.5, 1.0, 'triangular', scale=1.7)
    expected = d_u if steps > 1 else d_u.sum(0, keepdims=True)

    def loss(currents, scale):
        return jnp.sum(UPSTREAM * lif(currents, 0.8, scale=scale, time_steps=4, implementation=implementation)[0])

    gradient, by_scale = jax.jit(jax.grad(loss, argnums=(0, 1)))(currents, f32(1.7))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)
    assert by_scale == 0


@pytest.mark.parametrize('implementation', ['scan', 'pallas'])
def test_changing_scale_changes_gradients_and_neither_spikes_nor_the_program(implementation):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(currents, scale):
        spikes, pull = jax.vjp(lambda c: lif(c, 1.0, scale=scale, implementation=implementation)[0], currents)
        return spikes, pull(UPSTREAM)[0]

    (spikes, one), *others = (run(CURRENTS, f32(scale)) for scale in (1, 0.5, 2))
    for other_spikes, other in others:
        np.testing.assert_array_equal(other_spikes, spikes)
        assert np.abs(other - one).max() > 0.1


@pytest.mark.parametrize('kind', [LIF, AdaptedLIF, DeviationLIF])
def test_a_layer_has_it_next_to_beta(kind):
    layer = kind(scale_init=0.5)
    variables = layer.init(jax.random.key(0), CURRENTS)
    assert variables['scale']['scale'].dtype == np.float32
    assert variables['scale'] == {'scale': 0.5}
    channels = kind(per_channel=True, scale_init=2.0).init(jax.random.key(0), CURRENTS)
    np.testing.assert_array_equal(channels['scale']['scale'], np.full(5, 2))
    rest = {name: value for name, value in variables.items() if name != 'scale'}

    @jax.jit
    def run(variables):
        spikes, pull = jax.vjp(lambda c: layer.apply(variables, c), CURRENTS)
        return spikes, pull(UPSTREAM)[0]

    spikes, gradient = run(variables)
    # Without the collection it is as at the start, with another value another gradient of the same spikes.
    chex.assert_trees_all_equal(run(rest), (spikes, gradient))
    other_spikes, other = run({**rest, 'scale': {'scale': f32(1.5)}})
    np.testing.assert_array_equal(other_spikes, spikes)
    assert np.abs(other - gradient).max() > 0.1


def test_each_channel_has_its_height():
    layer = LIF(per_channel=True)
    variables = {'surrogate': {'beta': jnp.ones(5)}, 'scale': {'scale': f32(OF_EACH_CHANNEL)}}
    gradient = jax.grad(lambda c: jnp.sum(UPSTREAM * layer.apply(variables, c)))(CURRENTS)
    u, s = eq_2(CURRENTS, 0.5, 1.0)
    expected, *_ = eq_7_and_8(UPSTREAM, u, s, 1.0, 0.5, 1.0, 'triangular', scale=OF_EACH_CHANNEL)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


def test_a_learnt_decay_has_the_gradient_of_the_height():
    layer = LIF(tau=0.7, learn_tau=True)
    variables = layer.init(jax.random.key(0), CURRENTS)
    variables = {**variables, 'scale': {'scale': f32(2)}}
    loss = lambda params: jnp.sum(UPSTREAM * layer.apply({**variables, 'params': params}, CURRENTS))
    u, s = eq_2(CURRENTS, 0.7, 1.0)
    _, d_tau, _ = eq_7_and_8(UPSTREAM, u, s, 1.0, 0.7, 1.0, 'triangular', scale=2.0)
    (gradient,) = jax.tree.leaves(jax.grad(loss)(variables['params']))
    np.testing.assert_allclose(gradient, d_tau * 0.7 * 0.3, rtol=1e-4)


def test_a_network_needs_no_heights():
    """Code, and weights, from before there were any: the gradients are those at height 1."""
    network, images = VGG(3, stages=((4,),), time_steps=2), f32(rng.normal(size=(2, 4, 4, 3)))
    variables = network.init(jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, variables['scale']) == {'conv01': {'lif': {'scale': ()}}}
    rest = {name: variables[name] for name in ('batch_stats', 'surrogate')}

    @jax.jit
    def gradients(rest):
        def loss(params):
            outputs, _ = network.apply({'params': params, **rest}, images, train=True, mutable=['batch_stats'])
            return jnp.sum(jnp.square(outputs))

        return jax.grad(loss)(variables['params'])

    chex.assert_trees_all_equal(gradients(rest), gradients({**rest, 'scale': variables['scale']}))
    halved = gradients({**rest, 'scale': jax.tree.map(lambda leaf: leaf / 2, variables['scale'])})
    assert not np.allclose(jax.tree.leaves(halved)[0], jax.tree.leaves(gradients(rest))[0])


def test_an_adapted_layer_takes_normalised_currents():
    """The layer checks its terms, and the function checks them again: a map of each channel stays one."""
    values, maps = CURRENTS[:, :, None], Affine(*f32(rng.uniform(0.5, 1, (3, 5))))
    variables = AdaptedLIF().init(jax.random.key(0), values)
    whole = AdaptedLIF().apply(variables, (values - maps.mean) * maps.gain + maps.bias)
    np.testing.assert_array_equal(AdaptedLIF().apply(variables, Normalised(jnp.asarray(values), maps)), whole)
