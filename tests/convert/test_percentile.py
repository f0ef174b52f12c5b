"""Thresholds by percentiles against numpy, and what a network with them has as its input."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cpng_jax.convert.percentile import percentile_thresholds
from cpng_jax.models.vgg import VGG
from cpng_jax.nn.currents import as_terms
from cpng_jax.nn.diet_neuron import DietLIF
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.terms import sum_of

f32: Any = functools.partial(np.asarray, dtype=np.float32)


def draw(count):
    return f32(np.random.default_rng(0).normal(0.3, 1, (count, 8, 8, 2)))


IMAGES = draw(6)
DIET = functools.partial(DietLIF, tau=0.9, v_th=1.0)  # a leak that the search has to do without


def nearest(x, percentile):
    return np.sort(x, axis=None)[round(percentile / 100 * (x.size - 1))]


def by_numpy(params, images, percentile, time_steps):
    """Thresholds of the fully connected layers."""
    x, thresholds = np.repeat(np.float64(images).reshape(1, len(images), -1), time_steps, 0), {}
    for name in ('fc01', 'fc02'):
        currents = x @ np.float64(params[name]['dense']['kernel'])
        thresholds[f'{name}_lif'] = threshold = max(nearest(step, percentile) for step in currents)
        m, spikes = 0, []
        for current in currents:
            m = m + current
            spikes.append(np.float64(m >= threshold))
            m = m - threshold * spikes[-1]
        x = np.stack(spikes)
    return thresholds


def test_thresholds_of_fully_connected_layers_are_those_of_numpy():
    model, images = VGG(3, (), head=(20, 15), time_steps=4, bias=False, neuron=DIET), draw(300)
    variables = model.init(jax.random.key(0), images)
    lines = []
    found = percentile_thresholds(
        model, variables, images, percentile=90, scaling=0.6, time_steps=7, found=lambda *line: lines.append(line)
    )
    (first, one), (second, two) = lines
    expected = by_numpy(variables['params'], images, 90, 7)
    assert [first, second] == list(expected)
    assert one == pytest.approx(expected['fc01_lif'], rel=1e-5)
    # The first threshold is the input of one neuron for one image: rounding tells whether that fires at once.
    assert two == pytest.approx(expected['fc02_lif'], rel=0.01)
    for layer, threshold in lines:
        assert found['params'][layer] == pytest.approx({'leak': 1, 'threshold': 0.6 * threshold}, rel=1e-5)
    # Weights stay, and so does what was handed in.
    assert found['params']['fc01']['dense']['kernel'] is variables['params']['fc01']['dense']['kernel']
    assert variables['params']['fc01_lif'] == {'leak': np.float32(0.9), 'threshold': 1}


def test_each_layer_of_a_network_has_the_percentile_of_its_own_input():
    """Seen from a run of all time steps at once; but for ties, as above."""
    model, images = VGG(3, ((4, 5), (6,)), head=(7,), time_steps=9, neuron=DIET, remat='block'), draw(200)
    variables = jax.jit(model.init)(jax.random.key(1), images)
    found = percentile_thresholds(model, variables, images, percentile=90, time_steps=9)
    seen = {}

    def watch(next_function, args, kwargs, context):
        if isinstance(context.module, DietLIF) and context.method_name == '__call__':
            layer = context.module.scope.variables()['params']['threshold']
            currents = sum_of(as_terms(args[0]))
            seen[context.module.path] = layer, np.broadcast_to(currents, (9, *currents.shape[1:]))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(watch):
        model.clone(remat='none').apply(found, images)
    assert len(seen) == 4
    for threshold, currents in seen.values():
        assert float(threshold) == pytest.approx(max(nearest(step, 90) for step in currents), rel=0.01)


def test_what_cannot_be_is_named():
    model = VGG(3, (), head=(20, 15), time_steps=4, bias=False, neuron=DIET)
    variables = model.init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match=r'images must be \[B, H, W, C\] with at least one of each, got shape \(8, 8'):
        percentile_thresholds(model, variables, IMAGES[0])
    for options, message in (
        ({'percentile': 101}, 'percentile must lie in 0 to 100, got 101'),
        ({'scaling': 0.0}, 'scaling must be a number above 0, got 0'),
        ({'time_steps': 0}, 'time_steps must be at least 1, got 0'),
    ):
        with pytest.raises(ValueError, match=message):
            percentile_thresholds(model, variables, IMAGES, **options)
    with pytest.raises(ValueError, match=r'fc01_lif: the 0th percentile of its input is -\d.*, expected more than 0'):
        percentile_thresholds(model, variables, IMAGES, percentile=0)
    plain = VGG(3, (), head=(4,), neuron=LIF)
    with pytest.raises(ValueError, match='VGG has no neurons of the kind diet'):
        percentile_thresholds(plain, plain.init(jax.random.key(0), IMAGES), jnp.asarray(IMAGES))
