"""The gain of a layer against its equation, and its inverses."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from cpng_jax import LIF, MembraneDistances, MembraneStats, Surrogate
from cpng_jax.control import gradient_gain
from cpng_jax.control.gradient_gain import Gradients, Signals, gain_by_layer
from cpng_jax.nn.statistics import DISTANCES
from tests.equations import eq_3_and_4, expectations

f32: Any = functools.partial(np.asarray, dtype=np.float32)
f64: Any = functools.partial(np.asarray, dtype=np.float64)
BUMP = Surrogate('bump', lambda x, beta: beta * jnp.exp(-math.pi * jnp.square(beta * x)), support=math.inf)
SHAPES = ['triangular', 'rectangular', 'arctan', BUMP]
gain, scale_for_gain, beta_for_gain = (
    functools.partial(jax.jit, static_argnames=('surrogate', 'time_steps', 'detach_reset'))(function)
    for function in (gradient_gain.gain, gradient_gain.scale_for_gain, gradient_gain.beta_for_gain)
)
repeatable = settings(deadline=None, derandomize=True, max_examples=100)


def by_the_equation(mean, variance, beta, scale, currents, rate, v_th, shape, tau, time_steps, rho, detach_reset):
    """E[g^2] Var(c) / (r (1 - r)), g the gradient by the current: Eq. 7 and 8 squared, each product by itself."""
    points = v_th + np.array([-5, -1, -0.5, -0.2, 0.2, 0.5, 1, 5]) / beta
    f, ff, uf, below_f, below_uf, uff, uuff = expectations(
        lambda x: float(eq_3_and_4(x, beta, shape)), mean, variance, v_th, points
    )
    kept = 0.0 if detach_reset else 1.0
    # g = h f d + a g' with a = tau (1 - s) - tau h u f, d the gradient by the spike, g' by the next step's current.
    a = tau * (1 - rate) - kept * tau * scale * uf
    aa = tau**2 * (1 - rate) - kept * 2 * tau**2 * scale * below_uf + kept * tau**2 * scale**2 * uuff
    fa = tau * scale * below_f - kept * tau * scale**2 * uff
    squares = [scale**2 * ff]
    for later in range(1, time_steps):
        with_next = rho * scale * f * sum(a**k for k in range(later))
        squares.append(scale**2 * ff + 2 * fa * with_next + aa * squares[-1])
    return np.mean(squares) * currents / (rate * (1 - rate))


@pytest.mark.parametrize(
    ('shape', 'time_steps', 'detach_reset'),
    [('triangular', 1, False), ('rectangular', 4, False), ('arctan', 4, True), ('triangular', 6, False)],
)
def test_gain_is_that_of_the_equation(shape, time_steps, detach_reset):
    cases = [(0.0, 1.25, 1.0, 1.0), (-0.7, 0.8, 0.4, 2.0), (0.4, 0.3, 2.5, 0.6), (-1.0, 4.0, 1.5, 1.3)]
    rest = dict(tau=0.6, time_steps=time_steps, detach_reset=detach_reset)
    mean, variance, beta, scale = f64(cases).T
    rate = norm.sf((0.9 - mean) / np.sqrt(variance))
    with jax.enable_x64(True):
        found = gain(
            MembraneStats(mean, variance), beta, scale, currents=0.9 * variance, firing_rate=rate, v_th=0.9,
            correlation=0.3, surrogate=shape, **rest,
        )  # fmt: skip
    expected = [
        by_the_equation(*case, 0.9 * case[1], r, 0.9, shape, 0.6, time_steps, 0.3, detach_reset)
        for case, r in zip(cases, rate, strict=True)
    ]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_gradients_of_a_layer_grow_as_predicted():
    """Gaussian currents at one step, drawn: the mean squares of gradients behind and before neurons."""
    rng = np.random.default_rng(0)
    currents, upstream = rng.normal(0.1, 1.2, 1_000_000), rng.normal(size=1_000_000)
    stats, rate = MembraneStats(currents.mean(), currents.var()), np.mean(currents >= 1)
    for shape in SHAPES[:3]:
        before = upstream * 1.4 * eq_3_and_4(currents - 1, 0.8, shape)
        measured = np.mean(before**2) / np.mean(upstream**2) * currents.var() / np.var(currents >= 1)
        predicted = gain(stats, 0.8, 1.4, currents=currents.var(), firing_rate=rate, surrogate=shape)
        np.testing.assert_allclose(predicted, measured, rtol=0.01)


# Of layers as there are: the threshold within five standard deviations of the mean.
numbers = {
    'distance': st.floats(-5, 5),
    'sigma': st.floats(-2, 2).map(lambda power: 10**power),
    'currents': st.floats(-1, 1).map(lambda power: 10**power),
    'target': st.floats(-2, 1.5).map(lambda power: 10**power),
    'v_th': st.floats(0.2, 3),
}


def layer(distance, sigma, currents, v_th):
    """Statistics of such a layer, and what its neurons then do."""
    stats = MembraneStats(v_th - distance * sigma, sigma**2)
    return stats, dict(currents=currents * sigma**2, firing_rate=norm.sf(distance), v_th=v_th, tau=0.5 + 0 * distance)


def check_inverses(arguments, shape, time_steps, dtype, transform=lambda function: function):
    """The gain at what the inverses give is the target, to 1e-5; returns height and width, 0 where there is none."""
    distance, sigma, currents, target, v_th = arguments
    stats, given = jax.tree.map(lambda value: jnp.asarray(value, dtype), layer(distance, sigma, currents, v_th))
    options, target = {'surrogate': shape, 'time_steps': time_steps}, jnp.asarray(target, dtype)
    height_of, width_of, gain_of = (
        transform(lambda *values, f=function: f(*values[:-1], **values[-1], **options))
        for function in (scale_for_gain, beta_for_gain, gain)
    )
    one = jnp.ones_like(stats.mean)
    beta, height = jnp.asarray(0.7 / sigma, dtype), 0.8 * one
    scale = height_of(target, stats, beta, given)
    assert scale.dtype == dtype
    np.testing.assert_array_equal(scale > 0, True)
    shape_of_all = lambda leaf: jnp.broadcast_to(leaf, target.shape)
    stats, beta, height, given = jax.tree.map(shape_of_all, (stats, beta, height, given))
    np.testing.assert_allclose(gain_of(stats, beta, scale, given), target, rtol=1e-5)
    width = width_of(target, stats, height, given)
    assert np.isfinite(width).all()
    found = gain_of(stats, jnp.where(width > 0, width, 1), height, given)
    np.testing.assert_allclose(jnp.where(width > 0, found, target), target, rtol=1e-5)
    return np.asarray(scale), np.asarray(width)


def test_inverses_of_many_layers_and_targets_at_once():
    rng = np.random.default_rng(0)
    distance, v_th = rng.uniform(-5, 5, (1, 60)), rng.uniform(0.2, 3, (1, 60))
    sigma, currents = 10 ** rng.uniform(-2, 2, (1, 60)), 10 ** rng.uniform(-1, 1, (1, 60))
    target = np.geomspace(0.01, 30, 8)[:, None] * np.ones(60)
    scale, width = check_inverses((distance, sigma, currents, target, v_th), 'arctan', 4, np.float32)
    # Both grow with the target; near the mean the gain grows with beta without end.
    assert (np.diff(scale, axis=0) > 0).all()
    assert (np.diff(width, axis=0)[(width > 0)[1:]] > 0).all()
    assert (width[:, np.abs(distance[0]) < 2] > 0).all()
    assert 0.7 < np.mean(width > 0) < 1


def test_inverses_of_a_shape_of_ones_own_in_float64_by_vmap():
    rng = np.random.default_rng(1)
    distance, v_th = rng.uniform(-2, 2, 60), rng.uniform(0.2, 3, 60)
    sigma, currents, target = (10 ** rng.uniform(*ends, 60) for ends in ((-2, 2), (-1, 1), (-2, 1.5)))
    with jax.enable_x64(True):
        _, width = check_inverses((distance, sigma, currents, target, v_th), BUMP, 1, np.float64, jax.vmap)
    assert (width > 0).all()


@repeatable
@given(**numbers)
def test_the_gain_at_the_result_is_the_target(distance, sigma, currents, target, v_th):
    check_inverses((distance, sigma, currents, target, v_th), 'triangular', 4, np.float32)


floats = st.floats(width=32, allow_subnormal=False)


@repeatable
@given(values=st.tuples(*[floats] * 9))
def test_never_nan(values):
    target, mean, variance, beta, scale, currents, rate, v_th, tau = map(jnp.float32, values)
    given = dict(currents=currents, firing_rate=rate, v_th=v_th, tau=tau, surrogate='triangular', time_steps=4)
    for found in (
        scale_for_gain(target, MembraneStats(mean, variance), beta, **given),
        beta_for_gain(target, MembraneStats(mean, variance), scale, **given),
    ):
        assert np.isfinite(found)
        assert found >= 0


USUAL = dict(mean=0.0, variance=1.25, target=1.0, other=1.0, currents=1.0, firing_rate=0.2, v_th=1.0, tau=0.5)


@pytest.mark.parametrize('counted', [False, True], ids=['moments', 'counts'])
def test_where_there_is_no_gain_there_is_no_solution(counted):
    bad = {
        'mean': [np.nan, np.inf],
        'variance': [0.0, -1.0, np.nan, np.inf],
        'target': [0.0, -1.0, np.nan, np.inf],
        'other': [0.0, -1.0, np.nan, np.inf],
        'currents': [0.0, np.nan, np.inf],
        'firing_rate': [0.0, 1.0, np.nan],
        'v_th': [np.nan, np.inf],
        'tau': [np.nan],
    }
    rows = [{**USUAL, name: value} for name, values in bad.items() for value in values] + [USUAL]
    if counted:
        rows = [USUAL, *(row for row in rows if row['mean'] == 0 and row['variance'] == 1.25)]
    columns = {name: f32([row[name] for row in rows]) for name in USUAL}
    stats: Any = MembraneStats(columns.pop('mean'), columns.pop('variance'))
    if counted:
        shares = np.tile(2 * norm.cdf(DISTANCES) - 1, (len(rows), 1))
        shares[0] = np.nan  # of potentials that were not finite
        stats = MembraneDistances(f32(shares))
    target, other = columns.pop('target'), columns.pop('other')
    for function in (scale_for_gain, beta_for_gain):
        if counted or function is scale_for_gain:
            found = function(target, stats, other, **columns, time_steps=4)
        else:
            found, pull = jax.vjp(lambda *of, f=function: f(*of, **columns, time_steps=4), target, stats, other)
            derivatives = pull(jnp.ones_like(found))
            for derivative in jax.tree.leaves(derivatives):
                assert not derivative[:-1].any() and derivative[-1]
        np.testing.assert_array_equal(found == 0, [*[True] * (len(rows) - 1), False])
    undefined = np.isnan(gain(stats, other, **columns, time_steps=4))
    # All but the targets are what a gain is of.
    np.testing.assert_array_equal(undefined, [*(row['target'] == 1 for row in rows[:-1]), False])


def test_no_potential_in_the_domain_has_no_height():
    stats = MembraneStats(f32(0), f32(1e-4))
    given = dict(currents=1.0, firing_rate=0.2)
    assert gain(stats, 5.0, **given) == 0
    assert scale_for_gain(1.0, stats, 5.0, **given) == 0
    assert scale_for_gain(1.0, stats, 0.9, **given) > 0


def test_of_several_widths_it_is_the_widest():
    """Three to five standard deviations off, the gain rises and falls again: the first crossing of a dense grid."""
    distance = f64([3, 3.5, 4, 4.5, 5])
    stats, given = layer(distance, np.full(5, 0.8), np.ones(5), 1.0)
    given |= dict(surrogate='triangular', time_steps=4)
    octaves = np.linspace(-6, 6, 601)[:, None]
    with jax.enable_x64(True):
        gains = np.asarray(gain(stats, 2**octaves, **given))
        peak = gains[: np.argmax(np.diff(gains, axis=0)[:, -1] < 0)].max(0)
        target = 0.5 * peak
        found = np.log2(beta_for_gain(target, stats, **given))
    crossings = (np.diff((gains >= target).astype(int), axis=0) != 0).sum(0)
    assert crossings[-1] > 1
    first = octaves[np.argmax(gains >= target, 0), 0]
    np.testing.assert_array_less(found, first + 1e-9)
    np.testing.assert_array_less(first - 0.0201, found)


def test_at_one_step_height_is_closed_and_time_has_no_part():
    stats, given = MembraneStats(f32(0.2), f32(0.9)), dict(currents=0.8, firing_rate=0.2)
    whole = gain(stats, 1.3, 1.0, **given)
    np.testing.assert_allclose(gain(stats, 1.3, 1.7, **given), 1.7**2 * whole, rtol=1e-6)
    np.testing.assert_allclose(scale_for_gain(2.5, stats, 1.3, **given), np.sqrt(2.5 / whole), rtol=1e-6)
    assert gain(stats, 1.3, tau=0.9, correlation=1.0, detach_reset=True, **given) == whole


@pytest.mark.parametrize(('mean', 'time_steps'), [(0.2, 1), (1.0, 4)])
def test_counts_of_gaussian_potentials_give_what_their_moments_give(mean, time_steps):
    """Counts know no side of the threshold: over several steps, of potentials about it."""
    shares = norm.cdf((1 + DISTANCES - mean) / 1.1) - norm.cdf((1 - DISTANCES - mean) / 1.1)
    counts, moments = MembraneDistances(f32(shares)), MembraneStats(f32(mean), f32(1.21))
    given = dict(currents=1.0, firing_rate=norm.sf((1 - mean) / 1.1), tau=0.5, time_steps=time_steps)
    beta = f32(np.geomspace(0.5, 3, 20))
    gains = gain(counts, beta, **given)
    np.testing.assert_allclose(gains, gain(moments, beta, **given), rtol=0.02)
    if time_steps == 1:
        return
    widths = beta_for_gain(gains, counts, **given)
    np.testing.assert_allclose(widths, beta, rtol=1e-4)
    np.testing.assert_allclose(gain(counts, widths, **given), gains, rtol=1e-5)
    heights = scale_for_gain(f32(1.2), counts, beta, **given)
    np.testing.assert_allclose(gain(counts, beta, heights, **given), np.full(20, 1.2), rtol=1e-5)


def measured(collections):
    """What two layers write, one of them with channels, and their betas."""
    layers = {'first': LIF(beta_init=0.8), 'block': {'lif': LIF(per_channel=True, beta_init=1.5)}}
    currents = f32(np.random.default_rng(0).normal(0.4, 1.2, (3, 50, 4)) * [1, 1.2, 0.7, 0.9])

    def of(layer):
        variables = layer.init(jax.random.key(0), currents)
        return variables, layer.apply(variables, currents, mutable=collections)[1]

    both = jax.tree.map(of, layers, is_leaf=lambda node: isinstance(node, LIF))
    pick = lambda name, index: jax.tree.map(
        lambda pair: pair[index][name], both, is_leaf=lambda n: isinstance(n, tuple)
    )
    signals = Signals(*(pick(name, 1) for name in collections))
    return signals, pick('surrogate', 0), pick('scale', 0)


def test_one_program_serves_every_threshold_decay_and_correlation():
    signals, beta, scale = measured(['membrane', 'currents', 'firing_rate'])
    traced, found, once = [], set(), 0
    shape = dataclasses.replace(BUMP, gradient=lambda x, beta: traced.append(x) or BUMP.gradient(x, beta))
    for numbers in ((1.0, 0.5, 0.2), (0.7, 0.5, 0.2), (0.7, 0.25, 0.2), (0.7, 0.25, 0.1)):
        network = Gradients(shape, **dict(zip(('v_th', 'tau', 'correlation'), numbers, strict=True)), time_steps=2)
        gains = gain_by_layer(signals, beta, scale, network)
        found.add(float(gains['first']['beta']))
        once = len(traced) if len(found) == 1 else once
    assert len(found) == 4
    assert len(traced) == once > 0


def test_all_layers_at_once_from_collections():
    signals, beta, scale = measured(['membrane', 'currents', 'firing_rate'])
    scale['first']['scale'] = f32(1.4)
    network = Gradients('arctan', v_th=1.0, tau=0.5, time_steps=3, correlation=0.1)
    gains = gain_by_layer(signals, beta, scale, network)
    assert jax.tree.structure(gains) == jax.tree.structure(beta)
    assert gains['block']['lif']['beta'].shape == (4,)
    for names, height in ((('first',), 1.4), (('block', 'lif'), 1.0)):
        walk = functools.partial(functools.reduce, lambda tree, name: tree[name], names)
        expected = gain(
            walk(signals.membrane)['membrane'], walk(beta)['beta'], height, v_th=1.0, surrogate='arctan', tau=0.5,
            currents=walk(signals.currents)['currents'].variance, firing_rate=walk(signals.firing_rate)['firing_rate'],
            time_steps=3, correlation=0.1,
        )  # fmt: skip
        np.testing.assert_allclose(walk(gains)['beta'], expected, rtol=1e-6)
    for name, changed in (
        ('membrane', {'first': signals.membrane['first']}),
        ('currents', {'other': signals.currents['first']}),
        ('firing_rate', {**signals.firing_rate, 'third': {'firing_rate': f32(0.1)}}),
    ):
        with pytest.raises(ValueError, match=r'must have the layers of beta, \{block/lif/beta, first/beta\}, got \{'):
            gain_by_layer(signals._replace(**{name: changed}), beta, scale, network)
    with pytest.raises(
        ValueError, match=r'must have the layers of beta, \{block/lif/beta, first/beta\}, got \{first/sc'
    ):
        gain_by_layer(signals, beta, {'first': scale['first']}, network)
    with pytest.raises(ValueError, match=r'scale of layer block/lif/beta has shape \(\), its beta \(4,\)'):
        gain_by_layer(signals, beta, {**scale, 'block': {'lif': {'scale': f32(1)}}}, network)
    distances = jax.tree.map(lambda leaf: MembraneDistances(np.ones((*leaf.shape, len(DISTANCES)))), beta)
    with pytest.raises(
        ValueError, match=r'currents must be measured as cpng_jax\.MembraneStats, got MembraneDistances'
    ):
        gain_by_layer(signals._replace(currents=distances), beta, scale, network)


@pytest.mark.parametrize('call', [gradient_gain.gain, lambda *args, **given: scale_for_gain(1.0, *args, **given)])
def test_errors(call):
    given = dict(currents=1.0, firing_rate=0.2)
    with pytest.raises(ValueError, match='time_steps must be at least 1, got 0'):
        call(MembraneStats(0.0, 1.0), 1.0, time_steps=0, **given)
    with pytest.raises(ValueError, match=r"surrogate must be one of triangular, .* got 'gauss'"):
        call(MembraneStats(0.0, 1.0), 1.0, surrogate='gauss', **given)


@pytest.mark.parametrize('counted', [False, True])
def test_the_gain_keeps_to_strict_ranks_and_dtypes(counted):
    """As JAX can be told to ask: nothing is promoted by itself."""
    moments = MembraneStats(jnp.asarray([[-0.1], [0.2]], jnp.float32), jnp.asarray([[1.2], [0.8]], jnp.float32))
    shares = jnp.broadcast_to(jnp.linspace(0.02, 0.99, len(DISTANCES), dtype=jnp.float32), (2, 1, len(DISTANCES)))
    seen: Any = MembraneDistances(shares) if counted else moments
    network: dict[str, Any] = {'currents': 1.0, 'firing_rate': 0.15, 'tau': 0.5, 'time_steps': 2}
    with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
        scale = scale_for_gain(1.0, seen, 0.5, **network)
        beta = beta_for_gain(1.0, seen, **network)
        np.testing.assert_allclose(gain(seen, 0.5, scale, **network), 1, rtol=1e-4)
        np.testing.assert_allclose(gain(seen, beta, **network), 1, rtol=1e-4)
