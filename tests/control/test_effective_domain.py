"""chi against SciPy's normal distribution and counts, and its inverse."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy.stats import norm

from cpng_jax.control import effective_domain
from cpng_jax.control.effective_domain import domain_half_width
from cpng_jax.nn.statistics import DISTANCES, MembraneDistances, MembraneStats
from cpng_jax.nn.surrogate import SURROGATES, Surrogate, beta_of_width

f32: Any = functools.partial(np.asarray, dtype=np.float32)
f64: Any = functools.partial(np.asarray, dtype=np.float64)
OWN = Surrogate('own', lambda x, beta: beta * jnp.exp(-jnp.square(x * beta) * math.pi), support=3.0, half_width=2.0)
HALF_WIDTHS = [
    ('triangular', 'paper', 1),
    ('triangular', 'support', 1),
    ('rectangular', 'paper', 1),
    ('rectangular', 'support', 0.5),
    ('arctan', 'paper', 1),
    ('arctan', 'support', 1),
    (OWN, 'paper', 2),
    (OWN, 'support', 3),
]
SHAPES_AND_INTERVALS = [row[:2] for row in HALF_WIDTHS[:6]]
repeatable = settings(deadline=None, derandomize=True, max_examples=200)

chi = functools.partial(jax.jit, static_argnames=('surrogate', 'interval'))(effective_domain.chi)
beta_for_chi = functools.partial(jax.jit, static_argnames=('surrogate', 'interval'))(effective_domain.beta_for_chi)


def membrane(mean, variance):
    return MembraneStats(f32(mean), f32(variance))


def eq_6(stats, radius, v_th=1.0):
    """chi with the normal density, in float64."""
    mean, sigma = f64(stats.mean), np.sqrt(f64(stats.variance))
    v_th, radius = f64(v_th), f64(radius)
    # The interval is mirrored to the lower tail, where a difference of cdfs keeps its precision.
    distance = np.abs(v_th - mean) / sigma
    return norm.cdf(radius / sigma - distance) - norm.cdf(-radius / sigma - distance)


def stats_at(distance, sigma, v_th=1.0):
    """Statistics whose mean lies `distance` standard deviations above the threshold, in float32."""
    return membrane(v_th + np.multiply(distance, sigma), np.square(f64(sigma)))


sigmas = st.floats(-3, 3).map(lambda power: 10**power)
thresholds = st.floats(-4, 4, width=32)


@repeatable
@given(distance=st.floats(-8, 8), sigma=sigmas, v_th=thresholds, width=st.floats(-2, 1.5).map(lambda power: 10**power))
def test_chi_is_eq_6(distance, sigma, v_th, width):
    stats, beta = stats_at(distance, sigma, v_th), f32(1 / (width * sigma))
    share = chi(stats, beta, v_th=f32(v_th))
    assert share.dtype == np.float32
    assert 0 <= share <= 1
    np.testing.assert_allclose(share, eq_6(stats, 1 / f64(beta), v_th), rtol=0, atol=2e-6)


@pytest.mark.parametrize(('mean', 'variance', 'beta', 'v_th'), [(0.2, 0.5, 1, 1), (-1, 4, 0.5, 0.7), (1.4, 0.01, 8, 1)])
def test_chi_is_the_integral_of_the_density(mean, variance, beta, v_th):
    density = lambda x: math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    expected, _ = integrate.quad(density, v_th - 1 / beta, v_th + 1 / beta)
    np.testing.assert_allclose(chi(membrane(mean, variance), beta, v_th=v_th), expected, atol=1e-6)


@pytest.mark.parametrize('side', [-1, 1])
def test_chi_keeps_its_relative_precision_in_the_tails(side):
    distance = np.linspace(5, 12, 15)
    stats = stats_at(side * distance, 0.5)
    np.testing.assert_allclose(chi(stats, f32(4)), eq_6(stats, 0.25), rtol=1e-4)


@pytest.mark.parametrize(('surrogate', 'interval', 'half_width'), HALF_WIDTHS)
def test_half_width_scales_the_interval(surrogate, interval, half_width):
    assert domain_half_width(surrogate, interval) == half_width
    stats, beta = stats_at(f64([-1, 0.3]), 0.8), f32([0.7, 1.5])
    share = chi(stats, beta, surrogate=surrogate, interval=interval)
    np.testing.assert_allclose(share, eq_6(stats, half_width / beta), atol=1e-6)


@pytest.mark.parametrize('interval', ['paper', 'support'])
def test_a_domain_ends_where_the_shape_does_whatever_beta_is(interval):
    """Dspike: 2 / beta, but half a unit at most; there chi does not move with beta, and no beta gives a larger one."""
    stats, beta = stats_at(f64(-0.7), 0.9), f32([0, 0.1, 3, 4, 5, 40])
    share = chi(stats, beta, surrogate='dspike', interval=interval)
    np.testing.assert_allclose(share, eq_6(stats, np.minimum(2 / np.maximum(beta, 1e-9), 0.5)), atol=1e-6)
    counts = MembraneDistances(f32(eq_6(stats, DISTANCES)))
    np.testing.assert_allclose(chi(counts, beta, surrogate='dspike', interval=interval), share, atol=0.01)
    for measured in (stats, counts):
        target = chi(measured, f32([5, 40, 3]), surrogate='dspike', interval=interval) * f32([1, 1, 1.01])
        found = beta_for_chi(target, measured, surrogate='dspike', interval=interval)
        np.testing.assert_allclose(found, [5, 40, 0], rtol=1e-4)


def test_no_beta_widens_a_support_that_is_fixed():
    with pytest.raises(
        ValueError, match=r'surrogate is dspike, which is non-zero within 0\.5 of the threshold whatever'
    ):
        beta_of_width(1.0, 'dspike')


def test_defaults_are_the_paper():
    assert domain_half_width() == 1
    stats = stats_at(0.4, 0.8)
    assert effective_domain.chi(stats, 1.5) == effective_domain.chi(
        stats, 1.5, v_th=1.0, surrogate='triangular', interval='paper'
    )


@pytest.mark.parametrize('surrogate', ['triangular', 'rectangular'])
def test_chi_counts_the_potentials_with_a_gradient(surrogate):
    u = np.random.default_rng(0).normal(0.3, 0.9, 200_000)
    beta, v_th = 1.3, 0.8
    counted = np.mean(np.asarray(SURROGATES[surrogate].gradient(f32(u - v_th), f32(beta))) > 0)
    share = chi(membrane(u.mean(), u.var()), beta, v_th=v_th, surrogate=surrogate, interval='support')
    assert share == pytest.approx(counted, abs=4 * math.sqrt(0.25 / u.size))


@repeatable
@given(distance=st.floats(-20, 20), sigma=sigmas, beta=st.floats(1e-3, 1e3))
def test_chi_falls_as_beta_grows(distance, sigma, beta):
    shares = chi(stats_at(distance, sigma), f32(np.multiply(beta, [0, 0.5, 1, 2, 1e30])))
    assert shares[0] == 1
    assert (np.diff(shares) <= 1e-6).all()
    assert (shares >= 0).all()


def test_chi_of_constant_potentials():
    # Inside the open interval, on its edges, and outside, for r = 1/2 round 1.
    stats = membrane([1, 1.25, 0.75, 0.5, 1.5, 0, 9], np.zeros(7))
    np.testing.assert_array_equal(chi(stats, 2.0), [1, 1, 1, 0, 0, 0, 0])


@pytest.mark.parametrize(('mean', 'variance'), [(np.nan, 1), (1, np.nan), (np.inf, 1), (-np.inf, 1), (1, np.inf)])
def test_diverged_statistics(mean, variance):
    stats = membrane([mean, 1], [variance, 1])
    np.testing.assert_array_equal(np.isnan(chi(stats, 1.0)), [True, False])
    betas = beta_for_chi(0.5, stats)
    assert betas[0] == 0
    assert betas[1] > 0


def test_low_precision_is_raised_to_float32():
    stats = MembraneStats(jnp.bfloat16(0.25), jnp.bfloat16(0.5))
    exact = membrane(0.25, 0.5)
    assert chi(stats, jnp.bfloat16(1)).dtype == beta_for_chi(jnp.bfloat16(0.5), stats).dtype == np.float32
    np.testing.assert_allclose(chi(stats, jnp.bfloat16(1)), eq_6(exact, 1), atol=1e-6)


@pytest.mark.parametrize(('surrogate', 'interval'), SHAPES_AND_INTERVALS)
def test_float64_is_kept(surrogate, interval):
    rng = np.random.default_rng(0)
    target, sigma = rng.uniform(1e-4, 0.9999, 200), 10 ** rng.uniform(-3, 3, 200)
    stats = MembraneStats(f64(1 + rng.uniform(-15, 15, 200) * sigma), f64(sigma**2))
    half_width = domain_half_width(surrogate, interval)
    with jax.enable_x64(True):
        beta = beta_for_chi(target, stats, surrogate=surrogate, interval=interval)
        share = chi(stats, beta, surrogate=surrogate, interval=interval)
    assert beta.dtype == share.dtype == np.float64
    np.testing.assert_allclose(share, target, atol=1e-12)
    np.testing.assert_allclose(eq_6(stats, half_width / np.asarray(beta)), target, atol=1e-12)


@pytest.mark.parametrize(('surrogate', 'interval'), SHAPES_AND_INTERVALS)
@settings(repeatable, max_examples=60)
@given(distance=st.floats(-8, 8), sigma=sigmas, v_th=thresholds, target=st.floats(1e-4, 0.9999))
def test_beta_for_chi_is_the_inverse(surrogate, interval, distance, sigma, v_th, target):
    stats, v_th = stats_at(distance, sigma, v_th), f32(v_th)
    beta = beta_for_chi(f32(target), stats, v_th=v_th, surrogate=surrogate, interval=interval)
    share = chi(stats, beta, v_th=v_th, surrogate=surrogate, interval=interval)
    np.testing.assert_allclose(share, target, rtol=0, atol=1e-6)
    radius = domain_half_width(surrogate, interval) / f64(beta)
    np.testing.assert_allclose(eq_6(stats, radius, v_th), target, rtol=0, atol=1e-6)


@pytest.mark.parametrize('distance', [-8, -6, 6, 8])
def test_inverse_in_the_far_tails(distance):
    target = np.linspace(1e-4, 0.9999, 1001, dtype=np.float32)
    stats = stats_at(distance, np.logspace(-3, 3, 31)[:, None])
    share = eq_6(stats, 1 / f64(beta_for_chi(target, stats)))
    np.testing.assert_allclose(share, np.broadcast_to(target, share.shape), rtol=0, atol=1e-6)


def test_inverse_is_vectorised_and_monotone():
    target = np.linspace(1e-4, 0.9999, 40, dtype=np.float32)[:, None]
    stats = stats_at(f64([-6, -1, 0, 2]), f64([0.1, 1, 3, 0.5]))
    betas = beta_for_chi(target, stats)
    assert betas.shape == (40, 4)
    assert (np.diff(betas, axis=0) < 0).all()
    for j in range(4):
        one = membrane(stats.mean[j], stats.variance[j])
        by_one = f64([beta_for_chi(value, one) for value in target[::5, 0]])
        np.testing.assert_allclose(eq_6(one, 1 / f64(betas[::5, j])), eq_6(one, 1 / by_one), atol=1e-7)
    np.testing.assert_array_equal(jax.vmap(lambda t: beta_for_chi(t, stats))(target[:, 0]), betas)


@pytest.mark.parametrize(
    ('mean', 'variance'), [(1, 1), (-3, 0.5), (1, 0), (np.nan, 1), (1, np.nan), (np.inf, 1), (1, np.inf)]
)
@pytest.mark.parametrize('target', [0.0, 1.0, -1.0, 2.0, np.nan, np.inf, -np.inf])
def test_no_solution_is_zero(target, mean, variance):
    assert beta_for_chi(f32(target), membrane(mean, variance)) == 0


@pytest.mark.parametrize('mean', [1.0, 0.0, 1e30])
def test_constant_potentials_have_no_solution(mean):
    assert beta_for_chi(f32(0.5), membrane(mean, 0)) == 0


floats = st.floats(width=32, allow_subnormal=False)


@repeatable
@given(target=floats, mean=floats, variance=floats.filter(lambda v: not v < 0), v_th=st.floats(-1e3, 1e3, width=32))
def test_inverse_is_never_nan(target, mean, variance, v_th):
    stats = membrane(mean, variance)
    beta = beta_for_chi(f32(target), stats, v_th=f32(v_th))
    assert np.isfinite(beta)
    assert beta >= 0


@pytest.mark.parametrize(
    'call',
    [
        domain_half_width,
        lambda **kwargs: effective_domain.chi(membrane(0, 1), 1.0, **kwargs),
        lambda **kwargs: effective_domain.beta_for_chi(0.5, membrane(0, 1), **kwargs),
    ],
    ids=['domain_half_width', 'chi', 'beta_for_chi'],
)
def test_errors(call):
    with pytest.raises(ValueError, match="interval must be one of paper, support, got 'half'"):
        call(interval='half')
    with pytest.raises(ValueError, match=r"surrogate must be one of triangular, .* got 'gauss'"):
        call(surrogate='gauss')
