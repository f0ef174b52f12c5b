"""Potentials of each layer against numpy and scipy."""

import csv
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from matplotlib.image import imread

from cpng_jax.analysis import histograms, membrane
from cpng_jax.models.inputs import network_input
from cpng_jax.nn.statistics import MembraneStats
from cpng_jax.runtime.errors import UserError


def test_sums_of_a_batch_are_those_of_numpy():
    rng = np.random.default_rng(0)
    u = rng.normal(0.3, 0.8, (3, 5, 4, 7)).astype(np.float32)
    u[0, 0, 0] = [-50, 50, 1.25, 0.75, 0.9999, 1.0, 1.2501]
    sums = membrane.count(jnp.asarray(u), MembraneStats(jnp.float32(0.25), jnp.float32(0.49)), 1.0, jnp.float32(0.25))
    z = (u.astype(np.float64) - 0.25) / 0.7
    np.testing.assert_allclose(
        sums.powers, [np.sum(z**power, axis=(2, 3)) for power in (1, 2, 3)], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(sums.inside, np.sum((u > 0.75) & (u < 1.25), axis=(2, 3)))
    edges = np.concatenate([[-np.inf], np.linspace(-5, 5, membrane.BINS + 1), [np.inf]])
    expected = [np.histogram(z[:, example], edges)[0] for example in range(5)]
    moved = np.abs(np.asarray(sums.bins) - expected).sum()
    assert moved <= 2, 'at most one potential on an edge, which rounding may move'
    assert np.asarray(sums.bins).sum() == u.size
    assert sums.bins[0, 0] == sums.bins[0, -1] == 1


def test_equal_potentials_are_counted_too():
    frame = MembraneStats(jnp.float32(0.5), jnp.float32(0))
    sums = membrane.count(jnp.full((2, 3, 4), 0.5), frame, 1.0, jnp.float32(1))
    assert np.asarray(sums.inside).tolist() == [[4] * 3] * 2
    assert np.asarray(sums.bins).sum() == 24
    assert np.isfinite(sums.powers).all()


def all_potentials(run):
    """Potentials of each layer on the whole test split, in one batch."""
    dataset, state = run.setup.dataset, run.state
    images = np.stack([dataset.test[index]['image'] for index in range(len(dataset.test))])
    variables = {'params': state.params, 'batch_stats': state.batch_stats, 'surrogate': state.surrogate}
    network = network_input(jnp.asarray(images), dataset.mean, dataset.std)
    _, seen = run.setup.model.apply(variables, network, mutable=['potentials'])
    return {
        name: np.asarray(layer['lif']['potentials'], np.float64) for name, layer in sorted(seen['potentials'].items())
    }


@pytest.mark.trains
def test_the_table_is_what_numpy_and_scipy_make_of_all_potentials(run):
    layers = membrane.measure(run.setup, run.state)
    potentials = all_potentials(run)
    assert [layer.name for layer in layers] == [f'{name}/lif' for name in potentials]
    for layer, u in zip(layers, potentials.values(), strict=True):
        assert layer.count == u.size
        assert layer.beta == pytest.approx(run.epochs[-1]['beta'][layer.name])
        np.testing.assert_allclose(layer.mean, u.mean(), atol=1e-5)
        np.testing.assert_allclose(layer.std, u.std(), rtol=1e-5)
        np.testing.assert_allclose(layer.skewness, scipy.stats.skew(u, axis=None), atol=1e-3)
        radius, gaussian = 1 / layer.beta, scipy.stats.norm(u.mean(), u.std())
        np.testing.assert_allclose(layer.chi_gaussian, gaussian.cdf(1 + radius) - gaussian.cdf(1 - radius), atol=1e-5)
        np.testing.assert_allclose(layer.chi_counted, np.mean(np.abs(u - 1) < radius), atol=3 / u.size)
        expected, _ = np.histogram(u, layer.edges)
        assert np.abs(layer.bins - expected).sum() <= 1e-4 * u.size
        assert layer.bins.sum() > 0.99 * u.size


@pytest.mark.trains
def test_a_layer_may_have_a_beta_for_each_channel(run):
    betas = [np.linspace(0.5, 2, 4, dtype=np.float32), np.linspace(1, 3, 8, dtype=np.float32)]
    surrogate = jax.tree.unflatten(jax.tree.structure(run.state.surrogate), list(map(jnp.asarray, betas)))
    layers = membrane.measure(run.setup, run.state.replace(surrogate=surrogate))
    for layer, beta, u in zip(layers, betas, all_potentials(run).values(), strict=True):
        gaussian = scipy.stats.norm(u.mean(), u.std())
        each = gaussian.cdf(1 + 1 / beta) - gaussian.cdf(1 - 1 / beta)
        assert layer.beta == pytest.approx(beta.mean())
        np.testing.assert_allclose(layer.chi_gaussian, each.mean(), atol=1e-5)
        np.testing.assert_allclose(layer.chi_counted, np.mean(np.abs(u - 1) < 1 / beta), atol=10 / u.size)


@pytest.mark.parametrize('most', [1, 7, 360, 1000])
def test_part_of_a_split_is_spaced_evenly(most):
    part = membrane._EvenlySpaced(range(360), most)
    taken = [part[index] for index in range(len(part))]
    assert len(taken) == len(set(taken)) == min(most, 360)
    assert taken[0] == 0
    assert max(np.diff([*taken, 360])) - min(np.diff([*taken, 360])) <= 1


@pytest.mark.trains
def test_picture_and_table_are_written(run):
    written = membrane.analyse(run)
    assert [path.name for path in written] == ['membrane.png', 'membrane.csv', 'membrane.md']
    assert np.std(imread(written[0])) > 0.05, 'an empty picture'
    rows = list(csv.DictReader(written[1].read_text().splitlines()))
    assert [row['layer'] for row in rows] == ['conv01/lif', 'conv02/lif']
    for row in rows:
        assert float(row['chi Gaussian']) - float(row['chi counted']) == pytest.approx(float(row['difference']))
    text = written[2].read_text()
    assert 'vgg on digits, epoch 3 of 3, latest checkpoint' in text
    assert '| conv01/lif | ' in text


def make_layer(std=0.5, beta=1.0, name='conv01/lif'):
    edges = 0.2 + (std or 1) * np.linspace(-5, 5, 101)
    bins = np.round(1000 * np.exp(-0.5 * np.linspace(-5, 5, 100) ** 2)).astype(int)
    return histograms.Layer(name, beta, int(bins.sum()), 0.2, std, 0.0, 0.4, 0.39, edges, bins)


def test_a_panel_shows_histogram_gaussian_surrogate_and_domain():
    figure = histograms.draw([make_layer(beta=2.0)], 1.0, 'triangular')
    (axes,) = figure.axes
    gaussian, surrogate, threshold = axes.get_lines()
    x, y = gaussian.get_data()
    np.testing.assert_allclose(y, scipy.stats.norm(0.2, 0.5).pdf(x))
    x, y = surrogate.get_data()
    np.testing.assert_allclose(y / y.max(), np.maximum(1 - 2 * np.abs(x - 1), 0), atol=0.03)
    assert set(threshold.get_xdata()) == {1.0}
    domain = axes.patches[0]
    assert domain.get_x() == pytest.approx(0.5)
    assert domain.get_width() == pytest.approx(1.0)
    assert axes.get_title() == 'conv01\nχ 0.400, counted 0.390'


@pytest.mark.parametrize('count', [1, 5, 41])
def test_each_layer_has_a_panel(count):
    figure = histograms.draw([make_layer(name=f'{n}/lif') for n in range(count)], 1.0, 'arctan')
    assert sum(axes.get_visible() for axes in figure.axes) == count


@pytest.mark.parametrize('layer', [make_layer(std=0.0), make_layer(beta=0.01), make_layer(beta=200.0)])
def test_threshold_and_potentials_are_always_in_the_panel(layer):
    (axes,) = histograms.draw([layer], 1.0, 'rectangular').axes
    low, high = axes.get_xlim()
    assert low < 1.0 < high
    assert low < layer.mean < high
    assert high - low < 20


@pytest.mark.trains
def test_without_matplotlib_nothing_is_computed(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    monkeypatch.setattr(membrane, 'measure', lambda *_: pytest.fail('measured'))
    with pytest.raises(UserError, match='pip install matplotlib'):
        membrane.analyse(run)
