"""LIF neurons against Eq. 2, 7 and 8 in float64 numpy."""

import functools
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cpng_jax.control.layer_tree import like_beta
from cpng_jax.nn import neuron, time_loop
from cpng_jax.nn.neuron import lif, lif_reference, potentials
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import MembraneStats, is_stats, membrane_stats
from cpng_jax.nn.terms import Affine, Normalised
from tests.equations import eq_2, eq_7_and_8

f32: Any = functools.partial(np.asarray, dtype=np.float32)
f64: Any = functools.partial(np.asarray, dtype=np.float64)
SHAPES = ('triangular', 'rectangular', 'arctan')
DTYPES = ('float32', 'bfloat16')
repeatable = settings(deadline=None, derandomize=True, max_examples=60)
# Exact in binary, and so are the potentials that tau 0, 1/2 and 1 make of them: ties with the threshold are real ties.
eighths = st.integers(-16, 16).map(lambda n: n / 8)


def pairwise(*choices):
    """Combinations in which any two values of two choices meet: each makes a program, and all take long to compile."""
    combinations = list(itertools.product(*choices))
    pairs = lambda combination: {*itertools.combinations(enumerate(combination), 2)}
    missing, chosen = set().union(*map(pairs, combinations)), []
    while missing:
        chosen.append(max(combinations, key=lambda combination: len(pairs(combination) & missing)))
        missing -= pairs(chosen[-1])
    return st.sampled_from(chosen)


@functools.partial(jax.jit, static_argnames=('shape', 'detach_reset'))
def run(currents, beta, tau, v_th, upstream, shape='triangular', detach_reset=False):
    """Spikes, statistics, and the cotangents of currents, beta, tau and v_th."""

    def forward(currents, beta, tau, v_th):
        return lif(currents, beta, tau=tau, v_th=v_th, surrogate=shape, detach_reset=detach_reset)

    spikes, pull, stats = jax.vjp(forward, currents, beta, tau, v_th, has_aux=True)
    return spikes, stats, *pull(upstream)


