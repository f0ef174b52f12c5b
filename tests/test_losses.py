"""The loss of Eq. 5 against float64 numpy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from cpng_jax.losses import mean_output_cross_entropy

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


@pytest.mark.parametrize(
    ('logits', 'labels'),
    [((3, 4), (3,)), ((5, 3, 4), (4,)), ((5, 3, 4), (5,)), ((5, 3, 4), (3, 4)), ((5, 3, 4), ()), ((5, 3, 2, 4), (3,))],
)
def test_errors(logits, labels):
    with pytest.raises(ValueError, match=r'logits must be \[T, B, classes\] and labels \[B\], got .* and .*') as error:
        mean_output_cross_entropy(jnp.ones(logits), jnp.ones(labels, 'int32'))
    assert f'{logits} and {labels}' in str(error.value)
