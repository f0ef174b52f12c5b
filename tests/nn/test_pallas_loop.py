"""The Pallas kernels, interpreted, against `lif_reference` and against Eq. 2, 7 and 8 in float64 numpy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpng_jax.nn import pallas_loop
from cpng_jax.nn.neuron import lif_reference
from cpng_jax.nn.surrogate import SURROGATES, TRIANGULAR
from cpng_jax.nn.time_loop import Neurons
from tests.equations import eq_2, eq_7_and_8

EPSILON = {'float32': 1e-5, 'bfloat16': 2**-7}


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def run(currents, beta, upstream, tau, v_th, neurons):
    forward = lambda c, b: pallas_loop.integrate(c, b, tau, v_th, neurons, interpret=True)
    results, pull = jax.vjp(forward, currents, beta)
    zero = jnp.zeros_like(results[1])
    return *results, *pull((upstream, zero, zero))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def run_reference(currents, beta, upstream, tau, v_th, neurons):
    def forward(c):
        c = jnp.broadcast_to(c, (neurons.time_steps, *c.shape[1:]))
        return lif_reference(
            c, beta, tau=tau, v_th=v_th, surrogate=neurons.surrogate, detach_reset=neurons.detach_reset
        )

    spikes, pull, stats = jax.vjp(forward, currents, has_aux=True)
    return spikes, *stats, *pull(upstream)


def check(shape, constant, dtype, beta, tau, v_th, neurons, seed):
    rng = np.random.default_rng(seed)
    # Exact in binary, and so are the potentials: ties with the threshold are real ties.
    eighths = rng.integers(-16, 17, shape) / 8
    eighths = eighths[:1] if constant else eighths
    upstream = rng.integers(-16, 17, shape) / 8
    currents, upstream_low = (jnp.asarray(value, dtype) for value in (eighths, upstream))
    args = currents, jnp.float32(beta), upstream_low, tau, v_th, neurons
    spikes, mean, variance, d_currents, d_beta = run(*args)
    assert spikes.dtype == d_currents.dtype == dtype and mean.dtype == variance.dtype == np.float32
    u, s = eq_2(np.broadcast_to(eighths, shape), tau, v_th)
    expected, _, _ = eq_7_and_8(upstream, u, s, beta, tau, v_th, neurons.surrogate.name, neurons.detach_reset)
    # The recursion may grow: rounding errors are those of its largest value.
    scale = 1 + np.abs(expected).max()
    if constant:
        expected = expected.sum(0, keepdims=True)
        scale = max(scale, np.abs(expected).max())
    # The reference adds the gradients of constant currents up in their own dtype.
    reference = run_reference(*args)
    for (s_, m, v, d), rounded in (((s, u.mean(), u.var(), expected), 1), (reference, len(s) if constant else 1)):
        np.testing.assert_array_equal(spikes.astype('float32'), np.asarray(s_, np.float32))
        np.testing.assert_allclose([mean, variance], [m, v], rtol=1e-5, atol=1e-5)
        difference = np.abs(np.asarray(d_currents, np.float64) - np.asarray(d, np.float64))
        assert difference.max() <= rounded * EPSILON[dtype] * scale
    assert d_beta == 0


@settings(deadline=None, derandomize=True, max_examples=12)
@given(
    shape=st.sampled_from([(1, 3), (4, 1500), (12, 2, 3, 2)]),
    constant=st.booleans(),
    dtype=st.sampled_from(['float32', 'bfloat16']),
    beta=st.sampled_from([0.25, 0.5, 1, 2, 4]),
    tau=st.sampled_from([0, 0.5, 1]),
    v_th=st.sampled_from([0.5, 1]),
    name=st.sampled_from(sorted(SURROGATES)),
    detach_reset=st.booleans(),
    seed=st.integers(0, 99),
)
def test_forward_and_backward_with_exact_ties(shape, constant, dtype, beta, tau, v_th, name, detach_reset, seed):
    neurons = Neurons(SURROGATES[name], detach_reset, shape[0])
    check(shape, constant, dtype, beta, tau, v_th, neurons, seed)


@pytest.mark.parametrize('detach_reset', [False, True], ids=['reset', 'detached'])
@pytest.mark.parametrize('name', SURROGATES)
def test_each_surrogate(name, detach_reset):
    check((5, 1100), detach_reset, 'float32', 0.5, 0.5, 1, Neurons(SURROGATES[name], detach_reset, 5), seed=7)


NEURONS = Neurons(TRIANGULAR, False, 3)
CURRENTS = np.full((3, 2), 0.75, np.float32)


def test_changing_beta_does_not_retrace():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def gradient(currents, beta):
        return jax.grad(lambda c: pallas_loop.integrate(c, beta, 0.5, 1.0, NEURONS)[0].sum())(currents)

    values = [np.asarray(gradient(CURRENTS, jnp.float32(beta))) for beta in (0.5, 1, 2)]
    assert not np.array_equal(values[0], values[2])


def test_no_gradient_through_statistics():
    gradient = jax.grad(lambda c: sum(pallas_loop.integrate(c, 1.0, 0.5, 1.0, NEURONS)[1:]))(CURRENTS)
    np.testing.assert_array_equal(gradient, np.zeros_like(CURRENTS))


def test_variance_far_from_zero():
    currents = np.random.default_rng(0).normal(1e4, 0.1, (3, 1500)).astype(np.float32)
    _, mean, variance = pallas_loop.integrate(currents, 1.0, 0.5, 1.0, NEURONS)
    np.testing.assert_allclose(mean, currents.mean(dtype=np.float64), rtol=1e-7)
    np.testing.assert_allclose(variance, currents.var(dtype=np.float64), rtol=1e-4)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_statistics_of_a_diverged_layer_are_not_finite(bad):
    currents = CURRENTS.copy()
    currents[1, 1] = bad
    _, mean, variance = pallas_loop.integrate(currents, 1.0, 0.5, 1.0, NEURONS)
    assert not np.isfinite(mean)
    assert np.isnan(variance)


@pytest.mark.skipif(
    jax.__version_info__ > (0, 10, 2) and jax.default_backend() != 'gpu',
    reason='later versions of JAX compile the kernel as they lower it, which takes the CUDA plugin',
)
@pytest.mark.parametrize('steps', [1, 3], ids=['constant', 'varying'])
@pytest.mark.parametrize('dtype', EPSILON)
@pytest.mark.parametrize('name', SURROGATES)
def test_lowers_to_triton(name, dtype, steps):
    neurons = Neurons(SURROGATES[name], False, 3)
    loss = lambda c, beta: pallas_loop.integrate(c, beta, 0.5, 1.0, neurons, interpret=False)[0].sum()
    given_ = jax.ShapeDtypeStruct((steps, 1500), dtype), jax.ShapeDtypeStruct((), 'float32')
    lowered = jax.jit(jax.value_and_grad(loss)).trace(*given_).lower(lowering_platforms=('cuda',)).as_text()
    assert lowered.count('triton') >= 2


def integrate(currents=CURRENTS, beta=1.0, tau=0.5, v_th=1.0, scale=1.0):
    return pallas_loop.integrate(currents, beta, tau, v_th, NEURONS, scale=scale)


@pytest.mark.parametrize(
    ('error', 'message', 'call'),
    [
        (TypeError, 'currents must be floating, got dtype int32', lambda: integrate(np.ones((3, 2), np.int32))),
        (ValueError, r'at least one element, got shape \(\)', lambda: integrate(1.0)),
        (ValueError, r'at least one element, got shape \(3, 0\)', lambda: integrate(np.ones((3, 0)))),
        (ValueError, '1 or 3 time steps, got 2', lambda: integrate(CURRENTS[:2])),
        (
            ValueError,
            r'beta must be a scalar, got shape \(2,\): .*lif takes arrays',
            lambda: integrate(beta=np.ones(2)),
        ),
        (ValueError, r'scale must be a scalar, got shape \(2,\)', lambda: integrate(scale=np.ones(2))),
        (ValueError, 'tau must be a Python number, .*lif takes arrays', lambda: integrate(tau=np.ones(2))),
        (ValueError, 'v_th must be a Python number, .*lif takes arrays', lambda: integrate(v_th=np.ones(2))),
        (ValueError, 'v_th must be a Python number', lambda: jax.jit(lambda v: integrate(v_th=v))(1.0)),
        (ValueError, 'tau must lie in 0 to 1, got 1.5', lambda: integrate(tau=1.5)),
    ],
)
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()
