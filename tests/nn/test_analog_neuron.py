"""Neurons of ANNs, and those that take their place, against float64 numpy written from the equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from cpng_jax.models.blocks import unit_of
from cpng_jax.nn.analog_neuron import QCFS, ReLU, qcfs
from cpng_jax.nn.layers import Bias
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.soft_reset import SoftResetIF, soft_reset_if


def in_numpy(x: np.ndarray, threshold: float, levels: int) -> np.ndarray:
    """Bu et al. (2022), Eq. 15, in the order of their code."""
    return threshold * np.floor(levels * np.clip(x / threshold, 0, 1) + 0.5) / levels


def integrate(currents: np.ndarray, v: float, shift: float, start: np.ndarray) -> np.ndarray:
    """Answers of integrate-and-fire neurons that subtract their threshold, step by step."""
    m, answers = np.array(start, np.float64), []
    for current in currents:
        m = m + current + shift
        answers.append(v * (m >= v))
        m = m - answers[-1]
    return np.stack(answers)


@pytest.mark.parametrize('levels', [1, 4, 8])
def test_qcfs_is_the_equation(levels: int) -> None:
    x = np.linspace(-2, 5, 101)
    np.testing.assert_allclose(qcfs(x, jnp.float32(3.0), levels), in_numpy(x, 3.0, levels), atol=1e-6)


def test_the_gradient_of_qcfs_is_as_published() -> None:
    x, threshold = jnp.array([-1.0, 0.0, 0.3, 1.9, 2.0, 5.0]), 2.0
    by_x = jax.vmap(jax.grad(lambda x: qcfs(x, threshold, 4)))(x)
    np.testing.assert_array_equal(by_x, [0, 0, 1, 1, 0, 0])
    by_threshold = jax.vmap(jax.grad(lambda t, x: qcfs(x, t, 4)), (None, 0))(threshold, x)
    inside = (in_numpy(np.asarray(x), threshold, 4) - x) / threshold
    np.testing.assert_allclose(by_threshold, [0, 0, inside[2], inside[3], 1, 1], rtol=1e-6)


def test_the_gradient_of_qcfs_by_its_threshold_sums_over_all_that_shares_it() -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32) * 2
    one = jax.vmap(jax.grad(lambda t, x: qcfs(x, t, 4)), (None, 0))(1.5, x.ravel())
    whole = jax.grad(lambda t: jnp.sum(qcfs(x, t, 4)))(jnp.float32(1.5))
    assert whole.shape == () and np.isclose(whole, np.sum(one), rtol=1e-5)


def test_qcfs_needs_a_level() -> None:
    with pytest.raises(ValueError, match='levels must be at least 1, got 0'):
        qcfs(jnp.ones(2), 1.0, 0)


# A threshold of 1 and levels that are powers of two: all sums below are exact.
@given(st.sampled_from([1, 4, 16]), st.lists(st.integers(-64, 128), min_size=8, max_size=8))
def test_at_as_many_steps_as_levels_spikes_say_what_qcfs_does(levels: int, numerators: list[int]) -> None:
    x = jnp.asarray(numerators, jnp.float32) / 64
    answers = soft_reset_if(x[None], 1.0, start=0.5, time_steps=levels).answers
    np.testing.assert_array_equal(jnp.mean(answers, axis=0), qcfs(x, 1.0, levels))


@pytest.mark.parametrize('constant', [True, False])
def test_soft_reset_is_the_equation(constant: bool) -> None:
    rng = np.random.default_rng(1)
    steps, shape = 7, (2, 3, 4)
    currents = rng.normal(0.3, 1, (1 if constant else steps, *shape)).astype(np.float32)
    start = rng.normal(size=(1, *shape[1:])).astype(np.float32)
    ran = soft_reset_if(currents, 1.3, shift=0.1, start=start, time_steps=steps)
    expected = integrate(np.broadcast_to(currents, (steps, *shape)), 1.3, 0.1, np.broadcast_to(start, shape))
    np.testing.assert_allclose(ran.answers, expected, atol=1e-6)


@given(st.sampled_from([1, 5, 12]), st.floats(0.25, 4), st.floats(-3, 6), st.floats(0, 1))
def test_nothing_that_comes_in_is_lost(steps: int, v: float, current: float, start: float) -> None:
    # What was answered, and what is left: all that has come in.
    ran = soft_reset_if(jnp.full((1, 1), current), v, start=start * v, time_steps=steps)
    left = ran.potentials[-1] - ran.answers[-1]
    np.testing.assert_allclose(jnp.sum(ran.answers, 0) + left, steps * current + start * v, rtol=1e-4, atol=1e-4)


def test_gradients_of_soft_reset_are_those_of_the_unrolled_equation() -> None:
    rng = np.random.default_rng(2)
    currents, weight = rng.normal(0.4, 0.8, (4, 6)), rng.normal(size=(4, 6))
    v, beta = 0.9, 1.0
    # Backwards by hand: o = H(z), z = m / v - 1, f the triangle; the reset subtracts v times o, whose o is constant.
    m, fired, before = np.zeros(6), [], []
    for current in currents:
        m = m + current
        before.append(m)
        fired.append(m >= v)
        m = m - v * fired[-1]
    d_m, d_v, d_currents = np.zeros(6), 0.0, np.zeros_like(currents)
    for t in reversed(range(4)):
        z = before[t] / v - 1
        through = weight[t] * v * beta * np.maximum(1 - beta * np.abs(z), 0)  # by z, of the answer v * o
        d_v += np.sum(weight[t] * fired[t]) - np.sum(d_m * fired[t]) - np.sum(through * before[t] / v**2)
        d_m = d_m + through / v
        d_currents[t] = d_m

    def loss(currents: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(weight * soft_reset_if(currents, v, beta=beta).answers)

    got = jax.grad(loss, (0, 1))(jnp.asarray(currents, jnp.float32), jnp.float32(v))
    np.testing.assert_allclose(got[0], d_currents, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1], d_v, rtol=1e-4)


def test_layers_of_an_ann_write_means_where_they_are_asked_for() -> None:
    x = jnp.array([[[-1.0, 2.0, 9.0]]])
    for layer, expected in ((ReLU(), [0.0, 2.0, 9.0]), (QCFS(), [0.0, 2.0, 8.0])):
        variables = layer.init(jax.random.key(0), x)
        assert not {'surrogate', 'activations'} & variables.keys()
        answers, found = layer.apply(variables, x, mutable=['activations', 'mean_currents'])
        np.testing.assert_array_equal(answers[0, 0], expected)
        np.testing.assert_array_equal(found['activations']['activations'][0], expected)
        np.testing.assert_array_equal(found['mean_currents']['mean_currents'], x[0])


def test_a_layer_that_spikes_in_its_place_is_measured_like_lif() -> None:
    x = jnp.asarray(np.random.default_rng(3).normal(0.5, 1, (1, 2, 4, 4, 3)), jnp.float32)
    layer = SoftResetIF()
    variables = layer.init(jax.random.key(0), x, 5)
    assert {name: leaf.shape for name, leaf in variables['params'].items()} == {
        'threshold': (),
        'shift': (3,),
        'start': (1, 4, 4, 3),
    }
    asked = ['membrane', 'potentials', 'firing_rate', 'activations']
    params = variables['params'] | {'threshold': jnp.float32(2.0)}
    answers, found = layer.apply({**variables, 'params': params}, x, 5, mutable=asked)
    expected = integrate(np.broadcast_to(x, (5, *x.shape[1:])), 2.0, 0.0, np.zeros(x.shape[1:]))
    np.testing.assert_allclose(answers, expected, atol=1e-6)
    np.testing.assert_allclose(found['activations']['activations'], expected.mean(0), atol=1e-6)
    assert np.isclose(found['firing_rate']['firing_rate'], np.mean(expected > 0))
    near = found['potentials']['potentials']
    np.testing.assert_array_equal(near >= layer.v_th, expected > 0)
    np.testing.assert_allclose(found['membrane']['membrane'].mean, np.mean(near), rtol=1e-5)


def test_a_state_belongs_to_neurons_that_start_at_rest() -> None:
    with pytest.raises(ValueError, match='takes and gives no state'):
        SoftResetIF().init(jax.random.key(0), jnp.zeros((1, 2, 3)), initial_state=jnp.zeros((2, 3)))


def test_what_is_no_spike_is_not_kept_as_a_byte() -> None:
    assert unit_of(LIF) == unit_of(functools.partial(LIF, tau=1.0)) == 1.0
    assert unit_of(ReLU) is unit_of(functools.partial(SoftResetIF)) is unit_of(print) is None


@pytest.mark.parametrize('learnt', [True, False])
def test_a_bias_in_the_place_of_a_norm(learnt: bool) -> None:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return Bias(learnt, name='norm').deferred(x, train=False).array()

    x = jnp.ones((1, 2, 3))
    variables = Layer().init(jax.random.key(0), x)
    if learnt:
        variables = {'params': {'norm': {'bias': jnp.array([1.0, 2.0, 3.0])}}}
    np.testing.assert_array_equal(Layer().apply(variables, x)[0, 0], [2, 3, 4] if learnt else [1, 1, 1])