def close(actual, desired, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(f64(actual), desired, rtol=rtol, atol=atol)


@pytest.mark.parametrize('dims', [(1,), (5, 2, 2)], ids=str)
@repeatable
@given(data=st.data(), tau=st.sampled_from([0, 0.5, 1]), v_th=st.sampled_from([0.5, 1, 1.5]))
def test_forward_and_backward_with_exact_ties(dims, data, tau, v_th):
    currents, upstream = (data.draw(hnp.arrays(np.float32, dims, elements=eighths)) for _ in range(2))
    shape, detach_reset = data.draw(st.sampled_from(SHAPES)), data.draw(st.booleans())
    beta = data.draw(st.sampled_from([0.25, 0.5, 1, 2, 4]))
    args = [f32(value) for value in (beta, tau, v_th)]
    spikes, stats, d_currents, d_beta, d_tau, d_v_th = run(currents, *args, upstream, shape, detach_reset)
    u, s = eq_2(currents, tau, v_th)
    expected = eq_7_and_8(upstream, u, s, beta, tau, v_th, shape, detach_reset)
    np.testing.assert_array_equal(spikes, s)
    close(stats.mean, u.mean())
    close(stats.variance, u.var())
    for actual, desired in zip((d_currents, d_tau, d_v_th), expected, strict=True):
        # Sums over time cancel: the error is one of the largest term.
        close(actual, desired, atol=1e-5 * (1 + np.abs(expected[0]).max() * np.abs(u).max() * u.size))
    assert d_beta == 0


@pytest.mark.parametrize('detach_reset', [False, True], ids=['reset', 'detached'])
@pytest.mark.parametrize('shape', SHAPES)
def test_real_values_in_float64(shape, detach_reset):
    rng = np.random.default_rng(3)
    currents, upstream = rng.normal(0.5, 1, (7, 4, 5)), rng.normal(size=(7, 4, 5))
    beta, tau, v_th = 0.7, 0.83, 1.1
    u, s = eq_2(currents, tau, v_th)
    assert 0.1 < s.mean() < 0.9
    with jax.enable_x64(True):
        spikes, stats, d_currents, _, d_tau, d_v_th = run(currents, beta, tau, v_th, upstream, shape, detach_reset)
    assert spikes.dtype == stats.mean.dtype == d_currents.dtype == np.float64
    np.testing.assert_array_equal(spikes, s)
    expected = eq_7_and_8(upstream, u, s, beta, tau, v_th, shape, detach_reset)
    for actual, desired in zip((*stats, d_currents, d_tau, d_v_th), (u.mean(), u.var(), *expected), strict=True):
        close(actual, desired, rtol=1e-12, atol=1e-12)


def test_more_time_steps_than_are_unrolled():
    currents = f32(np.random.default_rng(5).integers(-8, 16, (23, 3)) / 8)
    upstream = np.ones_like(currents)
    spikes, stats, d_currents, *_ = run(currents, *f32([0.5, 1, 1]), upstream)
    u, s = eq_2(currents, 1, 1)
    np.testing.assert_array_equal(spikes, s)
    close((stats.mean, stats.variance), (u.mean(), u.var()))
    close(d_currents, eq_7_and_8(upstream, u, s, 0.5, 1, 1, 'triangular')[0])


@functools.partial(jax.jit, static_argnames=('function', 'shape', 'detach_reset'))
def run_as(function, currents, beta, tau, v_th, upstream, shape, detach_reset):
    forward = lambda *values: function(
        values[0], beta, tau=values[1], v_th=values[2], surrogate=shape, detach_reset=detach_reset
    )
    spikes, pull, stats = jax.vjp(forward, currents, tau, v_th, has_aux=True)
    return spikes, stats, pull(upstream)


@repeatable
@given(
    program=pairwise([(1, 1), (3, 5), (4, 2, 3), (11, 4)], DTYPES, SHAPES, [False, True]),
    tau=st.sampled_from([0, 0.25, 0.5, 1]),
    beta=st.floats(0.25, 4, width=32),
    seed=st.integers(0, 99),
)
def test_the_loop_is_the_reference(program, tau, beta, seed):
    """Spikes exactly; gradients as JAX takes them from the readable loop."""
    dims, dtype, shape, detach_reset = program
    rng = np.random.default_rng(seed)
    currents = jnp.asarray(rng.integers(-16, 24, dims) / 8, dtype)
    upstream = jnp.asarray(rng.integers(-8, 8, dims) / 8, dtype)
    values = currents, *f32([beta, tau, 1]), upstream, shape, detach_reset
    (spikes, stats, mine), (expected, their_stats, theirs) = (run_as(f, *values) for f in (lif, lif_reference))
    np.testing.assert_array_equal(f64(spikes), f64(expected))
    assert spikes.dtype == expected.dtype == dtype
    close(stats, f64(their_stats))
    tolerance = {'float32': 1e-5, 'bfloat16': 2**-7}[dtype]
    largest = 1 + max(np.abs(f64(gradient)).max() for gradient in theirs)
    for gradient, right in zip(mine, theirs, strict=True):
        assert gradient.dtype == right.dtype
        close(gradient, f64(right), rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize('unroll', [1, 4, 8])
def test_laying_steps_out_changes_nothing(unroll, monkeypatch):
    monkeypatch.setattr(time_loop.Neurons, 'unroll', lambda *_: unroll)
    currents, upstream = (f32(np.random.default_rng(6).integers(-8, 16, (8, 3)) / 8) for _ in range(2))
    forward = jax.jit(lambda c: jax.vjp(lambda c: lif(c, 0.5)[0], c))
    spikes, pull = forward(currents)
    u, s = eq_2(currents, 0.5, 1)
    np.testing.assert_array_equal(spikes, s)
    close(pull(upstream)[0], eq_7_and_8(upstream, u, s, 0.5, 0.5, 1, 'triangular')[0])


@pytest.mark.parametrize('detach_reset', [False, True])
def test_the_same_currents_at_every_step_are_given_once(detach_reset):
    rng = np.random.default_rng(7)
    current, upstream = f32(rng.integers(-8, 16, (1, 4)) / 8), f32(rng.normal(size=(5, 4)))
    (spikes, stats), pull = jax.vjp(
        lambda c: lif(c, 0.5, surrogate='arctan', detach_reset=detach_reset, time_steps=5), current
    )
    u, s = eq_2(np.repeat(current, 5, axis=0), 0.5, 1)
    np.testing.assert_array_equal(spikes, s)
    close(stats, (u.mean(), u.var()))
    d_u, *_ = eq_7_and_8(upstream, u, s, 0.5, 0.5, 1, 'arctan', detach_reset)
    close(pull((upstream, jax.tree.map(jnp.zeros_like, stats)))[0], d_u.sum(0, keepdims=True))


def affine(rng, channels):
    return Affine(
        *f32([rng.integers(-4, 4, channels) / 8, rng.integers(2, 8, channels) / 4, rng.integers(-4, 4, channels) / 8])
    )


def written_out(terms, beta, time_steps, **options):
    """The loop on the sum in float32, each value at each step."""
    total = 0
    for term in terms:
        x, maps = term[:2] if isinstance(term, Normalised) else (term, None)
        x = jnp.broadcast_to(x, (time_steps, *x.shape[1:])).astype(jnp.float32)
        total += x if maps is None else (x - maps.mean) * maps.gain + maps.bias
    return lif_reference(total, beta, **options)[:2]


@functools.partial(jax.jit, static_argnames=('neurons', 'shape', 'detach_reset'))
def run_terms(neurons, terms, upstream, shape, detach_reset):
    forward = lambda terms: neurons(terms, 0.5, time_steps=len(upstream), surrogate=shape, detach_reset=detach_reset)
    spikes, pull, stats = jax.vjp(forward, terms, has_aux=True)
    return spikes, stats, *pull(upstream.astype(spikes.dtype))


@repeatable
@given(
    program=pairwise(
        [(3, 2, 2), (4, 2, 3, 2), (12, 3, 1, 2, 2)],
        DTYPES,
        ['n', 'nn', 'np', 'pn', 'ppn'],
        [False, True],
        SHAPES,
        [False, True],
    ),
    seed=st.integers(0, 99),
)
def test_terms_and_normalisations_are_those_of_the_sum(program, seed):
    """Spikes exactly, gradients of values and of maps (n: normalised, p: plain) as of the readable loop on the sum."""
    dims, dtype, kinds, constant, shape, detach_reset = program
    rng = np.random.default_rng(seed)
    given_dims = (1 if constant else dims[0], *dims[1:])
    draw = lambda: jnp.asarray(rng.integers(-16, 24, given_dims) / 8, dtype)
    terms = tuple(Normalised(draw(), affine(rng, dims[-1])) if kind == 'n' else draw() for kind in kinds)
    upstream = f32(rng.integers(-8, 8, dims) / 8)
    (spikes, stats, gradient), (expected, their_stats, right) = (
        run_terms(neurons, terms, upstream, shape, detach_reset) for neurons in (lif, written_out)
    )
    assert spikes.dtype == dtype
    np.testing.assert_array_equal(f64(spikes), f64(expected))
    close(stats, f64(their_stats))
    tolerance = {'float32': 1e-5, 'bfloat16': 2**-7}[dtype]
    for d, r in zip(jax.tree.leaves(gradient), jax.tree.leaves(right), strict=True):
        assert d.dtype == r.dtype
        close(d, f64(r), rtol=tolerance, atol=tolerance * (1 + np.abs(f64(r)).max()))


def test_the_backward_pass_keeps_what_the_norm_was_given_and_no_more():
    x, beta = jax.ShapeDtypeStruct((6, 7, 5), jnp.bfloat16), 1.0
    maps = Affine(*[jax.ShapeDtypeStruct((5,), jnp.float32)] * 3)
    forward = lambda x, maps: lif(Normalised(x, maps), beta)[0]
    kept = jax.eval_shape(lambda *values: jax.vjp(forward, *values)[1], x, maps)
    large = [leaf for leaf in jax.tree.leaves(kept) if leaf.size > 7 * 5]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [((6, 7, 5), jnp.bfloat16)]


def test_detaching_the_reset_matters():
    currents = f32([[1.25], [0.5], [0.75]])
    kept, detached = (run(currents, *f32([1, 0.5, 1]), np.ones_like(currents), 'arctan', d)[2] for d in (False, True))
    assert np.abs(kept - detached).max() > 0.1


def test_beta_and_threshold_per_channel():
    rng = np.random.default_rng(4)
    currents, upstream = (f32(rng.integers(-16, 16, (5, 3, 2)) / 8) for _ in range(2))
    beta, v_th = f32([0.5, 2]), f32([0.5, 1.5])
    spikes, _, d_currents, *_, d_v_th = run(currents, beta, f32(0.5), v_th, upstream)
    for i in range(2):
        u, s = eq_2(currents[..., i], 0.5, v_th[i])
        d_u, _, d_v = eq_7_and_8(upstream[..., i], u, s, beta[i], 0.5, v_th[i], 'triangular')
        np.testing.assert_array_equal(spikes[..., i], s)
        close(d_currents[..., i], d_u)
        close(d_v_th[i], d_v)


@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit], ids=['plain', 'jit'])
@pytest.mark.parametrize('beta', [0.5, f32(0.5), 2], ids=['float', 'float32', 'int'])
def test_constants_may_be_python_numbers(beta, wrap):
    currents = f32([[0.75], [1.0], [0.25]])
    gradient = wrap(jax.grad(lambda c: lif(c, beta, tau=0.5, v_th=1.0)[0].sum()))(currents)
    u, s = eq_2(currents, 0.5, 1)
    close(gradient, eq_7_and_8(np.ones((3, 1)), u, s, float(beta), 0.5, 1, 'triangular')[0])


