"""Neurons of DS-ATGO against Eq. 5 and 7 of that paper, and Eq. 2, 7 and 8 of ours, in float64 numpy."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpng_jax.analysis import membrane
from cpng_jax.analysis.run import Run
from cpng_jax.control.effective_domain import chi
from cpng_jax.nn.adaptive_neuron import AdaptedLIF, adapted_lif
from cpng_jax.nn.neuron import lif, lif_reference
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import membrane_stats
from cpng_jax.training import loop
from tests.equations import eq_3_and_4
from tests.runs import epoch_rows

f32: Any = functools.partial(np.asarray, dtype=np.float32)


def equations(currents, tau, v_th):
    """Potentials, spikes, thresholds (Eq. 5) and widths as shares of that at the start (Eq. 7, both cases)."""
    kept, rows = np.zeros(currents.shape[1:]), []
    for current in np.float64(currents):
        u = tau * kept + current
        threshold = u.mean() + u.std()
        width = 1 - np.tanh(v_th - threshold) if threshold <= v_th else 1 + np.tanh(threshold - v_th)
        s = np.float64(u >= threshold)
        kept = u * (1 - s)
        rows.append((u, s, threshold, width))
    return [np.stack(column) for column in zip(*rows, strict=True)]


@jax.jit
def adapted(currents, beta, tau, v_th):
    return adapted_lif(currents, beta, tau=tau, v_th=v_th)


def draw(seed, shape=(4, 3, 5)):
    return f32(np.random.default_rng(seed).normal(0.3, 1.2, shape))


@given(seed=st.integers(0, 10_000), tau=st.floats(0, 1), v_th=st.floats(0.3, 2), beta=st.floats(0.3, 3))
def test_threshold_width_and_spikes_are_those_of_the_equations(seed, tau, v_th, beta):
    currents = draw(seed)
    spikes, near, thresholds = adapted(currents, beta, tau, v_th)
    u, s, expected, width = equations(currents, tau, v_th)
    if np.abs(u - expected[:, None, None]).min() < 1e-4:
        return  # rounding may tell a spike
    np.testing.assert_array_equal(spikes, s)
    np.testing.assert_allclose(thresholds, expected, rtol=1e-4, atol=1e-5)
    # Of `near`, the share within 1 / beta of v_th is that of the potentials within their own width of their threshold.
    distance = np.abs(u - expected[:, None, None]) * beta / width[:, None, None]
    clear = np.abs(distance - 1) > 1e-3
    np.testing.assert_array_equal((np.abs(near - v_th) * beta < 1)[clear], (distance < 1)[clear])


@pytest.mark.parametrize('detach_reset', [False, True])
@pytest.mark.parametrize('shape', ['triangular', 'rectangular', 'arctan'])
def test_gradients_are_those_of_the_equations(shape, detach_reset):
    currents, upstream, tau, v_th, beta, scale = draw(1), np.float64(draw(2)), 0.6, 0.8, 0.9, 1.3
    u, s, thresholds, width = equations(currents, tau, v_th)
    expected, later = np.zeros_like(u), 0.0
    for t in reversed(range(len(u))):
        d_s = upstream[t] + (0 if detach_reset else -later * tau * u[t])
        f = scale * eq_3_and_4(u[t] - thresholds[t], beta / width[t], shape)
        expected[t] = d_s * f + later * tau * (1 - s[t])
        later = expected[t]
    options = dict(tau=tau, v_th=v_th, surrogate=shape, detach_reset=detach_reset, scale=scale)
    gradient = jax.grad(lambda c: jnp.sum(adapted_lif(c, beta, **options).spikes * f32(upstream)))(currents)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_given_thresholds_are_taken():
    currents, v_th = draw(3), 0.7
    spikes, near, thresholds = adapted_lif(currents, 1.0, jnp.full(4, v_th), v_th=v_th)
    expected, stats = lif_reference(currents, 1.0, v_th=v_th)
    np.testing.assert_array_equal(spikes, expected)
    np.testing.assert_allclose(membrane_stats(near), stats, rtol=1e-5)
    np.testing.assert_array_equal(thresholds, np.full(4, v_th, np.float32))


def test_an_image_shown_at_every_step_is_given_once():
    image = draw(4, (1, 3, 5))
    once, often = adapted_lif(image, 1.0, time_steps=4), adapted_lif(np.repeat(image, 4, 0), 1.0)
    chex.assert_trees_all_equal(once, often)
    with pytest.raises(ValueError, match='currents must have 1 or 3 time steps, got 4'):
        adapted_lif(draw(4), 1.0, time_steps=3)


def test_the_layer_keeps_a_running_threshold_and_evaluates_with_it():
    layer, currents = AdaptedLIF(v_th=0.8, beta_init=1.3), draw(5)
    variables = layer.init(jax.random.key(0), currents)
    assert jax.tree.map(jnp.shape, variables['surrogate']) == jax.tree.map(
        jnp.shape, LIF().init(jax.random.key(0), currents)['surrogate']
    )
    np.testing.assert_allclose(variables['batch_stats']['threshold'], np.full(4, 0.8))
    collections = ['batch_stats', 'membrane', 'firing_rate', 'potentials']
    spikes, seen = layer.apply(variables, currents, mutable=collections)
    _, s, thresholds, _ = equations(currents, 0.5, 0.8)
    np.testing.assert_array_equal(spikes, s)
    np.testing.assert_allclose(seen['batch_stats']['threshold'], 0.9 * 0.8 + 0.1 * thresholds, rtol=1e-5)
    np.testing.assert_allclose(seen['firing_rate']['firing_rate'], s.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        membrane_stats(seen['potentials']['potentials']), seen['membrane']['membrane'], rtol=1e-6
    )
    # Nothing has run before: evaluation is that of the fixed threshold.
    np.testing.assert_array_equal(layer.apply(variables, currents), lif(currents, 1.0, v_th=0.8)[0])
    later = layer.apply({**variables, 'batch_stats': seen['batch_stats']}, currents)
    np.testing.assert_array_equal(later, adapted_lif(currents, 1.0, seen['batch_stats']['threshold'], v_th=0.8)[0])


def test_chi_is_that_of_the_width_and_the_threshold_of_the_step():
    rng = np.random.default_rng(6)
    currents = f32(rng.normal(0, 1.5, (3, 100, 400)))
    _, near, _ = adapted_lif(currents, 1.2, tau=0.0)
    u, _, threshold, width = equations(currents, 0.0, 1.0)
    share = np.mean(np.abs(u - threshold[:, None, None]) < width[:, None, None] / 1.2)
    assert float(chi(membrane_stats(near), 1.2)) == pytest.approx(share, abs=0.005)


@pytest.mark.trains
def test_a_run_with_adapted_neurons(tmp_path, tiny_config):
    tiny_config.neuron.kind = 'ds_atgo'
    tiny_config.cpng.enabled = False
    tiny_config.remat = 'block'
    result = loop.run(tiny_config, tmp_path)
    rows = epoch_rows(tmp_path)
    assert result['test_accuracy'] > 0.2
    assert set(rows[-1]['beta'].values()) == {1.0}
    # The threshold lies a standard deviation above the mean: about 16 % of potentials reach it.
    assert all(0.1 < rate < 0.25 for rate in rows[-1]['firing_rate'].values())
    assert all(0 < value < 1 for value in rows[-1]['chi'].values())
    run = Run(tmp_path)
    assert 'conv02/lif' in next(path for path in membrane.analyse(run) if path.suffix == '.md').read_text()
    threshold = np.asarray(run.state.batch_stats['conv02']['lif']['threshold'])
    assert threshold.shape == (2,)
    assert (threshold != 1).all()
