"""What the raster shows against what the network computes."""

import csv
import functools
import shutil
import types
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from matplotlib.image import imread

from cpng_jax.analysis import raster, raster_picture
from cpng_jax.analysis.raster_picture import Drawn, Layer, Passage
from cpng_jax.analysis.run import Run
from cpng_jax.models.vgg import VGG
from cpng_jax.nn.adaptive_neuron import AdaptedLIF, adapted_lif
from cpng_jax.nn.deviation_neuron import DeviationLIF
from cpng_jax.nn.neuron import lif
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.runtime.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 6, 2), np.uint8)


def measured(neuron, **options):
    """A network with random weights on one image: its layers, its outputs and `apply`."""
    model = VGG(5, stages=((3,),), head=(6,), time_steps=4, neuron=neuron)
    prepare = lambda images: images.astype(jnp.float32) / 64 - 1
    variables = jax.jit(model.init)(jax.random.key(1), prepare(IMAGE[None]))
    # Not the betas that the layers start with.
    values = iter((0.5, 4.0))
    variables['surrogate'] = jax.tree.map(lambda leaf: jnp.full_like(leaf, next(values)), variables['surrogate'])
    config = types.SimpleNamespace(
        neuron=types.SimpleNamespace(v_th=0.4, tau=0.6, surrogate='rectangular'),
        cpng=types.SimpleNamespace(interval=options.get('interval', 'paper')),
    )
    setup: Any = types.SimpleNamespace(model=model, prepare=prepare, config=config)
    layers, outputs = raster.measure(setup, variables, IMAGE)
    return layers, outputs, functools.partial(model.apply, variables, prepare(IMAGE[None]))


def test_spikes_potentials_and_currents_are_those_of_the_network():
    layers, outputs, apply = measured(functools.partial(LIF, v_th=0.4, tau=0.6))
    logits, seen = apply(mutable=['firing_rate', 'potentials'])
    np.testing.assert_allclose(outputs, logits[:, 0], rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in layers] == ['conv01', 'fc02']
    rates, potentials = (cast(Any, flatten_dict(seen[name])) for name in ('firing_rate', 'potentials'))
    for layer, path in zip(layers, (('conv01', 'lif'), ('fc02_lif',)), strict=True):
        np.testing.assert_array_equal(layer.spikes, layer.potentials - np.float32(0.4) >= 0)
        assert layer.spikes.mean() == pytest.approx(float(rates[*path, 'firing_rate']))
        np.testing.assert_allclose(layer.potentials, np.reshape(potentials[*path, 'potentials'], (4, -1)), atol=1e-5)
        # The currents alone give the same spikes.
        spikes, _ = lif(jnp.asarray(layer.currents), 1.0, tau=0.6, v_th=0.4)
        clear = np.abs(layer.potentials - 0.4) > 1e-5
        np.testing.assert_array_equal(np.asarray(spikes, bool)[clear], layer.spikes[clear])
        np.testing.assert_array_equal(layer.threshold, [0.4] * 4)
    assert 0 < layers[0].spikes.mean() < 1
    np.testing.assert_allclose(layers[0].currents, layers[0].currents[:1].repeat(4, axis=0), atol=1e-5)  # one image
    np.testing.assert_allclose([layer.radius[0, 0] for layer in layers], [2, 0.25])


def test_the_domain_is_that_of_the_interval_and_of_each_channel():
    layers, *_ = measured(functools.partial(LIF, v_th=0.4, tau=0.6, per_channel=True), interval='support')
    np.testing.assert_allclose(layers[1].radius, np.full((4, 6), 0.125))  # rectangular: half of 1 / beta


def test_a_decay_that_was_learnt_is_taken():
    neuron = functools.partial(LIF, v_th=0.4, tau=0.9, learn_tau=True)  # the configuration says 0.6
    layers, *_ = measured(neuron)
    np.testing.assert_allclose(layers[0].currents, layers[0].currents[:1].repeat(4, axis=0), atol=1e-5)


