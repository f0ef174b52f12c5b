"""chi counted from the potentials against numpy's counts, and Algorithm 1 on it."""

import functools
from typing import Any

import chex
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpng_jax.control import cpng
from cpng_jax.control.effective_domain import beta_for_chi, chi
from cpng_jax.nn.neuron import lif
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import DISTANCES, MembraneDistances, membrane_stats
from tests.equations import eq_2
from tests.training.test_step import batch, make

f32: Any = functools.partial(np.asarray, dtype=np.float32)
V_TH = 0.75


def count(u, radius, v_th=1.0):
    """The share of potentials within a radius of the threshold."""
    return np.mean(np.abs(np.float64(u) - v_th) <= radius)


def distances_of(u, v_th=1.0):
    return MembraneDistances(f32([count(u, edge, v_th) for edge in DISTANCES]))


def bin_mass(u, radius, v_th=1.0):
    """The share of potentials in the bin that a radius lies in: what linear interpolation may be off by."""
    edges = [0, *DISTANCES, np.inf]
    high = np.searchsorted(edges, radius)
    return count(u, edges[high], v_th) - count(u, edges[max(high - 1, 0)], v_th)


def two_humps(seed, size=20_000):
    """Potentials as far from a Gaussian as those of a layer after fully connected ones (A.5)."""
    rng = np.random.default_rng(seed)
    return f32(np.where(rng.random(size) < 0.7, rng.normal(-1, 0.2, size), rng.normal(1.4, 0.5, size)))


@pytest.mark.parametrize('shape', [(3, 4, 5), (2, 3, 4, 4, 2)], ids=['dense', 'maps'])
def test_a_layer_counts_its_potentials(shape):
    # Eighths, so that some lie exactly at a distance that is counted up to.
    currents = f32(np.random.default_rng(0).integers(-32, 32, shape) / 8)
    layer = LIF(tau=0.5, v_th=V_TH)
    variables = layer.init(jax.random.key(0), currents)
    spikes, updates = layer.apply(variables, currents, mutable=['distances'])
    u, s = eq_2(currents, 0.5, V_TH)
    np.testing.assert_array_equal(spikes, s)
    assert set(updates) == {'distances'}
    counted = updates['distances']['distances']
    assert isinstance(counted, MembraneDistances)
    assert counted.shares.dtype == np.float32
    np.testing.assert_allclose(counted.shares, distances_of(u, V_TH).shares, rtol=1e-6)


def test_nothing_is_counted_unasked():
    currents = f32(np.ones((2, 3, 4)))
    layer = LIF()
    variables = layer.init(jax.random.key(0), currents)
    assert set(variables) == {'surrogate', 'scale'}
    _, updates = layer.apply(variables, currents, mutable=['membrane', 'firing_rate'])
    assert set(updates) == {'membrane', 'firing_rate'}
    traced = lambda mutable: str(jax.make_jaxpr(lambda c: layer.apply(variables, c, mutable=mutable))(currents))
    assert f',{len(DISTANCES)}]' in traced(['distances'])
    assert f',{len(DISTANCES)}]' not in traced(['membrane', 'firing_rate'])


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_counts_of_a_diverged_layer_are_not_finite(bad):
    currents = f32(np.zeros((2, 3, 4)))
    currents[1, 2, 0] = bad
    layer = LIF()
    _, updates = layer.apply({'surrogate': {'beta': f32(1)}}, currents, mutable=['distances'])
    assert np.isnan(updates['distances']['distances'].shares).all()
    assert np.isnan(chi(updates['distances']['distances'], 1.0))
    assert beta_for_chi(0.5, updates['distances']['distances']) == 0
    _, state, report = cpng.update(updates['distances']['distances'], f32(1), cpng.CPNGState(f32(0.5)))
    assert report.skipped
    assert state.chi_recorder == 0.5


def test_the_kernels_do_not_count():
    layer = LIF(implementation='pallas')
    with pytest.raises(ValueError, match=r"implementation is 'pallas', expected 'scan'"):
        layer.apply({'surrogate': {'beta': f32(1)}}, f32(np.ones((2, 3, 4))), mutable=['distances'])


def test_chi_is_the_count_at_each_distance():
    u = two_humps(0)
    for surrogate, interval, width in [('triangular', 'paper', 1), ('rectangular', 'support', 0.5)]:
        shares = chi(distances_of(u), f32(width / DISTANCES), surrogate=surrogate, interval=interval)
        np.testing.assert_allclose(shares, [count(u, edge) for edge in DISTANCES], atol=2e-6)


potentials = st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=30).map(f32)


@given(u=potentials, radius=st.floats(1e-3, 40))
def test_chi_is_the_count_within_the_bin(u, radius):
    share = chi(distances_of(u), f32(1 / radius))
    assert share.dtype == np.float32
    assert 0 <= share <= 1
    assert abs(share - count(u, radius)) <= bin_mass(u, radius) + 1e-5


@given(u=potentials, target=st.floats(0.01, 0.99))
def test_the_inverse_of_the_count(u, target):
    measured = distances_of(u)
    beta = beta_for_chi(target, measured)
    if target > measured.shares[-1]:
        assert beta == 0  # even within a distance of 32 there are fewer
    else:
        assert beta > 0
        assert abs(chi(measured, beta) - target) < 1e-5


