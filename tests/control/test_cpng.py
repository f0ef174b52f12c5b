"""Algorithm 1 against a plain float64 transcription of the paper's listing."""

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
from scipy import optimize
from scipy.special import ndtr

from cpng_jax.control import cpng
from cpng_jax.control.cpng import CPNGConfig
from cpng_jax.control.effective_domain import chi
from cpng_jax.nn.statistics import MembraneStats

f32: Any = functools.partial(np.asarray, dtype=np.float32)
f64: Any = functools.partial(np.asarray, dtype=np.float64)
repeatable = settings(deadline=None, derandomize=True, max_examples=60)
jitted_update = jax.jit(cpng.update, static_argnames='config')
jitted_chi = jax.jit(chi)
is_stats = lambda node: isinstance(node, MembraneStats)


def membrane(mean, variance):
    return MembraneStats(f32(mean), f32(variance))


def eq_6(mean, variance, beta, v_th=1.0, half_width=1.0):
    """chi, in float64."""
    mean, sigma, radius = f64(mean), np.sqrt(f64(variance)), half_width / f64(beta)
    distance = np.abs(v_th - mean) / sigma
    return ndtr(radius / sigma - distance) - ndtr(-radius / sigma - distance)


def solve(chi_min, mean, variance, v_th, half_width):
    """The beta at which chi is chi_min: the paper's binary search, by Brent's method."""
    farthest = abs(v_th - mean) + 12 * math.sqrt(variance)
    residual = lambda radius: eq_6(mean, variance, half_width / radius, v_th, half_width) - chi_min
    return half_width / optimize.brentq(residual, 1e-12, farthest, xtol=1e-14)


def algorithm_1(e, stats, beta, chi_recorder, chi_limit, mode, v_th=1.0, half_width=1.0):
    """One call for call number e; changes the lists `beta` and `chi_recorder`, returns chi and the branches taken."""
    chis, branches = [], set()
    for layer, (mean, variance) in enumerate(stats):
        chi_cur = eq_6(mean, variance, beta[layer], v_th, half_width)
        chis.append(chi_cur)
        if e == 0:
            chi_recorder[layer] = chi_cur
            continue
        if mode == 'delayed':  # as printed
            if chi_recorder[layer] < chi_limit:
                chi_recorder[layer] = chi_limit
                branches.add('limit')
            elif chi_cur < chi_recorder[layer]:
                chi_recorder[layer] = chi_cur
                branches.add('below the limit' if chi_cur < chi_limit else 'lower')
        else:
            if chi_cur < chi_recorder[layer]:
                chi_recorder[layer] = chi_cur
                branches.add('lower')
            if chi_recorder[layer] < chi_limit:
                chi_recorder[layer] = chi_limit
                branches.add('limit')
        chi_min = chi_recorder[layer]
        if chi_min != chi_cur:
            beta[layer] = solve(chi_min, mean, variance, v_th, half_width)
            branches.add('update')
    return chis, branches


def random_stats(rng, shape=(), farthest=3.0):
    """Statistics within `farthest` standard deviations of the threshold, in float32."""
    sigma = 10 ** rng.uniform(-1, 0.5, shape)
    return membrane(1 + rng.uniform(-1, 1, shape) * farthest * sigma, sigma**2)


def close(actual, desired, **kwargs):
    np.testing.assert_allclose(f64(actual), f64(desired), **kwargs)


