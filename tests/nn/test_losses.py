"""The losses against float64 numpy written from the equations."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from cpng_jax.nn.losses import (
    mean_output_cross_entropy,
    sum_output_cross_entropy,
    temporal_efficient_training,
)

f32: Any = functools.partial(np.asarray, dtype=np.float32)
LABELS: Any = np.array([0, 3, 1])


def make_logits(time_steps):
    return np.random.default_rng(time_steps).normal(0, 3, (time_steps, 3, 4))


def eq_5(logits, labels):
    out = np.mean(np.asarray(logits, np.float64), axis=0)
    return -log_softmax(out, axis=-1)[np.arange(len(labels)), labels]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('time_steps', [1, 5])
def test_value_is_eq_5_in_float32(time_steps, dtype):
    logits = jnp.asarray(make_logits(time_steps), dtype)
    loss = mean_output_cross_entropy(logits, jnp.asarray(LABELS))
    assert loss.shape == (3,)
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss, eq_5(logits, LABELS), rtol=1e-5)


def test_gradient():
    logits = make_logits(5)
    gradient = jax.grad(lambda x: mean_output_cross_entropy(x, LABELS).sum())(f32(logits))
    expected = (softmax(logits.mean(0), axis=-1) - np.eye(4)[LABELS]) / 5
    np.testing.assert_allclose(gradient, np.broadcast_to(expected, logits.shape), rtol=1e-5, atol=1e-7)


def test_large_outputs_do_not_overflow():
    logits = f32([[[1e4, -1e4]]])
    np.testing.assert_array_equal(mean_output_cross_entropy(logits, LABELS[:1]), [0])
    np.testing.assert_array_equal(mean_output_cross_entropy(logits, LABELS[2:]), [2e4])


def test_uniform_outputs_cost_log_classes():
    loss = jax.jit(mean_output_cross_entropy)(np.zeros((2, 3, 10), np.float32), LABELS)
    np.testing.assert_allclose(loss, np.full(3, np.log(10)), rtol=1e-6)


def make_distribution(classes=4):
    return np.random.default_rng(1).dirichlet(np.ones(classes), size=3)


def test_distributions_are_weighted_sums_of_classes():
    logits, shares = make_logits(5), make_distribution()
    expected = sum(shares[:, label] * eq_5(logits, np.full(3, label)) for label in range(4))
    np.testing.assert_allclose(mean_output_cross_entropy(f32(logits), f32(shares)), expected, rtol=1e-5)
    one_hot = mean_output_cross_entropy(f32(logits), f32(np.eye(4)[LABELS]))
    np.testing.assert_allclose(one_hot, eq_5(logits, LABELS), rtol=1e-5)


def test_the_loss_of_the_sum_is_that_of_the_mean_times_the_steps():
    logits = make_logits(5)
    for labels in (LABELS, f32(make_distribution())):
        loss, expected = (
            sum_output_cross_entropy(f32(logits), labels),
            mean_output_cross_entropy(f32(5 * logits), labels),
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    gradient = jax.grad(lambda x: sum_output_cross_entropy(x, LABELS).sum())(f32(logits))
    expected = softmax(logits.sum(0), axis=-1) - np.eye(4)[LABELS]
    np.testing.assert_allclose(gradient, np.broadcast_to(expected, logits.shape), rtol=1e-5, atol=1e-6)


def tet(logits, shares, weight, target):
    """Deng et al. (2022): the mean over time of the cross entropies, and of the squares about the target."""
    logits = np.asarray(logits, np.float64)
    cross_entropy = -np.mean(np.sum(shares * log_softmax(logits, axis=-1), axis=-1), axis=0)
    return (1 - weight) * cross_entropy + weight * np.mean((logits - target) ** 2, axis=(0, 2))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize(('weight', 'target'), [(1e-3, 1.0), (0.3, 0.5), (0.0, 1.0), (1.0, 2.0)])
def test_tet_is_its_formula_in_float32(weight, target, dtype):
    logits = jnp.asarray(make_logits(5), dtype)
    for labels, shares in [(jnp.asarray(LABELS), np.eye(4)[LABELS]), (f32(make_distribution()), make_distribution())]:
        loss = temporal_efficient_training(logits, labels, weight=weight, target=target)
        assert loss.shape == (3,)
        assert loss.dtype == np.float32
        np.testing.assert_allclose(loss, tet(logits, shares, weight, target), rtol=1e-5)


def test_tet_gradient():
    logits, weight, target = make_logits(5), 0.2, 0.7
    gradient = jax.grad(lambda x: temporal_efficient_training(x, LABELS, weight=weight, target=target).sum())(
        f32(logits)
    )
    cross_entropy = (softmax(logits, axis=-1) - np.eye(4)[LABELS]) / 5
    expected = (1 - weight) * cross_entropy + weight * 2 * (logits - target) / 20
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_with_one_time_step_and_no_pull_tet_is_eq_5():
    logits = f32(make_logits(1))
    loss = temporal_efficient_training(logits, LABELS, weight=0.0, target=1.0)
    np.testing.assert_allclose(loss, mean_output_cross_entropy(logits, LABELS), rtol=1e-6)


@pytest.mark.parametrize('weight', [-0.1, 1.5, float('nan')])
def test_a_weight_of_tet_out_of_range_is_named(weight):
    with pytest.raises(ValueError, match=rf'must lie in 0 to 1, got {weight}'):
        temporal_efficient_training(f32(make_logits(2)), LABELS, weight=weight, target=1.0)


@pytest.mark.parametrize(
    ('logits', 'labels'),
    [((3, 4), (3,)), ((5, 3, 4), (4,)), ((5, 3, 4), (5,)), ((5, 3, 4), (4, 3)), ((5, 3, 4), ()), ((5, 3, 2, 4), (3,))],
)
@pytest.mark.parametrize(
    'loss',
    [
        mean_output_cross_entropy,
        sum_output_cross_entropy,
        functools.partial(temporal_efficient_training, weight=0.1, target=1.0),
    ],
)
def test_errors(loss, logits, labels):
    with pytest.raises(ValueError, match=r'logits must be \[T, B, classes\] and labels \[B\] or') as error:
        loss(jnp.ones(logits), jnp.ones(labels, 'int32'))
    assert f'{logits} and {labels}' in str(error.value)
