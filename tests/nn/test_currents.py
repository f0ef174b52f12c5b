"""Mean and variance of currents by the norm that has made them, against float64 numpy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpng_jax.nn.currents import as_terms, currents_stats, stats_by_norm
from cpng_jax.nn.layers import TdBN
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.terms import Affine, Normalised

f32: Any = functools.partial(np.asarray, dtype=np.float32)
SCALE, BIAS = f32([0.5, -2.0, 1.5, 0.0]), f32([0.1, -0.3, 0.0, 7.0])
SHAPES = [(4, 3, 4), (5, 2, 3, 3, 4), (1, 6, 4)]


def values(shape, constant=False):
    """Of channels far apart; the third may be the same number everywhere."""
    x = np.random.default_rng(0).normal(size=shape) * [1, 30, 0.01, 2] + [0, 5, -40, 100]
    x[..., 2] = -40 if constant else x[..., 2]
    return f32(x)


def normalised(x, train=True, **settings):
    layer = TdBN(**settings)
    variables = layer.init(jax.random.key(0), x, train=True, method=layer.deferred)
    variables = {**variables, 'params': {'scale': SCALE, 'bias': BIAS}}
    return layer.apply(variables, x, train=train, method=layer.deferred, mutable=['batch_stats'])[0]


def in_float64(x, v_th=1.0, alpha=1.0, epsilon=1e-5):
    x = np.float64(x)
    axes = tuple(range(x.ndim - 1))
    return alpha * v_th * SCALE * (x - x.mean(axes)) / np.sqrt(x.var(axes) + epsilon) + np.float64(BIAS)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('constant', [False, True])
@pytest.mark.parametrize('per_channel', [False, True])
def test_what_a_norm_gives_its_currents_need_not_be_measured(shape, constant, per_channel):
    settings = {'v_th': 0.7, 'alpha': 0.5**0.5}
    x = values(shape, constant)
    term = normalised(x, **settings)
    whole = in_float64(x, **settings)
    axes = tuple(range(x.ndim - per_channel))
    for stats in (
        stats_by_norm(term, as_terms(term), per_channel),
        currents_stats([term], as_terms(term), per_channel),
    ):
        assert stats is not None
        np.testing.assert_allclose(stats.mean, whole.mean(axes), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(stats.variance, whole.var(axes), rtol=2e-4, atol=1e-6)
        assert stats.mean.dtype == stats.variance.dtype == jnp.float32


def test_it_is_in_bfloat16_what_the_norm_has_measured():
    x = jnp.asarray(values((4, 3, 4)), jnp.bfloat16)
    term = normalised(x)
    stats = stats_by_norm(term, as_terms(term))
    whole = in_float64(x)
    assert stats is not None
    np.testing.assert_allclose(stats, [whole.mean(), whole.var()], rtol=1e-4)


@pytest.mark.parametrize('what', ['eval', 'two terms', 'a probe', 'an array', 'no norm', 'another map'])
def test_where_no_norm_has_measured_these_currents_they_are_measured(what):
    x = values((4, 3, 4))
    term = normalised(x, train=what != 'eval')
    currents: Any = {
        'two terms': [term, x],
        'an array': x,
        'no norm': Normalised(jnp.asarray(x), None),
        'another map': Normalised(jnp.asarray(x), Affine(SCALE, SCALE, BIAS)),
    }.get(what, term)
    terms = as_terms(currents)
    if what == 'a probe':
        terms = (*terms, Normalised(jnp.ones_like(x), None))
    assert stats_by_norm(currents, terms) is None
    whole = sum(
        np.float64(term.values)
        if term.affine is None
        else (np.float64(term.values) - term.affine.mean) * term.affine.gain + term.affine.bias
        for term in terms
    )
    stats = currents_stats(currents, terms)
    np.testing.assert_allclose(stats, [np.mean(whole), np.var(whole)], rtol=1e-5)


def test_no_gradient_flows_through_them():
    def variance(x):
        term = normalised(x)
        return sum(jnp.sum(leaf) for leaf in currents_stats(term, as_terms(term)))

    np.testing.assert_array_equal(jax.grad(variance)(jnp.asarray(values((4, 3, 4)))), 0)


@pytest.mark.parametrize('per_channel', [False, True])
def test_neurons_report_them(per_channel):
    x = values((4, 3, 4))
    layer = LIF(per_channel=per_channel)
    variables = layer.init(jax.random.key(0), x)
    program = lambda currents: str(
        jax.make_jaxpr(lambda: layer.apply(variables, currents, mutable=['membrane', 'currents']))()
    )
    # Nothing but the potentials is measured in the loop.
    by_norm, by_loop = (program(currents).count('reduce_sum') for currents in (normalised(x), [normalised(x), 0 * x]))
    assert by_norm < by_loop
    found = [
        layer.apply(variables, currents, mutable=['currents'])[1]['currents']['currents']
        for currents in (normalised(x), [normalised(x), 0 * x])
    ]
    # The norm takes a rounded 40 off numbers that differ by 0.01, as is measured, and is meant to take all of it off.
    for mine, measured in zip(*found, strict=True):
        np.testing.assert_allclose(mine, measured, rtol=1e-4, atol=1e-3)