@pytest.mark.parametrize(
    ('chi_limit', 'surrogate', 'interval', 'half_width', 'v_th'),
    [
        (0.2, 'triangular', 'paper', 1, 1.0),
        (0, 'triangular', 'paper', 1, 1.0),
        (0.5, 'rectangular', 'support', 0.5, 0.75),
        (0.2, 'arctan', 'support', 1, 1.0),
    ],
)
@pytest.mark.parametrize('mode', cpng.LIMIT_MODES)
def test_update_is_algorithm_1(mode, chi_limit, surrogate, interval, half_width, v_th):
    rng, layers = np.random.default_rng(7), 5
    config = CPNGConfig(chi_limit, mode, interval, surrogate, v_th)
    beta = {f'layer{i}': f32(1) for i in range(layers)}
    state = cpng.init(beta)
    expected_beta, expected_recorder, seen = [1.0] * layers, [math.inf] * layers, set()
    for e in range(20):
        # The means stray further and further, so that chi falls in small steps first and below the limit later.
        stats = {name: random_stats(rng, farthest=0.2 * e) for name in beta}
        beta, state, report = cpng.update(stats, beta, state, config)
        chis, branches = algorithm_1(
            e, list(stats.values()), expected_beta, expected_recorder, chi_limit, mode, v_th, half_width
        )
        seen |= branches
        close(list(report.chi.values()), chis, atol=1e-5)
        close(list(state.chi_recorder.values()), expected_recorder, atol=1e-5)
        # A large beta is only as good as chi, which is small there.
        mean, variance = np.transpose(list(stats.values()))
        shares = [eq_6(mean, variance, b, v_th, half_width) for b in (list(beta.values()), expected_beta)]
        close(*shares, atol=1e-5)
        assert report.chi_min == state.chi_recorder
        assert report.skipped_layers() == []
    below = {'limit', 'below the limit'} if mode == 'delayed' else {'limit'}
    assert seen == {'lower', 'update'} | (below if chi_limit else set())


def test_first_call_only_records():
    beta = {'a': f32(0.5), 'b': f32(3)}
    stats = {'a': membrane(0.2, 0.5), 'b': membrane(-2.0, 0.5)}
    for mode in cpng.LIMIT_MODES:
        state = cpng.init(beta)
        assert state.chi_recorder == {'a': np.inf, 'b': np.inf}
        new, state, report = cpng.update(stats, beta, state, CPNGConfig(limit_mode=mode))
        assert new == beta
        assert state.chi_recorder == report.chi == report.chi_min
        assert report.chi['b'] < 0.2  # even below the limit
        close(report.chi['a'], eq_6(0.2, 0.5, 0.5), atol=1e-6)


def test_low_chi_is_raised_at_the_next_call_or_at_once():
    low, beta = membrane(-1.0, 0.25), f32(1)  # chi = 0.02
    results = {}
    for mode in cpng.LIMIT_MODES:
        state = cpng.init(beta)._replace(chi_recorder=f32(0.5))
        first, state, _ = cpng.update(low, beta, state, CPNGConfig(limit_mode=mode))
        second, state, _ = cpng.update(low, first, state, CPNGConfig(limit_mode=mode))
        results[mode] = [float(first), float(second)]
        close(eq_6(*low, second), 0.2, atol=1e-6)
    assert results['delayed'][0] == 1
    assert results['immediate'][0] == pytest.approx(results['delayed'][1], rel=1e-6)
    assert results['immediate'][0] < 1


@pytest.mark.parametrize('first', [False, True], ids=['later', 'first call'])
@pytest.mark.parametrize(
    'bad', [(0.3, 0), (math.nan, 1), (0, math.nan), (math.inf, 1), (0, math.inf), (math.nan, math.nan)]
)
def test_unusable_layers_are_named_and_left_alone(bad, first):
    beta = {'net': {'good': f32(2), 'bad': f32(0.7)}, 'other': [f32(1)]}
    good, bad = membrane(0.5, 1), membrane(*bad)
    state = cpng.init(beta)
    if not first:
        state = jax.tree.map(lambda _: f32(0.3), state)
    stats = {'net': {'good': good, 'bad': bad}, 'other': [good]}
    new, after, report = cpng.update(stats, beta, state)
    assert report.skipped_layers() == ['net/bad']
    assert new['net']['bad'] == f32(0.7)
    assert after.chi_recorder['net']['bad'] == state.chi_recorder['net']['bad']
    assert np.isnan(report.chi['net']['bad']) == (not np.isfinite(bad).all())
    changed = [new['net']['good'] != 2, new['other'][0] != 1]
    assert changed == [not first, not first]
    assert np.isfinite(jax.tree.leaves(new)).all()
    # Once its potentials are usable again, the layer goes on where it stood.
    new, after, report = cpng.update({**stats, 'net': {'good': good, 'bad': good}}, new, after)
    assert report.skipped_layers() == []
    assert (new['net']['bad'] != f32(0.7)) == (not first)


