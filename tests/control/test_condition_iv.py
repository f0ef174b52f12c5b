"""Herranz-Celotti and Rouat's Condition IV, set once before training."""

import functools
from typing import Any

import chex
import numpy as np
import pytest

from cpng_jax.control import rules
from cpng_jax.control.controller import Observed, Settings, Surrogates
from cpng_jax.nn.statistics import MembraneStats
from tests.equations import eq_3_and_4, expectations

f32: Any = functools.partial(np.asarray, dtype=np.float32)
# Mean and variance of the potentials, variance of the currents, firing rate.
LAYERS = {'conv01': (-0.1, 1.25, 1.0, 0.15), 'conv02': (-0.3, 0.8, 0.7, 0.08), 'silent': (-4.0, 0.5, 0.4, 0.0)}


def of_each(function) -> Any:
    return {name: {'beta': f32(function(*numbers))} for name, numbers in LAYERS.items()}


def stats_of(function) -> Any:
    return {name: {'beta': MembraneStats(*map(f32, function(*numbers)))} for name, numbers in LAYERS.items()}


@pytest.mark.parametrize('shape', ['triangular', 'arctan'])
def test_the_variance_of_a_gradient_stays_what_it_is(shape):
    """By SciPy's quadrature: what leaks back and what comes back from the layer after are 1 together."""
    seen = Observed(
        membrane=stats_of(lambda mean, variance, *_: (mean, variance)),
        currents=stats_of(lambda mean, _, currents, __: (mean, currents)),
        firing_rate=of_each(lambda *numbers: numbers[-1]),
    )
    controller = rules.make('condition_iv', Settings(surrogate=shape, v_th=0.9, tau=0.6, time_steps=4))
    before = Surrogates(of_each(lambda *_: 2.0), of_each(lambda *_: 0.4))
    assert controller.start is not None
    after, state = controller.start(seen, before, controller.init(before.beta))
    assert state == ()
    for name, (mean, variance, currents, rate) in LAYERS.items():
        beta, scale = (float(tree[name]['beta']) for tree in after)
        if name == 'silent':
            assert (beta, scale) == (2.0, np.float32(0.4))
            continue
        np.testing.assert_allclose(beta * scale, 0.8, rtol=1e-5)  # the height at the threshold
        points = 0.9 + np.array([-5, -1, -0.5, -0.2, 0.2, 0.5, 1, 5]) / beta
        square = expectations(
            lambda x, beta=beta, scale=scale: scale * float(eq_3_and_4(x, beta, shape)), mean, variance, 0.9, points
        )[1]
        weights = currents / (rate * (1 - rate))  # n E[w^2], by what the currents vary
        np.testing.assert_allclose(0.6**2 * (1 - rate) + weights * square, 1, rtol=1e-4)
    # Once, before training.
    later, state, report = controller.update(seen._replace(updates=1), after, state)
    chex.assert_trees_all_equal(later, after)
    assert report.skipped_layers() == []