def test_tau_one_integrates_and_fires():
    currents = np.full((8, 1), 0.25, np.float32)
    spikes, _ = lif(currents, 1.0, tau=1.0)
    np.testing.assert_array_equal(spikes[:, 0], [0, 0, 0, 1, 0, 0, 0, 1])
    assert lif(currents, 1.0, tau=0.5)[0].sum() == 0  # the leak holds u below 0.5


@pytest.mark.parametrize('tau', [0, 0.5, 1])
def test_no_input_no_spike(tau):
    spikes, stats = lif(np.zeros((4, 2, 3), np.float32), 1.0, tau=tau)
    assert not spikes.any()
    assert stats == (0, 0)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_potential_of_low_precision_currents_is_float32(dtype):
    # 0.75 + 2^-10 is 0.75 in bfloat16: a bfloat16 potential would miss the threshold.
    currents = jnp.asarray([0.75, *[2**-10] * 4, 0.25 - 2**-8], dtype)[:, None]
    upstream = jnp.ones_like(currents)
    spikes, stats, d_currents, *_ = run(currents, *f32([1, 1, 1]), upstream)
    u, s = eq_2(f64(currents), 1, 1)
    assert s.sum() == 1
    assert spikes.dtype == d_currents.dtype == dtype
    assert stats.mean.dtype == stats.variance.dtype == np.float32
    np.testing.assert_array_equal(f64(spikes), s)
    close(d_currents, eq_7_and_8(np.ones_like(u), u, s, 1, 1, 1, 'triangular')[0], rtol=2**-8)
    close(stats.mean, u.mean(), rtol=1e-6)
    close(stats.variance, u.var(), rtol=1e-4, atol=0)