def test_layer_without_a_solution_is_named():
    # Far out chi is 0 in float32; without a limit there is no beta that gives it.
    far, near, beta = membrane(-40, 1), membrane(0.5, 1), [f32(1)]
    config = CPNGConfig(chi_limit=0)
    new, state, report = cpng.update([far], beta, cpng.init(beta), config)
    assert report.chi == [0]
    assert report.skipped_layers() == []
    new, state, report = cpng.update([near], new, state, config)
    assert report.skipped_layers() == ['0']
    assert new == beta
    assert state.chi_recorder == [0]


TREES = {
    'nested dict': {'conv1': {'lif': {'beta': f32(1)}}, 'fc_lif': {'beta': f32(2)}},
    'list': [f32(1), f32(0.5)],
    'tuple': (f32(1), {'deep': [f32(2)]}),
    'per channel': {'a': f32([0.5, 1, 2]), 'b': np.full((2, 2), 1.5, np.float32), 'c': f32(1)},
    'single scalar': f32(1),
    'single array': f32([[1, 2]]),
    'empty': {},
    'mixed': {'a': f32(1), 'b': np.asarray(2, jnp.bfloat16), 'c': np.ones(3, np.float16)},
    'bfloat16': {'a': np.asarray(1, jnp.bfloat16), 'b': np.asarray([2, 2], jnp.bfloat16)},
    'float16': [np.ones(2, np.float16)],
}


@pytest.mark.parametrize('tree', TREES.values(), ids=TREES)
def test_any_tree_gives_what_each_number_alone_gives(tree):
    rng, leaves, structure = np.random.default_rng(0), *jax.tree.flatten(tree)
    stats = jax.tree.map(lambda leaf: random_stats(rng, np.shape(leaf)), tree)
    # Records above and below today's chi.
    records = jax.tree.map(lambda leaf: f32(rng.uniform(0.2, 0.9, np.shape(leaf))), tree)
    new, state, report = cpng.update(stats, tree, cpng.CPNGState(records))
    for result in (new, state.chi_recorder, report.chi, report.chi_min, report.skipped):
        assert jax.tree.structure(result) == structure
        assert [leaf.shape for leaf in jax.tree.leaves(result)] == [np.shape(leaf) for leaf in leaves]
    assert [leaf.dtype for leaf in jax.tree.leaves(new)] == [leaf.dtype for leaf in leaves]
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((state, report.chi)))
    assert all(leaf.dtype == bool for leaf in jax.tree.leaves(report.skipped))
    groups = zip(
        leaves, jax.tree.leaves(stats, is_leaf=is_stats), *map(jax.tree.leaves, (records, new, state)), strict=True
    )
    for before, measured, record, after, recorded in groups:
        for i in np.ndindex(np.shape(before)):
            state = cpng.CPNGState(record[i])
            alone, state, _ = cpng.update(membrane(measured.mean[i], measured.variance[i]), before[i], state)
            close(after[i], alone, rtol=1e-5)
            close(recorded[i], state.chi_recorder, atol=1e-6)


def test_float64_statistics_leave_the_dtypes_alone():
    beta = {'a': f32(1), 'b': f32(2)}
    stats = {name: MembraneStats(f64(0.3), f64(0.5)) for name in beta}
    with jax.enable_x64(True):
        state = cpng.init(beta)
        for _ in range(2):
            new, state, _ = cpng.update(stats, beta, state)
            assert {leaf.dtype for leaf in jax.tree.leaves((new, state))} == {np.dtype('float32')}


def test_skipped_layer_per_channel_and_alone():
    beta, good = f32([1, 1]), f32([1, 1])
    _, _, report = cpng.update({'a': membrane(good, [1, 0])}, {'a': beta}, cpng.init({'a': beta}))
    assert report.skipped_layers() == ['a']
    assert report.skipped['a'].tolist() == [False, True]
    _, _, report = cpng.update(membrane(1, 0), 1.0, cpng.init(1.0))
    assert len(report.skipped_layers()) == 1


