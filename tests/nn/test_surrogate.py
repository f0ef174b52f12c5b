"""The spike and its surrogate gradients against Eq. 3 and 4 in float64."""

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from cpng_jax.nn.surrogate import SURROGATES, Surrogate, get_surrogate, spike
from tests.equations import eq_3_and_4

f32: Any = functools.partial(np.asarray, dtype=np.float32)
f64: Any = functools.partial(np.asarray, dtype=np.float64)
SHAPES = ('triangular', 'rectangular', 'arctan', 'dspike')
EPSILON = {'float32': 1e-6, 'bfloat16': 2**-8, 'float16': 2**-11}
repeatable = settings(deadline=None, derandomize=True, max_examples=60)
# Multiples of 1/64 up to 4: potentials whose differences are exact, so that edges are hit exactly.
grid = st.integers(-256, 256).map(lambda n: n / 64)
widths = st.floats(0.0625, 16, width=32)


@functools.partial(jax.jit, static_argnames='surrogate')
def spike_and_cotangents(u, beta, v_th, cotangent, surrogate):
    spikes, pull = jax.vjp(lambda u, beta, v_th: spike(u, beta, v_th, surrogate), u, beta, v_th)
    return spikes, *pull(cotangent)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@repeatable
@given(
    u=st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=6, max_size=6),
    v_th=st.floats(0.125, 8, width=32),
)
def test_forward_is_the_step_function(u, v_th):
    u = f32([*u, v_th, np.nextafter(f32(v_th), f32(0))])
    spikes, *_ = spike_and_cotangents(u, f32(1), f32(v_th), np.ones_like(u), 'triangular')
    np.testing.assert_array_equal(spikes, (u >= f32(v_th)).astype(np.float32))
    assert spikes[-2] == 1
    assert spikes[-1] == 0


@pytest.mark.parametrize('shape', SHAPES)
@repeatable
@given(data=st.data())
def test_backward_is_eq_3_and_4(shape, data):
    u = f32(data.draw(st.lists(grid, min_size=8, max_size=8)))
    v_th, beta = f32(data.draw(grid)), f32(data.draw(widths))
    cotangent = f32(data.draw(st.lists(grid, min_size=8, max_size=8)))
    _, du, dbeta, dv_th = spike_and_cotangents(u, beta, v_th, cotangent, shape)
    expected = cotangent * eq_3_and_4(u - v_th, beta, shape)
    # In float32 the edge 0.5 / beta itself is rounded: leave out what lies on it unless beta is a power of two.
    clear = (np.abs(np.abs(u - v_th) * beta - 0.5) > 1e-6) | (math.frexp(beta)[0] == 0.5)
    np.testing.assert_allclose(np.where(clear, du, 0), np.where(clear, expected, 0), rtol=1e-5, atol=1e-5 * beta)
    np.testing.assert_allclose(dv_th, -np.sum(f64(du)), rtol=1e-5, atol=1e-4)
    assert dbeta.dtype == np.float32
    assert dbeta == 0


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('beta', [0.25, 1.0, 3.0])
def test_gradient_integrates_to_one(shape, beta):
    surrogate = SURROGATES[shape]
    gradient = jax.jit(lambda x: surrogate.gradient(x, jnp.float32(beta)))
    half = min(surrogate.support / beta, surrogate.reach)
    area, _ = integrate.quad(lambda x: float(gradient(f32(x))), -half, half, epsabs=1e-4, epsrel=1e-4)
    assert area == pytest.approx(1, abs=1e-4)
    if math.isfinite(half):
        edge = half if math.isinf(surrogate.reach) else np.nextafter(f32(half), f32(1))  # Dspike has its ends
        outside = f32([-2 * half, -edge, edge, 2 * half])
        np.testing.assert_array_equal(gradient(outside), np.zeros(4))


def test_dspike_narrows_from_a_rectangle_to_a_peak_of_half_its_temperature():
    x = f32(np.linspace(-0.5, 0.5, 11))
    np.testing.assert_allclose(SURROGATES['dspike'].gradient(x, f32(1e-3)), np.ones(11), rtol=1e-5)
    np.testing.assert_allclose(SURROGATES['dspike'].gradient(f32(0), f32([6, 20, 100])), [3, 10, 50], rtol=0.01)
    # The difference of their scaled tanh, of which it is the derivative.
    step = lambda u, b: (np.tanh(b * (u - 1)) + np.tanh(b / 2)) / (2 * np.tanh(b / 2))
    u, b = np.linspace(0.51, 1.49, 50), 3.0
    differences = (step(u + 1e-5, b) - step(u - 1e-5, b)) / 2e-5
    np.testing.assert_allclose(SURROGATES['dspike'].gradient(f32(u - 1), f32(b)), differences, rtol=1e-4)