@repeatable
@given(u=hnp.arrays(np.float32, (4, 5), elements=st.floats(-100, 100, width=32)), offset=st.sampled_from([0, 10, 1000]))
def test_statistics_are_those_of_float64(u, offset):
    u = f32(u + f32(offset))
    stats = membrane_stats(u)
    close(stats.mean, u.mean(dtype=np.float64), rtol=1e-6)
    close(stats.variance, u.var(dtype=np.float64), rtol=1e-5, atol=1e-6 * np.abs(u).max())
    assert stats.variance >= 0


def test_variance_far_from_zero():
    u = f32(np.random.default_rng(0).normal(1e4, 0.1, (10, 1000)))
    stats = jax.jit(membrane_stats)(u)
    close(stats.mean, u.mean(dtype=np.float64), rtol=1e-7)
    close(stats.variance, u.var(dtype=np.float64), rtol=1e-4)


def test_statistics_of_many_elements_do_not_saturate():
    # A running float32 sum of these stops growing at 2^25, half-way.
    stats = jax.jit(lambda pair: membrane_stats(jnp.tile(pair, 2**24)))(f32([1, 1.5]))
    assert stats == (1.25, 0.0625)


def test_statistics_of_float16_do_not_overflow():
    assert membrane_stats(jnp.full(4096, 300, 'float16')) == (300, 0)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_statistics_of_a_diverged_layer_are_not_finite(bad):
    _, stats = lif(f32([[1, bad], [1, 1]]), 1.0)
    assert not np.isfinite(stats.mean)
    assert np.isnan(stats.variance)


