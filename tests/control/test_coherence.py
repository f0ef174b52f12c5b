"""The coherence of a layer against its equation, and its inverse."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from cpng_jax import MembraneDistances, MembraneStats, Surrogate
from cpng_jax.control import coherence as module
from cpng_jax.nn.statistics import DISTANCES
from tests.equations import eq_3_and_4, expectations

f32: Any = functools.partial(np.asarray, dtype=np.float32)
SHAPES = ['triangular', 'rectangular', 'arctan']
coherence, beta_for_coherence = (
    functools.partial(jax.jit, static_argnames='surrogate')(function)
    for function in (module.coherence, module.beta_for_coherence)
)


def by_the_equation(mean, variance, beta, v_th, shape):
    points = v_th + np.array([-5, -1, -0.5, -0.2, 0.2, 0.5, 1, 5]) / beta
    f, ff, *_ = expectations(lambda x: float(eq_3_and_4(x, beta, shape)), mean, variance, v_th, points)
    return f**2 / ff


@pytest.mark.parametrize('shape', [*SHAPES, 'dspike'])
def test_it_is_that_of_the_equation(shape):
    cases = np.array([(0.0, 1.25, 1.0), (-0.7, 0.8, 0.4), (0.4, 0.3, 2.5), (-1.0, 4.0, 0.15)])
    mean, variance, beta = cases.T
    with jax.enable_x64(True):
        found = coherence(MembraneStats(mean, variance), beta, v_th=0.9, surrogate=shape)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [by_the_equation(*case, 0.9, shape) for case in cases], rtol=1e-7)


@pytest.mark.parametrize('shape', [*SHAPES, 'dspike'])
def test_the_mean_of_a_gradient_over_many_neurons_has_that_share(shape):
    """Drawn potentials: what a gradient of all ones keeps in its mean, over its mean square."""
    u = np.random.default_rng(0).normal(-0.2, 1.1, 1_000_000)
    passed = eq_3_and_4(u - 1, 0.6, shape)
    found = coherence(MembraneStats(u.mean(), u.var()), 0.6, surrogate=shape)
    np.testing.assert_allclose(found, passed.mean() ** 2 / np.mean(passed**2), rtol=0.01)


def test_it_falls_with_beta_from_1_to_nearly_0():
    """The wider the domain, the more alike its values; of the rectangle it is the share inside."""
    stats, beta = MembraneStats(f32(-0.1), f32(1.2)), f32(np.geomspace(0.01, 100, 200))
    for shape in SHAPES:
        found = np.asarray(coherence(stats, beta, surrogate=shape))
        # A rectangle that holds all potentials is 1 throughout, to rounding.
        assert (np.diff(found) < 1e-6).all()
        assert found[0] > 0.85
        assert 0 < found[-1] < 0.02
    inside = norm.cdf(1.1 + 0.5 / beta, scale=np.sqrt(1.2)) - norm.cdf(1.1 - 0.5 / beta, scale=np.sqrt(1.2))
    np.testing.assert_allclose(coherence(stats, beta, surrogate='rectangular'), inside, rtol=2e-5)


@given(
    distance=st.floats(-4, 4),
    sigma=st.floats(-2, 2).map(lambda power: 10**power),
    target=st.floats(0.02, 0.98),
    v_th=st.floats(0.2, 3),
    shape=st.sampled_from(SHAPES),
)
def test_the_coherence_at_the_result_is_the_target(distance, sigma, target, v_th, shape):
    stats = MembraneStats(f32(v_th - distance * sigma), f32(sigma**2))
    beta = beta_for_coherence(f32(target), stats, v_th=f32(v_th), surrogate=shape)
    assert beta.dtype == np.float32
    assert beta > 0
    found = coherence(stats, beta, v_th=f32(v_th), surrogate=shape)
    # An edge of the rectangle falls between two nodes or not, which is what the quadrature is good for.
    np.testing.assert_allclose(found, target, rtol=1e-5 if shape != 'rectangular' else 1e-4)


def test_a_shape_of_fixed_support_has_no_more_than_its_rectangle():
    """Dspike at its widest: the coherence is the share of potentials within half a unit of the threshold."""
    stats = MembraneStats(f32(-0.1), f32(1.2))
    inside = norm.cdf(1.6, scale=np.sqrt(1.2)) - norm.cdf(0.6, scale=np.sqrt(1.2))
    assert coherence(stats, f32(1e-3), surrogate='dspike') == pytest.approx(inside, rel=1e-4)
    found = beta_for_coherence(f32([0.5 * inside, 1.1 * inside]), stats, surrogate='dspike')
    assert found[0] > 1
    assert found[1] == 0


floats = st.floats(width=32, allow_subnormal=False)


@given(target=floats, mean=floats, variance=floats, v_th=floats)
def test_never_nan(target, mean, variance, v_th):
    found = beta_for_coherence(f32(target), MembraneStats(f32(mean), f32(variance)), v_th=f32(v_th))
    assert np.isfinite(found)
    assert found >= 0


def test_where_there_is_none_there_is_no_width():
    """Of potentials that are constant or not finite; and no width has a coherence of 0, 1 or more."""
    mean, variance = f32([0, np.nan, 0, 0, 0]), f32([0, 1, np.inf, -1, 1])
    stats = MembraneStats(mean, variance)
    np.testing.assert_array_equal(np.isnan(coherence(stats, 1.0)), [True] * 4 + [False])
    np.testing.assert_array_equal(beta_for_coherence(0.5, stats) == 0, [True] * 4 + [False])
    assert np.isnan(coherence(MembraneStats(f32(0), f32(1e-4)), 5.0))  # none inside
    for target in (0.0, 1.0, 1.5, -0.1, np.nan):
        assert beta_for_coherence(f32(target), MembraneStats(f32(0), f32(1))) == 0
    with pytest.raises(ValueError, match='surrogate'):
        module.coherence(MembraneStats(0.0, 1.0), 1.0, surrogate='square')


def test_counts_of_gaussian_potentials_give_what_their_moments_give():
    shares = norm.cdf((1 + DISTANCES - 0.1) / 1.1) - norm.cdf((1 - DISTANCES - 0.1) / 1.1)
    counts, moments, beta = MembraneDistances(f32(shares)), MembraneStats(f32(0.1), f32(1.21)), f32([0.3, 0.6, 1, 2])
    found = coherence(counts, beta)
    np.testing.assert_allclose(found, coherence(moments, beta), rtol=0.02)
    np.testing.assert_allclose(beta_for_coherence(found, counts), beta, rtol=1e-4)


def test_a_shape_of_ones_own():
    """A Gaussian over a Gaussian of the same mean: E[f]^2 / E[f^2] in closed form."""
    bump = Surrogate('bump', lambda x, beta: beta * jnp.exp(-math.pi * jnp.square(beta * x)), support=math.inf)
    beta, variance = 0.8, 1.3
    own = 1 / (2 * math.pi * beta**2)  # the variance of the bump as a density
    mean_square = 1 / math.sqrt(2 * math.pi * (own / 2 + variance)) * beta / math.sqrt(2)
    expected = 1 / (2 * math.pi * (own + variance)) / mean_square
    np.testing.assert_allclose(
        coherence(MembraneStats(f32(1), f32(variance)), beta, surrogate=bump), expected, rtol=1e-5
    )
