"""A width for each channel: statistics, gradients and Algorithm 1 against each channel taken by itself."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpng_jax.control.layer_tree import by_layer
from cpng_jax.nn.neuron import lif
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import MembraneStats, is_stats, membrane_stats
from cpng_jax.nn.terms import Affine, Normalised
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import loop
from cpng_jax.training.setup import build
from tests.equations import eq_2, eq_7_and_8
from tests.runs import epoch_rows, final_state
from tests.training.test_step import batch, make

f32: Any = functools.partial(np.asarray, dtype=np.float32)
CHANNELS = functools.partial(LIF, per_channel=True)


@pytest.mark.parametrize('shape', [(3, 4, 5), (3, 4, 3, 2, 5)], ids=['dense', 'maps'])
@pytest.mark.parametrize('offset', [0, 100], ids=['near', 'far'])
def test_each_channel_is_measured_by_itself(shape, offset):
    currents = f32(np.random.default_rng(0).normal(0.5, 1, shape) * np.arange(1, 6)) - f32(offset)
    layer = LIF(tau=0.25, beta_init=0.5, per_channel=True)
    variables = layer.init(jax.random.key(0), currents)
    assert variables['surrogate']['beta'].shape == (5,)
    assert variables['surrogate']['beta'].dtype == np.float32
    assert (variables['surrogate']['beta'] == 0.5).all()
    _, updates = layer.apply(variables, currents, mutable=['membrane', 'firing_rate'])
    stats, (u, s) = updates['membrane']['membrane'], eq_2(currents, 0.25, 1)
    assert isinstance(stats, MembraneStats)
    np.testing.assert_allclose(stats.mean, u.reshape(-1, 5).mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stats.variance, u.reshape(-1, 5).var(0), rtol=1e-4)
    np.testing.assert_allclose(updates['firing_rate']['firing_rate'], s.reshape(-1, 5).mean(0), atol=1e-6)
    _, alone = lif(currents, f32(0.5), tau=0.25, per_channel=True)
    np.testing.assert_array_equal(alone.mean, stats.mean)


def test_all_channels_together_are_the_layer():
    """The law of total variance, over channels of one size."""
    u = f32(np.random.default_rng(1).normal(3, 2, (4, 5, 6)) * np.arange(1, 7))
    each, whole = membrane_stats(u, per_channel=True), membrane_stats(u)
    assert each.mean.shape == each.variance.shape == (6,)
    np.testing.assert_allclose(np.mean(each.mean), whole.mean, rtol=1e-5)
    np.testing.assert_allclose(np.mean(each.variance) + np.var(each.mean), whole.variance, rtol=1e-5)


def test_the_gradient_of_a_channel_has_its_width():
    rng = np.random.default_rng(2)
    currents, upstream = (f32(rng.integers(-16, 16, (4, 3, 2)) / 8) for _ in range(2))
    layer, beta = LIF(per_channel=True), f32([0.5, 2])
    loss = lambda c: jnp.sum(upstream * layer.apply({'surrogate': {'beta': beta}}, c))
    gradient = jax.grad(loss)(currents)
    for channel in range(2):
        u, s = eq_2(currents[..., channel], 0.5, 1)
        expected, *_ = eq_7_and_8(upstream[..., channel], u, s, beta[channel], 0.5, 1, 'triangular')
        np.testing.assert_allclose(gradient[..., channel], expected, rtol=1e-5, atol=1e-5)


def test_the_channels_are_those_of_the_first_term():
    values = f32(np.ones((2, 3, 4, 4, 7)))
    scale = f32(np.ones(7))
    for currents in (values, Normalised(values, None), [Normalised(values, Affine(scale, scale, scale)), values]):
        assert LIF(per_channel=True).init(jax.random.key(0), currents)['surrogate']['beta'].shape == (7,)


@pytest.mark.trains
def test_equal_widths_train_like_one_of_the_layer():
    *_, state, step = make(neuron=CHANNELS)
    *_, plain, plain_step = make()
    for seed in range(2):
        state, plain = step(state, batch(seed)), plain_step(plain, batch(seed))
    chex.assert_trees_all_close(state.params, plain.params, rtol=1e-4, atol=1e-6)
    rates = jax.tree.map(jnp.mean, state.epoch.firing_rate)
    chex.assert_trees_all_close(rates, plain.epoch.firing_rate, rtol=1e-6)
    for each, whole in zip(
        *(jax.tree.leaves(s.epoch.observed['membrane'], is_leaf=is_stats) for s in (state, plain)), strict=True
    ):
        np.testing.assert_allclose(np.mean(each.mean), whole.mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.mean(each.variance) + np.var(each.mean), whole.variance, rtol=1e-4)


@pytest.mark.trains
@pytest.mark.parametrize('options', [{}, {'accumulate': 4}, {'pool_statistics': True}], ids=str)
def test_cpng_sets_each_channel(options):
    *_, state, step = make(neuron=CHANNELS, every_batch=True, **options)
    for seed in range(4):
        state = step(state, batch(seed))
    beta = state.surrogate['conv02']['lif']['beta']
    assert beta.shape == state.control.chi_recorder['conv02']['lif']['beta'].shape == (6,)
    assert len(set(np.asarray(beta).tolist())) > 1


@pytest.mark.trains
def test_a_run_reports_the_mean_of_the_channels_and_goes_on(tmp_path, tiny_config):
    tiny_config.cpng.per = 'channel'
    tiny_config.epochs = 2
    loop.run(tiny_config, tmp_path)
    state = final_state(tiny_config, tmp_path)
    betas = {path: leaf for path, leaf in state.items() if path.startswith('.surrogate')}
    assert [leaf.shape for leaf in betas.values()] == [(4,), (8,)]
    row = epoch_rows(tmp_path)[-1]
    np.testing.assert_allclose(list(row['beta'].values()), [leaf.mean() for leaf in betas.values()], rtol=1e-6)
    assert all(0 < value < 1 for value in row['chi'].values())


def test_the_number_of_a_layer_is_that_of_its_finite_channels():
    tree = {'a': {'beta': f32([1, np.inf, 3])}, 'b': {'beta': f32(np.inf)}, 'c': {'beta': f32([np.nan, np.nan])}}
    numbers = by_layer(tree)
    assert numbers['a'] == 2
    assert np.isinf(numbers['b'])
    assert np.isnan(numbers['c'])


def test_what_cannot_measure_channels_says_so(tiny_config):
    tiny_config.cpng.per = 'channel'
    tiny_config.cpng.chi = 'counted'
    with pytest.raises(UserError, match=r'config\.cpng\.chi is counted and config\.cpng\.per is channel'):
        build(tiny_config)
    tiny_config.cpng.chi = 'gaussian'
    tiny_config.neuron.implementation = 'pallas'
    with pytest.raises(UserError, match=r'config\.neuron\.implementation is pallas, whose kernels'):
        build(tiny_config)
    with pytest.raises(ValueError, match=r"implementation is 'pallas', expected 'scan'"):
        lif(f32(np.ones((2, 3))), 1.0, implementation='pallas', per_channel=True)