def test_no_gradient_through_statistics():
    gradient = jax.grad(lambda c: sum(lif(c, f32(1))[1]))(f32([[0.5, 1.5]]))
    np.testing.assert_array_equal(gradient, np.zeros((1, 2)))


CURRENTS = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ('error', 'message', 'call'),
    [
        (TypeError, 'currents must be floating, got dtype int32', lambda: lif(np.ones((2, 3), np.int32), 1.0)),
        (ValueError, r'at least one time step, got shape \(\)', lambda: lif(1.0, 1.0)),
        (ValueError, r'at least one time step, got shape \(0, 3\)', lambda: lif(np.ones((0, 3)), 1.0)),
        (ValueError, 'currents must have 1 or 3 time steps, got 2', lambda: lif(CURRENTS, 1.0, time_steps=3)),
        *[
            (ValueError, f'tau must lie in 0 to 1, got {t}', lambda t=t: lif(CURRENTS, 1.0, tau=t))
            for t in (-0.1, 1.1, np.nan)
        ],
        (
            ValueError,
            r'terms of one shape, got \[\(1, 3\), \(2, 3\)\]',
            lambda: lif((CURRENTS, CURRENTS[:1]), 1.0),
        ),
        (ValueError, r'terms of one shape, got \[\]', lambda: lif((), 1.0)),
        (ValueError, "'cuda', expected one of auto, scan, pallas", lambda: lif(CURRENTS, 1.0, implementation='cuda')),
        (ValueError, "one of triangular, .*'gauss'", lambda: lif(CURRENTS, 1.0, surrogate='gauss')),
        (ValueError, r'beta has shape \(2,\)', lambda: lif(CURRENTS, np.ones(2))),
        (ValueError, r'v_th has shape \(2,\)', lambda: lif(CURRENTS, 1.0, v_th=np.ones(2))),
        (
            ValueError,
            'beta_init must be greater than 0, got 0',
            lambda: LIF(beta_init=0).init(jax.random.key(0), CURRENTS),
        ),
        (
            ValueError,
            'scale_init must be greater than 0, got -1',
            lambda: LIF(scale_init=-1).init(jax.random.key(0), CURRENTS),
        ),
        (ValueError, r'scale has shape \(2,\)', lambda: lif(CURRENTS, 1.0, scale=np.ones(2))),
        (ValueError, 'tau must lie in 0 to 1, got 2', lambda: LIF(tau=2).init(jax.random.key(0), CURRENTS)),
    ],
)
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()


