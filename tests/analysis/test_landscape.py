import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from cpng_jax.analysis import landscape
from cpng_jax.analysis.compared import Compared
from cpng_jax.errors import UserError
from cpng_jax.evaluate import evaluate_split
from cpng_jax.experiment import build, compile_steps, initial_state
from cpng_jax.layers import TdBN
from cpng_jax.losses import mean_output_cross_entropy
from cpng_jax.models.vgg import VGG

KEY = jax.random.key(0)


def filter_norms(weights):
    return np.linalg.norm(np.reshape(weights, (-1, weights.shape[-1])), axis=0)


# Few shapes, since each is compiled: dense, convolutions, a single filter, filters of a single weight.
SHAPES = [(7, 4), (3, 3, 2, 5), (1, 1, 4, 3), (5, 1), (1, 6)]


@given(st.sampled_from(SHAPES), st.integers(0, 2**31 - 1), st.floats(-3, 3))
def test_filters_of_a_direction_are_as_long_as_those_of_the_weights(shape, seed, exponent):
    weights = 10**exponent * np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    weights[..., 0] = 0
    params = {'conv': {'kernel': jnp.asarray(weights)}, 'norm': {'scale': jnp.ones(3)}, 'bias': jnp.ones(())}
    first, second = landscape.random_directions(params, jax.random.key(seed))
    for way in (first, second):
        np.testing.assert_allclose(filter_norms(way['conv']['kernel']), filter_norms(weights), rtol=1e-4)
        assert not np.any(way['norm']['scale']) and not np.any(way['bias'])
        assert jax.tree.structure(way) == jax.tree.structure(params)


def test_directions_depend_on_the_key_alone_and_differ_from_each_other_and_between_layers():
    params = {'a': jnp.ones((50, 40)), 'b': jnp.ones((50, 40))}
    ways = landscape.random_directions(params, KEY, 3)
    for way, same in zip(ways, landscape.random_directions(params, KEY, 3), strict=True):
        assert jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), way, same))
    drawn = np.stack([np.ravel(leaf) for way in ways for leaf in jax.tree.leaves(way)])
    correlation = np.corrcoef(drawn) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(2000)


def test_of_a_quadratic_loss_it_is_the_closed_form():
    rng = np.random.default_rng(0)
    params = {'a': rng.normal(size=(3, 4)), 'b': rng.normal(size=(5,))}
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    ways = [jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params) for _ in range(3)]
    compiled = []

    @jax.jit
    def loss(p):
        compiled.append(None)
        return jnp.sum(jnp.square(p['a'])) + 2 * jnp.sum(jnp.square(p['b']))

    points = np.concatenate([landscape.lines(1.5, 5, 3), rng.normal(size=(6, 3))])
    losses = landscape.landscape(loss, params, ways, points)
    a, b = (np.stack([way[name].ravel() for way in ways]) for name in ('a', 'b'))
    expected = np.sum((params['a'].ravel() + points @ a) ** 2, axis=1) + 2 * np.sum((params['b'] + points @ b) ** 2, 1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(compiled) == 1, 'one program serves all points'


def test_sharpness_of_a_bowl_is_half_its_curvature_times_the_mean_square_distance():
    points = landscape.plane(1.0, 9)
    near = points[(np.linalg.norm(points, axis=1) <= 0.5) & np.any(points != 0, axis=1)]
    for curvature in (0.1, 3.0, -2.0):
        losses = 0.7 + curvature / 2 * np.sum(points**2, axis=1)
        expected = curvature / 2 * np.mean(np.sum(near**2, axis=1))
        assert landscape.sharpness(points, losses, 0.5) == pytest.approx(expected)
    # On lines: distances 1/4 and 1/2.
    line = landscape.lines(1.0, 9, 2)
    assert landscape.sharpness(line, 2 * np.sum(line**2, axis=1), 0.5) == pytest.approx(1 / 16 + 1 / 4)


def test_points_lie_evenly_about_the_centre():
    np.testing.assert_array_equal(landscape.lines(1.0, 3, 2), [[-1, 0], [0, 0], [1, 0], [0, -1], [0, 0], [0, 1]])
    points = landscape.plane(0.3, 7)
    assert points.shape == (49, 2)
    np.testing.assert_array_equal(points, -points[::-1])
    np.testing.assert_array_equal(points[24], [0, 0])
    assert np.abs(points).max() == 0.3
    np.testing.assert_array_equal(points.reshape(7, 7, 2)[0, :, 0], -0.3)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: landscape.plane(1.0, 4), 'count must be odd and at least 3, got 4'),
        (lambda: landscape.lines(1.0, 1, 2), 'count must be odd and at least 3, got 1'),
        (lambda: landscape.plane(0.0, 3), 'radius must be above 0, got 0.0'),
        (lambda: landscape.landscape(sum, [], [[], []], np.zeros((4, 3))), r'must be \[N, 2\].* got shape \(4, 3\)'),
        (lambda: landscape.sharpness(np.ones((4, 2)), np.ones(4), 1.0), 'the centre and others within 1.0 of it'),
        (lambda: landscape.sharpness(np.array([[0.0], [2.0]]), np.ones(2), 1.0), 'others within 1.0 of it, got 2'),
    ],
)
def test_impossible_requests_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_networks_that_differ_by_the_scale_of_normalised_filters_have_one_landscape():
    # Without epsilon, a filter that is c times as long with running moments to fit gives the same network. Powers of
    # two, so that rounding is the same too and no spike flips.
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(16, 6, 6, 2)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, 16))
    model = VGG(3, ((8, 8), (8,)), time_steps=3, norm=functools.partial(TdBN, epsilon=0.0))
    first = jax.jit(model.init)(KEY, images)
    adapt = jax.jit(lambda variables: model.apply(variables, images, train=True, mutable=['batch_stats'])[1])
    for _ in range(20):
        first = {**first, **adapt(first)}

    second = jax.tree.map(lambda leaf: leaf, first)
    for layer in ('conv01', 'conv02', 'conv03'):
        scale = jnp.asarray(2.0 ** rng.integers(-3, 4, 8), jnp.float32)
        kernel, moments = second['params'][layer]['conv']['conv'], second['batch_stats'][layer]['norm']['norm']
        kernel['kernel'] = kernel['kernel'] * scale
        moments['mean'], moments['var'] = moments['mean'] * scale, moments['var'] * scale**2

    def curve(variables):
        loss = jax.jit(
            lambda params: jnp.mean(
                mean_output_cross_entropy(model.apply({**variables, 'params': params}, images), labels)
            )
        )
        ways = landscape.random_directions(variables['params'], KEY)
        return landscape.landscape(loss, variables['params'], ways, landscape.plane(1.0, 5))

    losses = curve(first)
    assert np.ptp(losses) > 0.1
    np.testing.assert_allclose(curve(second), losses, rtol=1e-5)


