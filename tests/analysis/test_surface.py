import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpng_jax.analysis import surface
from cpng_jax.models.vgg import VGG
from cpng_jax.nn.layers import TdBN
from cpng_jax.nn.losses import mean_output_cross_entropy

pytestmark = pytest.mark.trains

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
    first, second = surface.random_directions(params, jax.random.key(seed))
    for way in (first, second):
        np.testing.assert_allclose(filter_norms(way['conv']['kernel']), filter_norms(weights), rtol=1e-4)
        assert not np.any(way['norm']['scale']) and not np.any(way['bias'])
        assert jax.tree.structure(way) == jax.tree.structure(params)


def test_directions_depend_on_the_key_alone_and_differ_from_each_other_and_between_layers():
    params = {'a': jnp.ones((50, 40)), 'b': jnp.ones((50, 40))}
    ways = surface.random_directions(params, KEY, 3)
    for way, same in zip(ways, surface.random_directions(params, KEY, 3), strict=True):
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

    points = np.concatenate([surface.lines(1.5, 5, 3), rng.normal(size=(6, 3))])
    losses = surface.losses_at(loss, params, ways, points)
    a, b = (np.stack([way[name].ravel() for way in ways]) for name in ('a', 'b'))
    expected = np.sum((params['a'].ravel() + points @ a) ** 2, axis=1) + 2 * np.sum((params['b'] + points @ b) ** 2, 1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(compiled) == 1, 'one program serves all points'


def test_sharpness_of_a_bowl_is_half_its_curvature_times_the_mean_square_distance():
    points = surface.plane(1.0, 9)
    near = points[(np.linalg.norm(points, axis=1) <= 0.5) & np.any(points != 0, axis=1)]
    for curvature in (0.1, 3.0, -2.0):
        losses = 0.7 + curvature / 2 * np.sum(points**2, axis=1)
        expected = curvature / 2 * np.mean(np.sum(near**2, axis=1))
        assert surface.sharpness(points, losses, 0.5) == pytest.approx(expected)
    # On lines: distances 1/4 and 1/2.
    line = surface.lines(1.0, 9, 2)
    assert surface.sharpness(line, 2 * np.sum(line**2, axis=1), 0.5) == pytest.approx(1 / 16 + 1 / 4)


def test_points_lie_evenly_about_the_centre():
    np.testing.assert_array_equal(surface.lines(1.0, 3, 2), [[-1, 0], [0, 0], [1, 0], [0, -1], [0, 0], [0, 1]])
    points = surface.plane(0.3, 7)
    assert points.shape == (49, 2)
    np.testing.assert_array_equal(points, -points[::-1])
    np.testing.assert_array_equal(points[24], [0, 0])
    assert np.abs(points).max() == 0.3
    np.testing.assert_array_equal(points.reshape(7, 7, 2)[0, :, 0], -0.3)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: surface.plane(1.0, 4), 'count must be odd and at least 3, got 4'),
        (lambda: surface.lines(1.0, 1, 2), 'count must be odd and at least 3, got 1'),
        (lambda: surface.plane(0.0, 3), 'radius must be above 0, got 0.0'),
        (lambda: surface.losses_at(sum, [], [[], []], np.zeros((4, 3))), r'must be \[N, 2\].* got shape \(4, 3\)'),
        (lambda: surface.sharpness(np.ones((4, 2)), np.ones(4), 1.0), 'the centre and others within 1.0 of it'),
        (lambda: surface.sharpness(np.array([[0.0], [2.0]]), np.ones(2), 1.0), 'others within 1.0 of it, got 2'),
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
        ways = surface.random_directions(variables['params'], KEY)
        return surface.losses_at(loss, variables['params'], ways, surface.plane(1.0, 5))

    losses = curve(first)
    assert np.ptp(losses) > 0.1
    np.testing.assert_allclose(curve(second), losses, rtol=1e-5)