def test_inputs_are_left_unchanged():
    make = lambda: (
        {'a': membrane([0.5, 0.1], [1, 2])},
        {'a': f32([1, 2])},
        cpng.CPNGState({'a': f32([0.25, 0.1])}),
    )
    inputs = make()
    new, *_ = cpng.update(*inputs)
    assert (new['a'] != inputs[1]['a']).all()
    chex.assert_trees_all_equal(inputs, make())


def test_jit_gives_the_numbers_of_the_host():
    rng = np.random.default_rng(5)
    for mode in cpng.LIMIT_MODES:
        config = CPNGConfig(limit_mode=mode)
        beta = traced_beta = {'a': np.ones(30, np.float32), 'b': f32(1)}
        state = traced_state = cpng.init(beta)
        for _ in range(6):
            stats = {'a': random_stats(rng, 30), 'b': random_stats(rng)}
            host = beta, state, _ = cpng.update(stats, beta, state, config)
            traced = traced_beta, traced_state, _ = jitted_update(stats, traced_beta, traced_state, config)
            for x, y in zip(*map(jax.tree.leaves, (host, traced)), strict=True):
                if x.dtype == bool:
                    np.testing.assert_array_equal(x, y)
                else:
                    np.testing.assert_array_max_ulp(np.asarray(x), np.asarray(y), maxulp=1)


def test_new_values_do_not_recompile():
    compilations = []
    listener = lambda event, *_, **__: compilations.append(event) if 'backend_compile' in event else None
    rng, beta = np.random.default_rng(6), {'a': f32(1), 'b': f32(np.ones(23))}  # a shape that no other test has
    state = cpng.init(beta)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for call in range(5):
            stats = {'a': random_stats(rng), 'b': random_stats(rng, 23)}
            beta, state, _ = cpng.update(stats, beta, state, CPNGConfig(chi_limit=0.1 + 0.05 * call, v_th=1 + call))
            if call == 0:
                assert compilations
            if call == 1:  # beta is now a device array
                compilations.clear()
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert not compilations


def test_update_can_be_traced_and_scanned():
    rng = np.random.default_rng(8)
    stats = [random_stats(rng, 3) for _ in range(5)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *stats)
    chex.clear_trace_counter()

    @jax.jit
    def scanned(beta, stacked):
        @chex.assert_max_traces(n=1)
        def step(carry, measured):
            beta, state, report = cpng.update(measured, *carry)
            return (beta, state), report.chi

        return jax.lax.scan(step, (beta, cpng.init(beta)), stacked)

    beta = np.ones(3, np.float32)
    (by_scan, _), chis = scanned(beta, stacked)
    state = cpng.init(beta)
    for measured, chi_scanned in zip(stats, chis, strict=True):
        beta, state, report = cpng.update(measured, beta, state)
        close(chi_scanned, report.chi, rtol=1e-6)
    close(by_scan, beta, rtol=1e-6)


special = st.sampled_from([0, math.nan, math.inf, 1e-30, 1e30])
distances = st.lists(st.floats(-8, 8), min_size=4, max_size=4)
variances = st.lists(st.one_of(st.floats(-5, 3).map(lambda power: 10**power), special), min_size=4, max_size=4)


@repeatable
@given(
    calls=st.lists(st.tuples(distances, variances), min_size=2, max_size=6),
    start=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    mode=st.sampled_from(cpng.LIMIT_MODES),
    chi_limit=st.sampled_from([0, 0.2]),
)
def test_invariants(calls, start, mode, chi_limit):
    config = CPNGConfig(chi_limit, mode)
    beta = f32(start)
    state = cpng.init(beta)
    for distance, variance in calls:
        sigma = np.sqrt(f64(variance))
        stats = membrane(1 + distance * np.where(np.isfinite(sigma), sigma, 1), variance)
        new, after, report = jax.tree.map(np.asarray, jitted_update(stats, beta, state, config))
        recorder, before = after.chi_recorder, np.asarray(state.chi_recorder)
        assert (new > 0).all()
        assert np.isfinite(new).all()
        assert ((recorder <= before) | (recorder == f32(chi_limit))).all()
        assert (((recorder >= 0) & (recorder <= 1)) | np.isinf(recorder)).all()
        share = jitted_chi(stats, beta)
        np.testing.assert_array_equal(np.isnan(report.chi), np.isnan(share))
        close(report.chi, share, atol=1e-6)
        kept = new == beta
        assert kept[report.skipped].all()
        # What moved now has chi_min; what stayed, unless skipped, had it already.
        close(eq_6(stats.mean[~kept], stats.variance[~kept], new[~kept]), recorder[~kept], atol=1e-5)
        settled = kept & ~report.skipped & np.isfinite(before)
        close(report.chi[settled], recorder[settled], atol=1e-5)
        beta, state = new, after


