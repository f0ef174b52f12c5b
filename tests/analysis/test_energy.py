"""Counts of operations against loops over every pixel, energies against closed forms, and the analysis of a run."""

import csv
import functools
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from cpng_jax.analysis import energy, energy_model, operations
from cpng_jax.analysis.energy_model import MEMORIES, Constants, Layer
from cpng_jax.analysis.run import Run
from cpng_jax.models.resnet import ResNet
from cpng_jax.models.vgg import VGG
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.runtime.errors import UserError

# A layer that takes spikes, and one that takes an image; three time steps.
SPIKING = Layer('conv02', 100, 40, 50, 3, 3, 0.0, 600.0, 1, 50, True, True, 30.0, 1000.0)
IMAGE = Layer('conv01', 100, 40, 50, 1, 3, 1000.0, 0.0, None, 50, True, True, 15.0, 1000.0, first=True)
PLAIN = Constants(mac=5.0, ac=1.0, bits=32, sram_8kb=4.0)  # 32 bits for 2 pJ, one bit for 1/16


@pytest.mark.parametrize('size', [1, 2, 5, 8])
@pytest.mark.parametrize('kernel', [1, 3, 7])
@pytest.mark.parametrize('stride', [1, 2])
def test_fan_out_along_an_axis_is_that_of_the_convolution(size, kernel, stride):
    ones = lambda x: jax.lax.conv_general_dilated(x, jnp.ones((1, 1, kernel)), (stride,), [(kernel // 2,) * 2]).sum()
    reached = jax.grad(ones)(jnp.zeros((1, 1, size)))
    np.testing.assert_array_equal(operations.fan_out(size, kernel, stride), reached[0, 0])


def synapses(x, kernel, stride, features):
    """Input times outputs that it reaches, by loops over the outputs: `[N, H, W, C]`, in float64."""
    height, width = (-(-size // stride) for size in x.shape[1:3])
    total, reach = 0.0, kernel // 2
    for i in range(height):
        for j in range(width):
            rows = slice(max(0, stride * i - reach), stride * i + reach + 1)
            columns = slice(max(0, stride * j - reach), stride * j + reach + 1)
            total += features * np.sum(x[:, rows, columns], dtype=np.float64)
    return total


def counted(model, images, prepare):
    """A network with weights at random, what `operations` counts, and the spikes of each layer `[T, B, ...]`."""
    variables = jax.jit(model.init)(jax.random.key(3), prepare(images[:1]))
    layers = operations.count(model, variables, prepare, images)
    is_lif = lambda module, method: isinstance(module, LIF) and method == '__call__'
    _, seen = model.apply(variables, prepare(images), capture_intermediates=is_lif, mutable=['intermediates'])
    return {layer.name: layer for layer in layers}, seen['intermediates']


def static(images):
    return images.astype(jnp.float32) / 100 - 0.7


def events(images):
    return jnp.moveaxis(images.astype(jnp.float32), 1, 0)


def spikes_of(seen, *path):
    node = functools.reduce(lambda node, key: node[key], (*path, 'lif'), seen)
    return np.asarray(node['__call__'][0])


def test_counts_are_those_of_loops_with_borders_pools_and_steps(monkeypatch):
    monkeypatch.setattr(operations, '_BATCH', 4)  # two batches, of four and of two
    images = np.random.default_rng(0).integers(0, 256, (6, 7, 5, 2), np.uint8)
    model = VGG(
        10, stages=((3,), (4, 5)), head=(6,), pool_last=True, time_steps=3, neuron=functools.partial(LIF, v_th=0.3)
    )
    layers, seen = counted(model, images, static)
    assert [*layers] == ['conv01', 'conv02', 'conv03', 'fc04', 'output']
    ones = np.ones((1, 7, 5, 2))
    assert layers['conv01'].macs == layers['conv01'].ann_macs == synapses(ones, 3, 1, 3)  # once for all steps
    first, second, third = (spikes_of(seen, name) for name in ('conv01', 'conv02', 'conv03'))
    assert 0.05 < first.mean() < 0.95
    # Each spike below the pool by itself: the pool leaves the last row and column out.
    pooled = first[:, :, :6, :4].reshape(3, 6, 3, 2, 2, 2, 3).sum(axis=(3, 5))
    assert layers['conv02'].acs == pytest.approx(synapses(pooled.reshape(-1, 3, 2, 3), 3, 1, 4) / 6, rel=1e-12)
    assert layers['conv03'].acs == pytest.approx(synapses(second.reshape(-1, 3, 2, 4), 3, 1, 5) / 6, rel=1e-12)
    assert layers['fc04'].acs == pytest.approx(6 * third[:, :, :2, :2].sum() / 6, rel=1e-12)
    head = np.asarray(seen['fc04_lif']['__call__'][0])
    assert layers['output'].acs == pytest.approx(10 * head.sum() / 6, rel=1e-12)
    assert layers['conv02'].spikes == pytest.approx(second.sum() / 6)
    assert [layer.input_bits for layer in layers.values()] == [None, 3, 1, 3, 1]
    assert [layer.neurons for layer in layers.values()] == [105, 24, 30, 6, 10]
    assert [layer.spiking for layer in layers.values()] == [True] * 4 + [False]
    assert [layer.weights for layer in layers.values()] == [57, 112, 185, 36, 70]
    assert layers['conv03'].ann_macs == synapses(np.ones((1, 3, 2, 4)), 3, 1, 5)


def test_counts_of_events_and_strides_and_of_two_branches():
    images = np.random.default_rng(1).poisson(0.4, (2, 3, 6, 6, 2)).astype(np.uint8)
    model = ResNet(10, blocks=(1, 1), widths=(3, 4), stem_width=3, neuron=functools.partial(LIF, v_th=0.3, tau=1.0))
    layers, seen = counted(model, images, events)
    # Events are accumulates, each by itself; the ANN takes the pixels that hold any.
    frames = np.moveaxis(images, 1, 0).reshape(-1, 6, 6, 2)
    assert layers['stage0_stem'].acs == pytest.approx(synapses(frames, 3, 1, 3) / 2)
    assert layers['stage0_stem'].ann_macs == pytest.approx(synapses((images.sum(axis=1) > 0) * 1, 3, 1, 3) / 2)
    x = spikes_of(seen, 'stage1_block01').reshape(-1, 6, 6, 3)
    assert layers['stage2_block01/conv1'].acs == pytest.approx(synapses(x, 3, 2, 4) / 2)
    assert layers['stage2_block01/shortcut'].acs == pytest.approx(synapses(x, 1, 2, 4) / 2)
    # The mean over the map is folded into the output.
    last = spikes_of(seen, 'stage2_block01')
    assert layers['output'].acs == pytest.approx(10 * last.sum() / 2)
    assert layers['stage2_block01/conv2'].neurons == 0, 'those of the block are counted with the shortcut'
    assert layers['stage2_block01/shortcut'].neurons == 3 * 3 * 4
    assert not any(layer.leaky for layer in layers.values())


def test_real_values_of_events_are_multiplied_where_there_are_any():
    images = np.random.default_rng(2).poisson(0.4, (2, 3, 6, 6, 2)).astype(np.uint8)
    scaled = lambda images: (jnp.moveaxis(images.astype(jnp.float32), 1, 0) - 0.123) / 0.457
    layers, _ = counted(VGG(10, stages=((3,),)), images, scaled)
    frames = np.moveaxis(images, 1, 0).reshape(-1, 6, 6, 2)
    assert layers['conv01'].acs == 0
    assert layers['conv01'].macs == pytest.approx(synapses((frames > 0) * 1, 3, 1, 3) / 2)


def test_energies_of_a_spiking_layer():
    found = energy_model.of_snn(SPIKING, PLAIN)
    assert (found.macs, found.acs, found.neurons) == (0, 600, 3 * 50 * 5)
    spikes = 3 * (40 + 50) / 16  # a bit for each neuron and step, read and written
    assert found.memory['inference'] == (100 * 2, 0, spikes)
    assert found.memory['step'] == (3 * 100 * 2, 2 * 2 * 50 * 2, spikes)  # between three steps, twice read and written
    assert found.memory['operation'] == (600 * 2, 2 * (600 + 3 * 50) * 2, spikes)
    assert found.total(None) == 1350
    assert found.total('inference') == 1350 + 200 + spikes


def test_energies_of_a_layer_of_a_static_image():
    found = energy_model.of_snn(IMAGE, PLAIN)
    assert (found.macs, found.acs, found.neurons) == (5000, 0, 750)
    spikes, currents = 3 * 50 / 16, (1 + 3) * 50 * 2
    assert found.memory['inference'] == (200, 0, 40 * 2 + spikes)
    assert found.memory['step'] == (200, currents + 2 * 2 * 50 * 2, 40 * 2 + spikes)
    assert found.memory['operation'] == (2000, currents + 2 * 3 * 50 * 2, 2000 + spikes)


@pytest.mark.parametrize('layer', [SPIKING, IMAGE])
def test_energies_of_the_ann(layer):
    found = energy_model.of_ann(layer, PLAIN)
    assert (found.macs, found.acs, found.neurons) == (5000, 0, 50)
    assert found.memory['inference'] == found.memory['step'] == (200, 0, (40 + 50) * 2)
    assert found.memory['operation'] == (2000, 0, 2000 + 100)


def test_neurons_without_a_leak_add_and_one_step_keeps_nothing():
    assert energy_model.of_snn(SPIKING._replace(leaky=False), PLAIN).neurons == 3 * 50
    once = energy_model.of_snn(IMAGE._replace(time_steps=1), PLAIN)
    assert once.memory['step'] == once.memory['inference']


@pytest.mark.parametrize(
    ('kib', 'energy'), [(1, 10), (8, 10), (8.01, 20), (32, 20), (33, 100), (1024, 100), (1025, 1300)]
)
def test_an_array_lies_in_the_smallest_memory_that_holds_it(kib, energy):
    assert energy_model.access(256 * kib, 32, Constants()) == energy
    assert energy_model.access(1024 * kib, 8, Constants()) == energy


@pytest.mark.parametrize('memory', [None, *MEMORIES])
def test_both_need_the_same_at_the_break_even(memory):
    layers = [IMAGE, SPIKING]
    found = energy_model.compare(layers, PLAIN, memory)
    assert found.snn == sum(energy_model.of_snn(layer, PLAIN).total(memory) for layer in layers)
    assert found.ratio == found.ann / found.snn
    there = sum(energy_model.of_snn(layer, PLAIN, spikes=found.factor).total(memory) for layer in layers)
    assert there == pytest.approx(found.ann)


def test_an_ann_that_skips_zeros_needs_as_little_at_its_break_even():
    layers = [IMAGE, SPIKING]
    density = energy_model.density_at_break_even(layers, PLAIN)
    ann = sum(energy_model.of_ann(layer, PLAIN, density=density).arithmetic for layer in layers)
    assert ann == pytest.approx(energy_model.compare(layers, PLAIN, None).snn)
    assert 0 < density < 1


def test_a_silent_network_has_no_break_even():
    silent = [layer._replace(acs=0.0, spikes=0.0) for layer in (IMAGE, SPIKING)]
    assert energy_model.compare(silent, PLAIN, None).factor == math.inf
    assert energy_model.firing_rate(silent) == 0
    assert energy_model.firing_rate([IMAGE, SPIKING]) == pytest.approx(45 / 300)


@pytest.mark.parametrize(
    ('ratio', 'words'), [(4.56, '4.6 times less'), (0.4, '2.5 times more'), (1.02, 'as much'), (0.97, 'as much')]
)
def test_the_verdict_goes_either_way(ratio, words):
    assert energy.in_words(ratio) == words
    found = dict.fromkeys([None, *MEMORIES], energy_model.Comparison(1e6, ratio * 1e6, 0.5))
    assert f'the SNN needs {words}. With the memory traffic it needs {words} where' in energy.verdict(found, 0.1)


@pytest.mark.parametrize(
    ('factor', 'words'), [(0.5, '10.0%'), (6, 'any: the'), (math.inf, 'any: the'), (-1, 'none: the')]
)
def test_the_break_even_is_a_firing_rate(factor, words):
    assert energy.break_even(energy_model.Comparison(1, 1, factor), 0.2).startswith(words)


@pytest.mark.trains
def test_picture_and_tables_are_written(workdir, tmp_path):
    run = Run(shutil.copytree(workdir, tmp_path / 'run'))
    written = energy.analyse(run, images=70, ac=0.5)
    assert [path.name for path in written] == ['energy.png', 'energy.csv', 'energy.md']
    assert np.std(imread(written[0])) > 0.05, 'an empty picture'
    rows = list(csv.DictReader(written[1].read_text().splitlines()))
    assert [row['layer'] for row in rows] == ['conv01', 'conv02', 'output', 'all']
    value = lambda name: [float(row[name]) for row in rows]
    # Borders of 8 x 8 and of 4 x 4 maps: 22 and 10 taps along an axis.
    assert value('ANN: multiply-adds') == [22**2 * 4, 10**2 * 4 * 8, 1280, 22**2 * 4 + 10**2 * 4 * 8 + 1280]
    assert value('neuron updates') == [2 * 256, 2 * 128, 2 * 10, 788]
    for name in ('accumulates', 'arithmetic, µJ', 'memory by step, µJ', 'ANN: memory by operation, µJ'):
        *each, total = value(name)
        assert total == pytest.approx(sum(each))
    arithmetic = [
        4.6 * macs + 0.5 * acs for macs, acs in zip(value('multiply-adds'), value('accumulates'), strict=True)
    ]
    updates = [4.6 * 512, 4.6 * 256, 0.5 * 20]
    np.testing.assert_allclose(value('arithmetic, µJ')[:3], (np.array(arithmetic[:3]) + updates) * 1e-6)
    text = written[2].read_text()
    assert 'the mean of 70 test images' in text
    assert 'addition 0.5 pJ' in text
    assert '| with memory, each array once a step |' in text


@pytest.mark.trains
@pytest.mark.parametrize(('option', 'sentence'), [({'images': 0}, 'images is 0'), ({'dram': -1.0}, 'dram is -1')])
def test_options_out_of_range_are_refused(run, option, sentence):
    with pytest.raises(UserError, match=sentence):
        energy.analyse(run, **option)