def test_a_threshold_that_moves_is_drawn_as_it_is():
    layers, *_ = measured(functools.partial(AdaptedLIF, v_th=0.4, tau=0.6))
    assert np.ptp(layers[0].threshold) == 0, 'no training has moved it'
    moved = np.array([0.3, 0.5, 0.7, 0.2], np.float32)
    currents = np.random.default_rng(1).normal(0.4, 0.5, (4, 50)).astype(np.float32)
    adapted = adapted_lif(currents, 2.0, jnp.asarray(moved), tau=0.6, v_th=0.4)
    u, threshold, widening = raster._as_they_are(np.asarray(adapted.near), 0.4, moved, None)
    np.testing.assert_allclose(threshold, moved)
    np.testing.assert_array_equal(u >= moved[:, None], np.asarray(adapted.spikes, bool))
    s = np.asarray(adapted.spikes)
    np.testing.assert_allclose(u[1:] - 0.6 * u[:-1] * (1 - s[:-1]), currents[1:], atol=1e-5)
    np.testing.assert_allclose(widening, 1 + np.tanh(moved - 0.4), rtol=1e-6)


def test_a_width_that_moves_is_drawn_as_it_is():
    layers, *_ = measured(functools.partial(DeviationLIF, v_th=0.4, tau=0.6, surrogate='rectangular'))
    plain, *_ = measured(functools.partial(LIF, v_th=0.4, tau=0.6, surrogate='rectangular'))
    for layer, other in zip(layers, plain, strict=True):
        np.testing.assert_array_equal(layer.spikes, other.spikes)
        np.testing.assert_allclose(layer.potentials, other.potentials, atol=1e-5)
    # Rectangular: the interval that the paper counts is twice the support. The norm has v_th 1, the head no norm.
    np.testing.assert_allclose(layers[0].radius[:, 0] * 0.5, 2 * np.sqrt([1, 1.36, 1.36, 1.36]), rtol=1e-5)
    np.testing.assert_allclose(layers[1].radius[:, 0] * 4, 1)


def made(spikes, potentials=None):
    spikes = np.array(spikes, bool)
    u = np.where(spikes, 1.5, 0.2) if potentials is None else np.array(potentials)
    steps = len(spikes)
    return Layer('conv01', spikes, u, u, np.ones(steps), np.ones((steps, 1)))


def test_neurons_are_ranked_by_spikes_and_then_by_potential():
    layer = made([[0, 1, 0, 1, 0], [0, 1, 0, 0, 0]], [[0.3, 2, -1, 2, 0.1], [0.3, 2, -1, 0, 0.1]])
    neurons, traced = raster.choose_neurons(layer, 9, 'random', 0)
    assert neurons.tolist() == [0, 1, 2, 3, 4]
    assert traced.tolist() == [1, 3, 2]
    neurons, traced = raster.choose_neurons(layer, 2, 'active', 0)
    assert (neurons.tolist(), traced.tolist()) == ([1, 3], [1, 3])
    assert raster.choose_neurons(made(np.zeros((2, 5))), 9, 'random', 0)[1].shape == (3,)
    assert len({*raster.choose_neurons(made(np.ones((2, 5))), 9, 'random', 0)[1]}) == 3
    first, _ = raster.choose_neurons(layer, 2, 'random', 0)
    assert len({*first}) == 2
    assert {tuple(raster.choose_neurons(layer, 2, 'random', seed)[0]) for seed in range(9)} != {tuple(first)}


def test_layers_are_chosen_evenly_or_by_name():
    names = [f'conv{n:02d}' for n in range(1, 35)]
    some = raster.choose_layers(names, 'some')
    assert (len(some), some[0], some[-1]) == (8, 0, 33)
    assert max(np.diff(some)) - min(np.diff(some)) <= 1
    assert raster.choose_layers(names[:3], 'some') == raster.choose_layers(names[:3], 'all') == [0, 1, 2]
    assert raster.choose_layers(names, 'conv07, conv03/lif') == [2, 6]
    with pytest.raises(UserError, match=r"layers is 'conv99'.* the nearest to 'conv99' is 'conv09'"):
        raster.choose_layers(names, 'conv99')


