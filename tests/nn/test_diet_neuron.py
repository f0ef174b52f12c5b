"""Neurons of Diet-SNN against their equations, unrolled by hand in float64 numpy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpng_jax.control.effective_domain import chi
from cpng_jax.nn.diet_neuron import DietLIF, diet_lif
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import membrane_stats
from cpng_jax.runtime import arrays
from cpng_jax.training import loop
from tests.equations import eq_3_and_4
from tests.runs import epoch_rows

f32: Any = functools.partial(np.asarray, dtype=np.float32)
SHAPE = (5, 3, 4)


def draw(seed, shape=SHAPE):
    return f32(np.random.default_rng(seed).normal(0.4, 1.0, shape))


def forward(currents, leak, threshold):
    """m before the reset, m before the step, and spikes, `[T, ...]` each."""
    left, rows = np.zeros(currents.shape[1:]), []
    for current in np.float64(currents):
        m = leak * left + current
        o = np.float64(m / threshold - 1 >= 0)
        rows.append((m, left, o))
        left = m - threshold * o
    return [np.stack(column) for column in zip(*rows, strict=True)]


def backward(upstream, currents, leak, threshold, beta, scale, shape, detach_reset):
    """Gradients of sum(upstream * o) by the currents, the leak and the threshold."""
    m, before, o = forward(currents, leak, threshold)
    d_currents, d_leak, d_threshold, later = np.zeros_like(m), 0.0, 0.0, np.zeros(m.shape[1:])
    for t in reversed(range(len(m))):
        # later is the gradient by what the reset leaves, m - threshold * o.
        d_threshold -= np.sum(later * o[t])
        d_o = upstream[t] - (0 if detach_reset else threshold * later)
        that = scale * eq_3_and_4(m[t] / threshold - 1, beta, shape)
        d_threshold += np.sum(d_o * that * -m[t] / threshold**2)
        d_m = later + d_o * that / threshold
        d_currents[t] = d_m
        d_leak += np.sum(d_m * before[t])
        later = d_m * leak
    return d_currents, d_leak, d_threshold


@given(seed=st.integers(0, 10_000), leak=st.floats(0, 1), threshold=st.floats(0.3, 2))
def test_spikes_and_potentials_are_those_of_the_equations(seed, leak, threshold):
    currents = draw(seed)
    m, _, o = forward(currents, leak, threshold)
    if np.abs(m / threshold - 1).min() < 1e-4:
        return  # rounding may tell a spike
    ran = jax.jit(diet_lif)(currents, 1.0, leak, threshold)
    np.testing.assert_array_equal(ran.spikes, o)
    np.testing.assert_allclose(ran.z, m / threshold - 1, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ran.state, m[-1] - threshold * o[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('detach_reset', [True, False])
@pytest.mark.parametrize('shape', ['triangular', 'arctan'])
def test_gradients_by_currents_leak_and_threshold_are_those_unrolled_by_hand(shape, detach_reset):
    currents, upstream, leak, threshold, beta, scale = draw(1), np.float64(draw(2)), 0.9, 0.7, 1.0, 0.3
    options = dict(surrogate=shape, detach_reset=detach_reset, scale=scale)
    loss = lambda *by: jnp.sum(diet_lif(by[0], beta, *by[1:], **options).spikes * f32(upstream))
    gradients = jax.grad(loss, argnums=(0, 1, 2))(currents, jnp.float32(leak), jnp.float32(threshold))
    expected = backward(upstream, currents, leak, threshold, beta, scale, shape, detach_reset)
    for gradient, by_hand in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, by_hand, rtol=1e-4, atol=1e-5)


def test_the_smooth_part_agrees_with_finite_differences():
    """While no spike is added or lost, what is left of the potentials is smooth in currents, leak and threshold."""
    currents, weights = draw(3), draw(4, SHAPE[1:])
    at = [np.float64(currents), 0.8, 0.9]
    left = lambda c, leak, v: np.sum(weights * (lambda m, _, o: m[-1] - v * o[-1])(*forward(c, leak, v)))
    assert forward(*at)[2].any()
    loss = lambda c, leak, v: jnp.sum(diet_lif(c, 1.0, leak, v, detach_reset=True).state * weights)
    gradients = jax.grad(loss, argnums=(0, 1, 2))(*map(f32, at))
    step = 1e-6
    for index, gradient in enumerate(gradients):
        direction = np.random.default_rng(index).normal(size=np.shape(at[index]))
        moved = lambda sign: [x + sign * step * direction if i == index else x for i, x in enumerate(at)]  # noqa: B023
        for sign in (1, -1):
            np.testing.assert_array_equal(forward(*moved(sign))[2], forward(*at)[2])
        slope = (left(*moved(1)) - left(*moved(-1))) / (2 * step)
        assert float(np.sum(gradient * direction)) == pytest.approx(slope, rel=1e-3)


def test_the_layer_learns_both_and_measures_z_at_v_th():
    layer, currents = DietLIF(tau=0.9, v_th=0.8, beta_init=1.3, scale_init=0.3), draw(5, (4, 50, 40))
    variables = layer.init(jax.random.key(0), currents)
    assert jax.tree.map(jnp.shape, variables['surrogate']) == jax.tree.map(
        jnp.shape, LIF().init(jax.random.key(0), currents)['surrogate']
    )
    assert variables['params'] == {'leak': np.float32(0.9), 'threshold': np.float32(0.8)}
    variables = {**variables, 'params': {'leak': jnp.float32(0.7), 'threshold': jnp.float32(1.1)}}
    spikes, seen = layer.apply(variables, currents, mutable=['membrane', 'firing_rate', 'potentials', 'currents'])
    m, _, o = forward(currents, 0.7, 1.1)
    assert np.mean(spikes != o) < 1e-3  # where rounding tells a spike
    near = seen['potentials']['potentials']
    np.testing.assert_allclose(membrane_stats(near), seen['membrane']['membrane'], rtol=1e-6)
    np.testing.assert_allclose(membrane_stats(currents), seen['currents']['currents'], rtol=1e-5)
    assert float(seen['firing_rate']['firing_rate']) == pytest.approx(o.mean(), abs=1e-3)
    share = np.mean(np.abs(m / 1.1 - 1) < 1 / 1.3)
    assert np.mean(np.abs(near - 0.8) < 1 / 1.3) == pytest.approx(share, abs=1e-3)
    assert 0 < float(chi(seen['membrane']['membrane'], 1.3, v_th=0.8)) < 1


def test_chunks_that_hand_their_state_on_are_the_whole():
    layer, currents = DietLIF(tau=0.9, v_th=0.8), draw(6)
    variables = layer.init(jax.random.key(0), currents)
    whole, end = layer.apply(variables, currents, return_state=True)
    first, state = layer.apply(variables, currents[:2], return_state=True)
    second, last = layer.apply(variables, currents[2:], initial_state=state, return_state=True)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    np.testing.assert_allclose(last, end, rtol=1e-6)
    image = draw(7, (1, *SHAPE[1:]))
    np.testing.assert_array_equal(layer.apply(variables, image, 4), layer.apply(variables, np.repeat(image, 4, 0)))


@pytest.mark.trains
def test_a_run_learns_leaks_and_thresholds(tmp_path, tiny_config):
    tiny_config.remat = 'block'
    tiny_config.model.update({'dropout': 0.1, 'bias': False})
    tiny_config.neuron.update({'kind': 'diet', 'tau': 1.0, 'v_th': 0.5, 'detach_reset': True})
    tiny_config.optim.update({'name': 'amsgrad', 'learning_rate': 0.01, 'weight_decay': 0.0})
    tiny_config.loss.name = 'sum_output'
    tiny_config.cpng.enabled = False
    result = loop.run(tiny_config, tmp_path)
    assert result['test_accuracy'] > 0.5
    assert all(0 < value < 1 for value in epoch_rows(tmp_path)[-1]['chi'].values())
    params = arrays.read_checkpoint(tmp_path, ('params',), 'latest').arrays
    leaks, thresholds = ([params[f'params/conv0{n}/lif/{name}'] for n in (1, 2)] for name in ('leak', 'threshold'))
    assert all(leak <= 1 for leak in leaks)
    assert any(leak < 0.999 for leak in leaks)
    assert all(abs(threshold - 0.5) > 1e-3 for threshold in thresholds)
    assert not any(name.endswith('dense/bias') for name in params)