@pytest.mark.parametrize('target', [0, 1, -0.5, np.nan])
def test_no_beta_gives_such_a_chi(target):
    assert beta_for_chi(target, distances_of(two_humps(0))) == 0


def test_a_width_of_no_end_has_the_share_within_the_last_distance():
    u = f32([0, 1, 50])
    assert chi(distances_of(u), 0.0) == np.float32(2 / 3)
    assert np.isnan(chi(distances_of(u), np.nan))


def test_many_layers_at_once_are_each_alone():
    layers = [distances_of(two_humps(seed) * scale) for seed, scale in enumerate((0.5, 1, 2))]
    together = MembraneDistances(np.stack([layer.shares for layer in layers]))
    betas = f32([0.5, 1, 3])
    np.testing.assert_allclose(chi(together, betas), [chi(*pair) for pair in zip(layers, betas, strict=True)])
    found = beta_for_chi(f32([0.2, 0.3, 0.1]), together)
    alone = [beta_for_chi(target, layer) for target, layer in zip((0.2, 0.3, 0.1), layers, strict=True)]
    np.testing.assert_allclose(found, alone, rtol=1e-6)
    assert chi(layers[0], betas).shape == (3,)


@pytest.mark.parametrize('mode', cpng.LIMIT_MODES)
def test_cpng_brings_the_counted_chi_back(mode):
    """Potentials draw nearer to the threshold from call to call: each time, numpy counts the smallest chi again."""
    config = cpng.CPNGConfig(chi_limit=0.1, limit_mode=mode)
    beta, gaussian_error = {'a': f32(1), 'b': f32(1)}, []
    state = cpng.init(beta)
    for call in range(6):
        u = {name: 1 + (two_humps(call) - 1) * (1 - 0.1 * call) * size for name, size in (('a', 1), ('b', 3))}
        stats = {name: distances_of(values) for name, values in u.items()}
        seen = dict(beta)
        beta, state, report = cpng.update(stats, beta, state, config)
        assert report.skipped_layers() == []
        for name, values in u.items():
            before, after = 1 / float(seen[name]), 1 / float(beta[name])
            assert abs(report.chi[name] - count(values, before)) <= bin_mass(values, before) + 1e-5
            if call == 0:
                assert beta[name] == 1
                continue
            assert abs(count(values, after) - report.chi_min[name]) <= bin_mass(values, after) + 1e-5
            assert abs(count(values, after) - report.chi_min[name]) < 0.02
            as_gaussian = beta_for_chi(report.chi_min[name], membrane_stats(values))
            gaussian_error.append(abs(count(values, 1 / float(as_gaussian)) - report.chi_min[name]))
    assert max(gaussian_error) > 0.04  # what counting is for


def test_kinds_of_statistics_are_not_mixed():
    u = two_humps(0)
    beta = {'a': f32(1), 'b': f32(1)}
    with pytest.raises(ValueError, match='MembraneDistances for each beta, found MembraneStats'):
        cpng.update({'a': distances_of(u), 'b': membrane_stats(u)}, beta, cpng.init(beta))
    with pytest.raises(ValueError, match=r'stats of layer a has shape \(2,\), its beta \(\)'):
        cpng.update({'a': MembraneDistances(np.ones((2, 5))), 'b': distances_of(u)}, beta, cpng.init(beta))


@pytest.mark.trains
def test_a_step_counts_the_same_whether_in_parts_or_pooled():
    *_, state, step = make(counted=True)
    *_, parted, step_in_parts = make(counted=True, accumulate=4)
    once, other = step(state, batch(0)), step_in_parts(parted, batch(0))
    shares = once.epoch.observed['distances']['conv01']['lif']['beta'].shares
    assert shares.shape == DISTANCES.shape
    assert (np.diff(shares) >= 0).all()
    assert other.epoch.observed['distances']['conv01']['lif']['beta'].shares.shape == DISTANCES.shape
    *_, state, step = make(counted=True, pool_statistics=True)
    *_, last, last_only = make(counted=True)
    each = []
    for seed in range(3):
        state, last = step(state, batch(seed)), last_only(last, batch(seed))
        each.append(np.array(last.epoch.observed['distances']['conv02']['lif']['beta'].shares))
    np.testing.assert_allclose(
        state.epoch.observed['distances']['conv02']['lif']['beta'].shares, np.mean(each, axis=0), atol=1e-6
    )


@pytest.mark.trains
def test_counting_changes_nothing_but_beta():
    """The same weights with and without, and the share that the step counts is that of the layer called by itself."""
    *_, state, step = make(counted=True, every_batch=True)
    *_, plain, plain_step = make()
    state, plain = step(state, batch(0)), plain_step(plain, batch(0))
    chex.assert_trees_all_close(state.params, plain.params, rtol=1e-6)  # the first call of Algorithm 1 only records
    recorded = state.control.chi_recorder['conv01']['lif']['beta']
    assert float(recorded) == pytest.approx(
        float(chi(state.epoch.observed['distances']['conv01']['lif']['beta'], 1.0)), abs=1e-6
    )


def test_lif_itself_returns_moments_alone():
    spikes, stats = lif(f32(np.ones((2, 3, 4))), 1.0)
    assert spikes.shape == (2, 3, 4)
    assert stats.mean.shape == ()