class Amplifier(nn.Module):
    @nn.compact
    def __call__(self, spikes):
        return LIF(surrogate='arctan', detach_reset=True)(1.5 * spikes)


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, currents):
        return Amplifier(name='second')(LIF(tau=0.25, v_th=0.75, beta_init=0.5, name='first')(currents))


@pytest.fixture(scope='module')
def two_layers():
    currents = f32(np.random.default_rng(1).integers(-8, 16, (5, 3, 2)) / 8)
    return TwoLayers(), TwoLayers().init(jax.random.key(0), currents), currents


def test_module_is_lif_with_its_attributes(two_layers):
    model, variables, currents = two_layers
    spikes, updates = model.apply(variables, currents, mutable=['membrane', 'firing_rate'])
    u, s = eq_2(currents, 0.25, 0.75)
    u2, s2 = eq_2(1.5 * s, 0.5, 1)
    np.testing.assert_array_equal(spikes, s2)
    for name, (potential, emitted) in {'first': (u, s), 'second': (u2, s2)}.items():
        (stats,) = jax.tree.leaves(updates['membrane'][name], is_leaf=lambda node: isinstance(node, MembraneStats))
        (rate,) = jax.tree.leaves(updates['firing_rate'][name])
        close(stats.mean, potential.mean())
        close(stats.variance, potential.var())
        close(rate, emitted.mean())
        assert rate.dtype == np.float32


def test_potentials_of_each_layer_are_given_where_asked_for(two_layers):
    model, variables, currents = two_layers
    spikes, updates = model.apply(variables, currents, mutable=['potentials'])
    u, s = eq_2(currents, 0.25, 0.75)
    u2, s2 = eq_2(1.5 * s, 0.5, 1)
    np.testing.assert_array_equal(spikes, s2)
    close(updates['potentials']['first']['potentials'], u)
    close(updates['potentials']['second']['LIF_0']['potentials'], u2)


def test_potentials_of_normalised_currents_that_are_the_same_at_every_step():
    values = f32(np.random.default_rng(2).normal(size=(1, 3, 4)))
    terms = Normalised(jnp.asarray(values), Affine(f32([0.1]), f32([2.0]), f32([0.5])))
    u, _ = eq_2(np.repeat((values - 0.1) * 2 + 0.5, 6, axis=0), 0.75, 0.5)
    close(potentials(terms, tau=0.75, v_th=0.5, time_steps=6), u)
    with pytest.raises(ValueError, match='currents must have 1 or 6 time steps, got 5'):
        potentials(np.ones((5, 3), np.float32), time_steps=6)


def test_collections_share_one_layout(two_layers):
    model, variables, currents = two_layers
    assert set(variables) == {'surrogate', 'scale'}
    assert variables['scale'] == {'first': {'scale': 1}, 'second': {'LIF_0': {'scale': 1}}}
    assert variables['surrogate'] == {'first': {'beta': 0.5}, 'second': {'LIF_0': {'beta': 1}}}
    assert all(beta.shape == () and beta.dtype == np.float32 for beta in jax.tree.leaves(variables))
    measured = ['membrane', 'currents', 'firing_rate', 'potentials']
    _, updates = model.apply(variables, currents, mutable=['surrogate', 'scale', *measured])
    assert all(updates[name] == variables[name] for name in variables)
    for name in measured:
        # Each under a name of its own, where beta has its: as attributes of one object they do not clash.
        assert set(updates[name]['first']) == set(updates[name]['second']['LIF_0']) == {name}
        paired = like_beta(updates[name], variables['surrogate'])
        assert jax.tree.structure(paired, is_leaf=is_stats) == jax.tree.structure(variables['surrogate'])
        assert paired['second']['LIF_0']['beta'] is updates[name]['second']['LIF_0'][name]
        assert like_beta(paired, variables['surrogate']) is paired
    with pytest.raises(ValueError, match=r'stats must have the layers of beta, \{first/beta\}, got \{first/membrane, '):
        like_beta(updates['membrane'], {'first': variables['surrogate']['first']})