A, B = f32(1), f32([1, 2])
STATS = {'a': membrane(0.5, 1), 'b': membrane([0, 1], [1, 1])}
STATE = cpng.CPNGState({'a': A, 'b': B})


@pytest.mark.parametrize(
    ('message', 'stats', 'state'),
    [
        (r'stats must have the layers of beta, \{a, b\}, got \{a\}', {'a': STATS['a']}, STATE),
        (r'stats must have the layers of beta, \{a, b\}, got \{a, b, c\}', {**STATS, 'c': STATS['a']}, STATE),
        (r'state.chi_recorder must have the layers of beta, \{a, b\}, got \{x\}', STATS, cpng.CPNGState({'x': A})),
        (r'stats of layer b has shape \(\), its beta \(2,\)', {**STATS, 'b': STATS['a']}, STATE),
        (r'stats of layer a has shape \(2,\), its beta \(\)', {**STATS, 'a': STATS['b']}, STATE),
        (r'state.chi_recorder of layer b has shape \(\)', STATS, cpng.CPNGState({'a': A, 'b': A})),
        ('MembraneStats for each beta, found float', {**STATS, 'a': 0.5}, STATE),
        ('MembraneStats for each beta, found float', {**STATS, 'a': (0.5, 1.0)}, STATE),
    ],
)
def test_mismatched_trees(message, stats, state):
    with pytest.raises(ValueError, match=message):
        cpng.update(stats, {'a': A, 'b': B}, state)


def test_mismatched_containers():
    # The same names: the message must say more than those.
    with pytest.raises(ValueError, match=r'stats must .*(list|\[\*\]).*|stats must .*PyTreeDef'):
        cpng.update([STATS['a']], (A,), cpng.init((A,)))


def test_mismatch_of_the_only_layer():
    with pytest.raises(ValueError, match=r'stats of layer \(the only one\) has shape \(\), its beta \(2,\)'):
        cpng.update(STATS['a'], B, cpng.init(B))


@pytest.mark.parametrize(
    ('message', 'fields'),
    [
        *[(f'chi_limit must lie in 0 <= chi_limit < 1, got {v}', {'chi_limit': v}) for v in (-0.1, 1.0, math.nan)],
        ("limit_mode must be one of delayed, immediate, got 'never'", {'limit_mode': 'never'}),
        ("interval must be one of paper, support, got 'half'", {'interval': 'half'}),
        ("surrogate must be one of triangular, .* got 'gauss'", {'surrogate': 'gauss'}),
    ],
)
def test_bad_config(message, fields):
    with pytest.raises(ValueError, match=message):
        CPNGConfig(**fields)


def test_defaults_are_the_paper():
    assert CPNGConfig() == CPNGConfig(0.2, 'delayed', 'paper', 'triangular', 1.0)
    state = cpng.CPNGState(f32(0.4))
    by_default, *_ = cpng.update(STATS['a'], A, state)
    assert by_default == cpng.update(STATS['a'], A, state, CPNGConfig())[0] != A


def test_a_beta_that_is_nan_does_not_spoil_the_record():
    state = cpng.CPNGState({'a': f32(0.3)})
    _, state, report = cpng.update({'a': membrane(0.5, 0.4)}, {'a': f32(np.nan)}, state)
    assert float(state.chi_recorder['a']) == np.float32(0.3)
    assert report.skipped_layers() == ['a']


def test_the_only_layer_has_a_name_too():
    _, _, report = cpng.update(membrane(0.5, 0.0), f32(1), cpng.init(f32(1)))
    assert report.skipped_layers() == ['(the only one)']