@pytest.mark.parametrize('shape', SHAPES)
@repeatable
@given(x=st.floats(-1e6, 1e6, width=32), beta=widths)
def test_gradient_is_even_and_lies_between_zero_and_its_peak(shape, x, beta):
    gradient = SURROGATES[shape].gradient
    left, right, peak = gradient(f32([-x, x, 0]), f32([beta] * 3))
    assert left == right
    assert 0 <= right <= peak
    if shape == 'dspike':
        assert peak == pytest.approx(beta / (2 * math.tanh(beta / 2)), rel=1e-6)
    else:
        assert peak == f32(beta)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('dtype', EPSILON)
def test_low_precision_stays_and_is_computed_in_float32(shape, dtype, rng):
    # Multiples of 1/64 are exact in bfloat16 here, and so is u - v_th: only the result may be rounded.
    u, cotangent = (jnp.asarray(rng.integers(-32, 160, 200) / 64, dtype) for _ in range(2))
    spikes, du, dbeta, dv_th = spike_and_cotangents(u, jnp.float32(1.3), jnp.float32(1), cotangent, shape)
    assert spikes.dtype == du.dtype == u.dtype
    assert dbeta.dtype == dv_th.dtype == np.float32
    expected = f64(cotangent) * eq_3_and_4(f64(u) - 1, f32(1.3), shape)
    np.testing.assert_allclose(f64(du), expected, rtol=EPSILON[dtype], atol=1e-7)
    np.testing.assert_allclose(dv_th, -expected.sum(), rtol=1e-2)


@pytest.mark.parametrize('dtype', EPSILON)
@pytest.mark.parametrize('shape', SHAPES)
def test_finite_far_from_the_threshold(shape, dtype):
    u = jnp.asarray([-1e4, 1e4], dtype)
    spikes, du, _, dv_th = spike_and_cotangents(u, jnp.float32(4), jnp.float32(1), jnp.ones_like(u), shape)
    np.testing.assert_array_equal(f32(spikes), [0, 1])
    expected = eq_3_and_4(f64(u) - 1, 4, shape)
    np.testing.assert_allclose(f64(du), expected, rtol=1e-2, atol=1e-6 if dtype == 'float16' else 0)
    assert np.isfinite(f32(dv_th))