def test_the_answer_is_said_with_the_step_from_which_it_stands():
    outputs = np.array([[1, 0, 0], [0, 2, 0], [0, 1, 0]], float)
    passage = Passage(IMAGE, 1, outputs, ['a', 'b', 'c'])
    assert passage.decided.tolist() == [0, 1, 1]
    assert passage.in_words() == 'taken for b, rightly, by the mean output from step 2 on'
    assert passage._replace(label=2).in_words() == 'taken for b, truly c, by the mean output from step 2 on'
    assert passage._replace(outputs=outputs[1:]).in_words().endswith('from step 1 on')


@pytest.mark.parametrize('steps', [1, 4, 20])
@pytest.mark.parametrize('events', [False, True])
def test_a_panel_shows_the_spikes_and_a_trace_the_potentials(steps, events):
    rng = np.random.default_rng(steps)
    layer = made(rng.random((steps, 9)) < 0.3, rng.normal(0.5, 1, (steps, 9)))
    drawn = Drawn(layer, *raster.choose_neurons(layer, 9, 'random', 0))
    image = np.stack([IMAGE] * steps) if events else IMAGE
    passage = Passage(image, 0, rng.normal(size=(steps, 3)), ['a', 'b', 'c'])
    figure = raster_picture.draw(passage, [drawn, drawn], 'title')
    _, _, spikes, most, *_ = figure.axes
    np.testing.assert_array_equal(spikes.images[0].get_array(), layer.spikes.T)
    lines = {line.get_label(): line for line in most.get_lines()}
    u, fired = layer.potentials[:, drawn.traced[0]], layer.spikes[:, drawn.traced[0]]
    np.testing.assert_array_equal(lines['potential'].get_ydata(), u)
    np.testing.assert_array_equal(lines['spike'].get_xdata(), 1 + np.flatnonzero(fired))
    np.testing.assert_array_equal(
        [cast(Any, bar).get_height() for bar in most.patches], layer.currents[:, drawn.traced[0]]
    )
    assert most.collections[0].get_datalim(most.transData).y0 == pytest.approx(0)
    assert most.collections[0].get_datalim(most.transData).y1 == pytest.approx(2)
    assert len(figure.axes) == 2 + 2 * 4


@pytest.mark.trains
def test_picture_and_table_are_written(workdir, tmp_path):
    run = Run(shutil.copytree(workdir, tmp_path / 'run'))
    written = raster.analyse(run, image=3, neurons=5, layers='conv02')
    assert [path.name for path in written] == ['raster.png', 'raster.csv', 'raster.md']
    assert np.std(imread(written[0])) > 0.05, 'an empty picture'
    rows = list(csv.DictReader(written[1].read_text().splitlines()))
    assert [(row['layer'], row['neurons']) for row in rows] == [('conv01', '256'), ('conv02', '128')]
    for row in rows:
        assert float(row['firing rate']) == pytest.approx((float(row['at step 1']) + float(row['at step 2'])) / 2)
        assert 0 <= float(row['silent']) <= 1 - float(row['firing rate'])
    assert 'test image 3, taken for ' in written[2].read_text()
    assert '5 neurons at random in 1 of 2 layers' in written[2].read_text()


@pytest.mark.trains
@pytest.mark.parametrize(
    ('option', 'sentence'),
    [
        ({'image': 360}, 'image is 360, expected one of 0 to 359'),
        ({'image': -1}, 'image is -1, expected at least 0'),
        ({'neurons': 0}, 'neurons is 0'),
        ({'choose': 'best'}, "choose is 'best', expected one of random, active"),
        ({'layers': 'conv03'}, "layers is 'conv03'"),
    ],
)
def test_options_out_of_range_are_refused(run, option, sentence):
    with pytest.raises(UserError, match=sentence):
        raster.analyse(run, **option)