def test_nothing_is_written_unasked(two_layers):
    model, variables, currents = two_layers
    assert isinstance(model.apply(variables, currents), jax.Array)
    for name in ('membrane', 'currents', 'distances', 'firing_rate', 'potentials', 'probes'):
        assert set(model.apply(variables, currents, mutable=[name])[1]) == {name}


def test_each_layer_uses_its_own_beta_without_recompiling(two_layers):
    model, _, currents = two_layers
    upstream = f32(np.random.default_rng(2).normal(size=currents.shape))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def gradient(surrogate, currents):
        return jax.grad(lambda c: jnp.sum(upstream * model.apply({'surrogate': surrogate}, c)))(currents)

    u, s = eq_2(currents, 0.25, 0.75)
    u2, s2 = eq_2(1.5 * s, 0.5, 1)
    for first, second in [(0.5, 1), (0.5, 2), (1, 2)]:
        surrogate = {'first': {'beta': f32(first)}, 'second': {'LIF_0': {'beta': f32(second)}}}
        middle, _, _ = eq_7_and_8(upstream, u2, s2, second, 0.5, 1, 'arctan', detach_reset=True)
        expected, _, _ = eq_7_and_8(1.5 * middle, u, s, first, 0.25, 0.75, 'triangular')
        close(gradient(surrogate, currents), expected)


@pytest.fixture
def chosen(monkeypatch):
    """What runs a layer, 'kernels' or 'scan', on a machine that has one GPU and nothing else."""
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(jax, 'device_count', lambda: 1)
    ran = []
    kernels = neuron._run_kernels

    def recorded(*arguments):
        ran.append('kernels')
        monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')  # which interprets them
        return kernels(*arguments)

    monkeypatch.setattr(neuron, '_run_kernels', recorded)
    return lambda: ran.pop() if ran else 'scan'


OF_A_GPU = np.random.default_rng(3).normal(0.5, 0.7, (4, 3, 2)).astype(np.float32)


def test_auto_takes_the_kernels_on_one_gpu_and_says_what_the_scan_does(chosen):
    found, stats = lif(OF_A_GPU, jnp.float32(1.5), scale=2.0, implementation='auto')
    assert chosen() == 'kernels'
    expected, expected_stats = lif(OF_A_GPU, 1.5, scale=2.0)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(stats.mean, expected_stats.mean, rtol=1e-6)
    np.testing.assert_allclose(stats.variance, expected_stats.variance, rtol=1e-5)


@pytest.mark.parametrize(
    'given',
    [
        {'tau': jnp.float32(0.5)},
        {'v_th': np.ones(2, np.float32)},
        {'beta': np.ones(2, np.float32)},
        {'scale': np.ones(2, np.float32)},
        {'per_channel': True},
        {'return_state': True},
        {'initial_state': np.zeros((3, 2), np.float32)},
    ],
    ids=lambda given: next(iter(given)),
)
def test_auto_leaves_to_the_scan_what_the_kernels_cannot_do(chosen, given):
    options = dict(given)
    lif(OF_A_GPU, options.pop('beta', 1.0), implementation='auto', **options)
    assert chosen() == 'scan'


@pytest.mark.parametrize(('backend', 'devices'), [('cpu', 1), ('tpu', 1), ('gpu', 2)])
def test_auto_is_the_scan_on_other_devices_or_several(chosen, monkeypatch, backend, devices):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    monkeypatch.setattr(jax, 'device_count', lambda: devices)
    lif(OF_A_GPU, 1.0, implementation='auto')
    assert chosen() == 'scan'