@pytest.mark.parametrize('shape', SHAPES)
def test_beta_and_threshold_per_channel(shape, rng):
    u, cotangent = (f32(rng.normal(1, 0.5, (5, 2, 3))) for _ in range(2))
    beta, v_th = f32([0.5, 1.0, 2.5]), f32([0.5, 1.0, 1.5])
    _, du, dbeta, dv_th = spike_and_cotangents(u, beta, v_th, cotangent, shape)
    expected = cotangent * eq_3_and_4(u - v_th, beta, shape)
    np.testing.assert_allclose(du, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dv_th, -expected.sum((0, 1)), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(dbeta, np.zeros(3))


@pytest.mark.parametrize(
    'transform',
    [
        lambda f: f,
        jax.jit,
        jax.checkpoint,
        jax.vmap,
        lambda f: lambda u: jax.lax.scan(lambda carry, row: (carry, f(row)), None, u)[1],
        lambda f: jax.jit(jax.vmap(jax.checkpoint(f))),
    ],
    ids=['plain', 'jit', 'checkpoint', 'vmap', 'scan', 'jit-vmap-checkpoint'],
)
@pytest.mark.parametrize('shape', SHAPES)
def test_works_under_transformations(shape, transform, rng):
    u, weights = (f32(rng.normal(1, 0.5, (4, 3))) for _ in range(2))
    emit = transform(lambda u: spike(u, 0.8, 1.0, shape))
    gradient = jax.grad(lambda u: jnp.sum(weights * emit(u)))(u)
    np.testing.assert_array_equal(emit(u), u >= 1)
    np.testing.assert_allclose(gradient, weights * eq_3_and_4(u - 1, 0.8, shape), rtol=1e-5, atol=1e-6)


def test_vmap_over_beta(rng):
    u, betas = f32(rng.normal(1, 0.5, 7)), f32([0.5, 1, 2])
    gradient = jax.vmap(lambda beta: jax.grad(lambda u: spike(u, beta).sum())(u))(betas)
    np.testing.assert_allclose(gradient, eq_3_and_4(u - 1, betas[:, None], 'triangular'), rtol=1e-5, atol=1e-6)


def test_changing_beta_does_not_recompile():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def gradient(u, beta):
        return jax.grad(lambda u: spike(u, beta).sum())(u)

    slopes = [float(gradient(np.ones(2, np.float32), f32(beta))[0]) for beta in (0.5, 1, 2)]
    assert slopes == [0.5, 1, 2]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', SHAPES)
def test_scale_is_a_factor_of_the_gradient_alone(shape, dtype, rng):
    u, cotangent = (jnp.asarray(rng.integers(-32, 160, (4, 5, 3)) / 64, dtype) for _ in range(2))
    whole, du, *_ = spike_and_cotangents(u, f32(1.3), f32(1), cotangent, shape)
    exact = f64(cotangent) * eq_3_and_4(f64(u) - 1, f32(1.3), shape)
    for scale in (f32(0.3), f32([0.5, 1, 4])):
        spikes, pull = jax.vjp(lambda u, scale, v_th: spike(u, 1.3, v_th, shape, scale), u, scale, f32(1))
        scaled, d_scale, d_v_th = pull(cotangent)
        np.testing.assert_array_equal(spikes, whole)
        assert scaled.dtype == du.dtype == dtype
        np.testing.assert_allclose(f64(scaled), scale * exact, rtol=EPSILON[dtype], atol=1e-6)
        np.testing.assert_array_equal(d_scale, np.zeros_like(scale))
        np.testing.assert_allclose(d_v_th, -np.sum(scale * exact), rtol=1e-5 if dtype == 'float32' else 2e-2)


def test_changing_scale_does_not_recompile():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def gradient(u, scale):
        return jax.grad(lambda u: spike(u, 2.0, scale=scale).sum())(u)

    assert [float(gradient(np.ones(2, np.float32), f32(scale))[0]) for scale in (0.5, 1, 3)] == [1, 2, 6]


def test_integer_beta_and_python_numbers():
    assert spike(1.0, 2) == 1
    assert spike(0.5, 2, 1) == 0
    assert jax.grad(spike)(1.25, 2) == 2 * (1 - 2 * 0.25)


def test_own_surrogate(rng):
    logistic = Surrogate(
        'logistic',
        lambda x, beta: beta * jax.nn.sigmoid(4 * beta * x) * (4 - 4 * jax.nn.sigmoid(4 * beta * x)),
        math.inf,
    )
    assert get_surrogate(logistic) is logistic
    u = f32(rng.normal(1, 0.5, 20))
    ones = np.ones_like(u)
    spikes, du, *_ = spike_and_cotangents(u, f32(1.5), f32(1), ones, logistic)
    p = 1 / (1 + np.exp(-6 * (f64(u) - 1)))
    np.testing.assert_array_equal(spikes, u >= 1)
    np.testing.assert_allclose(du, 6 * p * (1 - p), rtol=1e-4)


@pytest.mark.parametrize('shape', SHAPES)
def test_get_surrogate(shape):
    assert get_surrogate(shape) is SURROGATES[shape]
    assert SURROGATES[shape].name == shape
    assert SURROGATES[shape].half_width == (2 if shape == 'dspike' else 1)  # Sec. 5.2


@pytest.mark.parametrize(
    ('error', 'message', 'call'),
    [
        (ValueError, "one of triangular, rectangular, arctan, dspike .*'gauss'", lambda: get_surrogate('gauss')),
        (ValueError, "'gauss'", lambda: spike(1.0, 1.0, 1.0, 'gauss')),
        (TypeError, 'name or a cpng_jax.Surrogate, got 3', lambda: get_surrogate(3)),  # pyright: ignore[reportArgumentType]
        (TypeError, 'u must be floating, got dtype int32', lambda: spike(np.ones(1, np.int32), 1.0)),
        (TypeError, 'u must be floating, got dtype bool', lambda: spike(np.ones(1, bool), 1.0)),
        (ValueError, r'beta has shape \(2,\).* u, \(4, 3\)', lambda: spike(np.ones((4, 3)), np.ones(2))),
        (ValueError, r'beta has shape \(4, 3\).* u, \(3,\)', lambda: spike(np.ones(3), np.ones((4, 3)))),
        (ValueError, r'v_th has shape \(2,\).* u, \(\)', lambda: spike(1.0, 1.0, np.ones(2))),
        (ValueError, r'scale has shape \(2,\).* u, \(3,\)', lambda: spike(np.ones(3), 1.0, scale=np.ones(2))),
    ],
)
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ('error', 'message', 'fields'),
    [
        (TypeError, "'mine': gradient must be a function .* got None", {'gradient': None}),
        *[(ValueError, f"'mine': support must be .* got {v}", {'support': v}) for v in (0, -1.0, math.nan)],
        *[(ValueError, f"'mine': half_width must be .* got {v}", {'half_width': v}) for v in (0, -1.0, math.nan)],
        (ValueError, "'mine': half_width must be finite", {'half_width': math.inf}),
    ],
)
def test_bad_surrogate(error, message, fields):
    with pytest.raises(error, match=message):
        Surrogate(**{'name': 'mine', 'gradient': lambda x, beta: x * beta, 'support': 1.0, **fields})
