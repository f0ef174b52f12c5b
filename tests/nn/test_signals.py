"""What layers measure of the signals they pass on, their currents and rates, and probes for the gradients by these."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cpng_jax import LIF, MembraneStats, lif
from cpng_jax.nn.adaptive_neuron import AdaptedLIF
from cpng_jax.nn.deviation_neuron import DeviationLIF
from cpng_jax.nn.terms import Affine, Normalised

f32: Any = functools.partial(np.asarray, dtype=np.float32)
rng = np.random.default_rng(0)
VALUES = f32(rng.normal(0.5, 1, (4, 3, 2, 5)) * np.arange(1, 6))
MAPS = Affine(*f32(rng.uniform(0.5, 1.5, (3, 5))))
NORMALISED = (np.float64(VALUES) - MAPS.mean) * MAPS.gain + MAPS.bias
TERMS = {
    'plain': (VALUES, np.float64(VALUES)),
    'low precision': (jnp.asarray(VALUES, jnp.bfloat16), np.float64(jnp.asarray(VALUES, jnp.bfloat16))),
    'terms': ([Normalised(jnp.asarray(VALUES), MAPS), VALUES], NORMALISED + VALUES),
    'constant': (Normalised(jnp.asarray(VALUES[:1]), MAPS), NORMALISED[:1]),
    'far from 0': (VALUES + 1000, np.float64(VALUES + 1000)),
}


LAYERS = {
    'layer': LIF(),
    'channels': LIF(per_channel=True),
    'kernels': LIF(implementation='pallas'),
    'adapted': AdaptedLIF(),
    'by deviation': DeviationLIF(),
}


@pytest.mark.parametrize(
    ('kind', 'name'),
    [*[('layer', name) for name in TERMS], *[(kind, name) for kind in LAYERS for name in ('terms', 'constant')][2:]],
)
def test_currents_are_measured_as_a_float64_sum_is(kind, name):
    layer, (given, total) = LAYERS[kind], TERMS[name]
    axes = (0, 1, 2) if layer.per_channel else None
    variables = {'surrogate': {'beta': jnp.ones(5 if layer.per_channel else ())}}
    if isinstance(layer, AdaptedLIF):
        variables['batch_stats'] = {'threshold': jnp.ones(4)}
    _, seen = layer.apply(variables, given, 4, mutable=['currents'])
    assert set(seen) == {'currents'}
    stats = seen['currents']['currents']
    assert isinstance(stats, MembraneStats)
    assert stats.mean.dtype == stats.variance.dtype == np.float32
    np.testing.assert_allclose(stats.mean, total.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(stats.variance, total.var(axes), rtol=1e-4)


def test_rates_of_channels_are_those_of_their_spikes():
    for layer, axes in ((LIF(per_channel=True), (0, 1, 2)), (LIF(), None)):
        variables = layer.init(jax.random.key(0), VALUES)
        spikes, seen = layer.apply(variables, VALUES, mutable=['firing_rate'])
        rate = seen['firing_rate']['firing_rate']
        assert rate.shape == variables['surrogate']['beta'].shape
        assert 0 < np.min(rate) <= np.max(rate) < 1
        np.testing.assert_allclose(rate, np.mean(spikes, axes), rtol=1e-6)


class Two(nn.Module):
    """Two layers of neurons, with weights of 1.5 between."""

    options: Any = ()

    @nn.compact
    def __call__(self, currents):
        spikes = LIF(name='first', **dict(self.options))(currents, 4)
        return LIF(name='second', **dict(self.options))(1.5 * spikes)


UPSTREAM = f32(rng.normal(size=VALUES.shape))
HEIGHTS = {'first': {'scale': f32(0.7)}, 'second': {'scale': f32(1.4)}}


@pytest.mark.parametrize(('steps', 'implementation'), [(4, 'scan'), (1, 'pallas')], ids=['varying', 'constant'])
def test_probes_give_the_gradients_by_currents_and_spikes(steps, implementation):
    network, currents = Two(options=(('implementation', implementation),)), VALUES[:steps]
    variables = {**network.init(jax.random.key(0), currents), 'scale': HEIGHTS}
    assert set(variables) == {'surrogate', 'scale'}  # no probes

    @jax.jit
    def by_probes(currents):
        spikes, made = network.apply(variables, currents, mutable=['probes'])
        loss = lambda probes: jnp.sum(UPSTREAM * network.apply({**variables, 'probes': probes}, currents))
        return spikes, made['probes'], jax.grad(loss)(made['probes'])

    @jax.jit
    def by_arrays(currents):
        """The same network of functions, with each signal a variable of its own."""
        neurons = functools.partial(lif, implementation=implementation)

        def second(current, emitted):
            return jnp.sum(UPSTREAM * (neurons(current, 1.0, scale=1.4)[0] + emitted))

        first, pull = jax.vjp(lambda c: neurons(c, 1.0, scale=0.7, time_steps=4)[0], currents)
        by_current, by_spikes = jax.grad(second, argnums=(0, 1))(1.5 * first, jnp.zeros_like(first))
        return {
            'first': {'probe_currents': pull(1.5 * by_current)[0], 'probe_spikes': 1.5 * by_current},
            'second': {'probe_currents': by_current, 'probe_spikes': by_spikes},
        }

    spikes, probes, gradients = by_probes(currents)
    np.testing.assert_array_equal(spikes, jax.jit(network.apply)(variables, currents))
    expected = by_arrays(currents)
    assert jax.tree.structure(probes) == jax.tree.structure(gradients) == jax.tree.structure(expected)
    for probe, gradient, right in zip(*map(jax.tree.leaves, (probes, gradients, expected)), strict=True):
        np.testing.assert_array_equal(probe, np.zeros(right.shape))
        assert np.abs(right).max() > 0.01
        np.testing.assert_allclose(gradient, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', ['layer', 'adapted'])
def test_a_probe_of_a_sum_is_of_the_currents_after_the_norm(kind):
    layer = LAYERS[kind]
    terms = [Normalised(jnp.asarray(VALUES), MAPS), jnp.asarray(VALUES)]
    variables = layer.init(jax.random.key(0), VALUES)

    @jax.jit
    def run(terms):
        spikes, made = layer.apply(variables, terms, mutable=['probes'])
        loss = lambda probes, terms: jnp.sum(UPSTREAM * layer.apply({**variables, 'probes': probes}, terms))
        return spikes, jax.grad(loss, argnums=(0, 1))(made['probes'], terms)

    spikes, (gradients, (_, by_plain_term)) = run(terms)
    np.testing.assert_array_equal(spikes, jax.jit(layer.apply)(variables, terms))
    np.testing.assert_allclose(gradients['probe_currents'], by_plain_term, rtol=1e-6)
    np.testing.assert_array_equal(gradients['probe_spikes'], UPSTREAM)
