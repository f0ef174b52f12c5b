"""Expectations of surrogate gradients against SciPy's quadrature, and the recursion over time against enumeration."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from cpng_jax.control.moments import Moments, moments_of, passed_back
from cpng_jax.nn.statistics import DISTANCES, MembraneDistances, MembraneStats
from cpng_jax.nn.surrogate import SURROGATES, Surrogate
from tests.equations import eq_3_and_4, expectations

BUMP = Surrogate('bump', lambda x, beta: beta * jnp.exp(-math.pi * jnp.square(beta * x)), support=math.inf)
# Mean, standard deviation, beta: narrow and wide domains in narrow and wide distributions, near and far.
CASES = np.float32(
    [
        (0.0, 1.1, 1.0),
        (-3.0, 1.0, 3.0),
        (3.0, 0.6, 0.5),
        (0.95, 0.01, 100.0),
        (0.97, 0.01, 5.0),
        (1.0, 10.0, 100.0),
        (-2.0, 10.0, 0.05),
        (1.02, 0.01, 0.05),
        (-1.0, 0.7, 20.0),
        (2.0, 0.3, 2.0),
        (0.2, 0.4, 0.3),
        (-3.0, 3.0, 0.7),
    ]
)
# Those that float32 knows.
MEAN, VARIANCE, BETA = np.float64([CASES[:, 0], CASES[:, 1] ** 2, CASES[:, 2]])
compiled = jax.jit(moments_of, static_argnums=3)


def by_quadrature(surrogate, v_th):
    def of(mean, variance, beta):
        def f(x):
            if surrogate is BUMP:
                return beta * math.exp(-math.pi * (beta * x) ** 2)
            return float(eq_3_and_4(x, beta, surrogate.name))

        points = v_th + np.array([-5, -1, -0.5, -0.2, 0.2, 0.5, 1, 5]) / beta
        return expectations(f, mean, variance, v_th, points)

    return np.stack([of(*case) for case in zip(MEAN, VARIANCE, BETA, strict=True)], 1)


@pytest.mark.parametrize('surrogate', [*SURROGATES.values(), BUMP], ids=lambda surrogate: surrogate.name)
def test_expectations_are_those_of_quadrature(surrogate):
    v_th = 1.0
    expected = by_quadrature(surrogate, v_th)
    # Near 0 the terms of u f cancel: errors are of the size of the terms.
    size = np.abs(expected) + 1e-5 * np.abs(expected[[0, 1, 0, 0, 0, 1, 1]])
    with jax.enable_x64(True):
        stats = MembraneStats(jnp.asarray(MEAN), jnp.asarray(VARIANCE))
        found = compiled(stats, jnp.asarray(BETA), jnp.full(len(CASES), v_th), surrogate)
    assert found.f.dtype == np.float64
    assert np.max(np.abs(np.stack(found) - expected) / size) < 1e-7
    stats = MembraneStats(*map(jnp.float32, (MEAN, VARIANCE)))
    found = compiled(stats, jnp.float32(BETA), jnp.ones(len(CASES)), surrogate)
    assert found.f.dtype == np.float32
    assert np.max(np.abs(np.stack(found) - expected) / size) < 3e-6


@pytest.mark.parametrize('name', ['triangular', 'arctan'])
def test_expectations_over_counts_are_those_of_evenly_spread_potentials(name):
    """Within each bin of distances, on both sides."""
    shares, v_th, beta = 2 * norm.cdf(DISTANCES / 0.8) - 1, 0.75, 1.3
    # A midpoint rule with edges at the ends of all bins, and of the domain.
    edges = np.unique(np.concatenate([np.linspace(a, b, 400) for a, b in itertools.pairwise([0, *DISTANCES])]))
    x = (edges[1:] + edges[:-1]) / 2
    mass = np.diff(np.interp(edges, [0, *DISTANCES], [0, *shares])) / 2
    u, f = np.concatenate([v_th - x, v_th + x]), np.tile(eq_3_and_4(x, beta, name), 2)
    below, mass = u < v_th, np.tile(mass, 2)
    expected = [np.sum(mass * v) for v in (f, f**2, u * f, below * f, below * u * f, u * f**2, (u * f) ** 2)]
    with jax.enable_x64(True):
        stats = MembraneDistances(jnp.asarray(shares))
        found = moments_of(stats, jnp.float64(beta), jnp.float64(v_th), SURROGATES[name])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


VALUES, F = np.array([-0.6, 0.4, 1.3]), np.array([0.2, 0.9, 0.5])
POTENTIALS, V_TH, TAU = np.array([0.5, 0.3, 0.2]), 1.0, 0.7


def by_enumeration(scale, time_steps, correlation, detach_reset):
    """E[(dL/dc)^2] / E[(dL/ds)^2] over every course of independent potentials, of three values each, by Eq. 7 and 8."""
    total = 0.0
    gradients_by_spikes = (1 - correlation) * np.eye(time_steps) + correlation
    for course in itertools.product(range(3), repeat=time_steps):
        u, f, s = VALUES[list(course)], scale * F[list(course)], VALUES[list(course)] >= V_TH
        # dL/du[t] as coefficients of dL/ds at all steps.
        later, square = np.zeros(time_steps), 0.0
        for t in reversed(range(time_steps)):
            d_s = np.eye(time_steps)[t] - (0 if detach_reset else TAU * u[t]) * later  # Eq. 8
            later = f[t] * d_s + TAU * (1 - s[t]) * later  # Eq. 7
            square += later @ gradients_by_spikes @ later
        total += np.prod(POTENTIALS[list(course)]) * square / time_steps
    return total


@pytest.mark.parametrize('detach_reset', [False, True], ids=['reset', 'detached'])
@pytest.mark.parametrize('time_steps', [1, 2, 3, 6])
def test_the_recursion_is_exact_where_steps_are_independent(time_steps, detach_reset):
    below = VALUES < V_TH
    u, f = VALUES, F
    products = (f, f**2, u * f, below * f, below * u * f, u * f**2, (u * f) ** 2)
    rate, scale = POTENTIALS[~below].sum(), np.array([[0.5], [1.0], [2.0]])
    correlation = np.array([0.0, 0.2, 1.0])
    with jax.enable_x64(True):
        moments = Moments(*(jnp.sum(POTENTIALS * value) for value in products))
        back = functools.partial(passed_back, moments)
        found = back(scale, rate, TAU, time_steps, correlation, detach_reset)
    expected = [[by_enumeration(h, time_steps, rho, detach_reset) for rho in correlation] for h in scale[:, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    if time_steps > 1:
        assert np.ptp(expected, 1).min() > 0.01 and np.ptp(expected, 0).min() > 0.1