@pytest.fixture
def run(tiny_config):
    experiment = build(tiny_config)
    return Compared('fixed', experiment, initial_state(experiment))


def test_the_loss_in_the_centre_is_that_of_the_evaluation(run):
    loss = landscape.loss_of(run, images=10_000)(run.state.params)
    _, evaluate = compile_steps(run.experiment)
    assert loss == pytest.approx(evaluate_split(run.experiment, run.state, evaluate).loss, rel=1e-6)
    few = landscape.loss_of(run, split='train', images=70)(run.state.params)
    assert few != pytest.approx(loss, rel=1e-6)


def test_pictures_and_a_table_with_all_numbers(run, tmp_path):
    runs = [run, run._replace(label='CPNG')]
    paths = landscape.draw(runs, tmp_path / 'new', count=5, lines_drawn=3, images=40)
    assert [path.name for path in paths] == ['landscape_1d.png', 'landscape_2d.png', 'landscape.csv']
    for path in paths[:2]:
        height, width, _ = imread(path).shape
        assert 500 < height < 800
        assert 900 < width < 1600
    with paths[2].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (3 * 5 + 5 * 5)
    assert list(rows[0]) == ['run', 'drawing', 'direction_1', 'direction_2', 'direction_3', 'loss']
    # The plane's axes are the first two lines, and the same run gives the same numbers again.
    numbers = {}
    for row in rows:
        point = tuple(float(row[f'direction_{index}']) for index in (1, 2, 3))
        assert float(row['loss']) == pytest.approx(numbers.setdefault(point, float(row['loss'])), rel=1e-5)
    assert len(numbers) == 5 * 5 + 4


@pytest.mark.parametrize('losses', [np.full(25, np.log(10)), np.where(np.arange(25) < 3, np.inf, np.arange(25) / 25)])
def test_level_and_infinite_losses_are_drawn_too(losses, tmp_path):
    measured = [landscape.Measured('dead', losses[5:15].reshape(2, 5), losses.reshape(5, 5))] * 2
    for draw in (landscape.draw_lines, landscape.draw_plane):
        assert np.std(imread(draw(measured, 1.0, tmp_path / 'picture.png'))) > 0.02, 'an empty picture'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'count': 4}, 'count must be odd and at least 3, got 4'),
        ({'radius': -1.0}, 'radius must be above 0, got -1.0'),
        ({'lines_drawn': 1}, 'lines_drawn is 1, expected at least 2'),
    ],
)
def test_options_out_of_range_are_errors_of_the_user(run, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        landscape.draw([run], tmp_path, **options)
