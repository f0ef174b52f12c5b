"""Networks as graphs of NIR: spike for spike what they were, by an interpreter of NIR that knows nothing of us."""

import functools
import re

import jax
import jax.numpy as jnp
import nir
import numpy as np
import pytest
from flax import linen as nn

from cpng_jax.export import nir_read, nir_write
from cpng_jax.models.registry import MODELS
from cpng_jax.models.vgg import VGG
from cpng_jax.nn.adaptive_neuron import AdaptedLIF
from cpng_jax.nn.layers import Dense
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.runtime.errors import UserError
from tests.export import reference

SHAPE = (9, 8, 2)
# Each registered network small, as far as its name leaves that open.
SMALL = {
    'vgg': {'stages': ((3, 2), (4,)), 'head': (6,), 'head_norm': True},
    'vgg16': {'stages': ((3,), (4,)), 'head': (6, 5)},
    'vgg11': {'stages': ((3,), (4,)), 'kernel_size': 5},
    'resnet18': {'blocks': (1, 1), 'widths': (3, 4), 'stem_width': 3},
    'resnet19': {'blocks': (2,), 'widths': (4,), 'stem_width': 4},
    'resnet20': {'blocks': (1,), 'widths': (4,), 'stem_width': 3},
}
NEURONS = {'vgg16': LIF(tau=0.75, v_th=0.7), 'resnet19': LIF(tau=0.3, learn_tau=True), 'resnet20': LIF(tau=1.0)}


def small(name):
    """A network of that name with few and narrow layers."""
    of_sew = {'blocks': (1,), 'widths': (2,), 'stem_width': 2}
    fields = {**MODELS[name].fields, **SMALL.get(name, of_sew)}
    like = NEURONS.get(name, LIF())
    neuron = functools.partial(LIF, tau=like.tau, v_th=like.v_th, learn_tau=like.learn_tau)
    return MODELS[name].module(classes=3, time_steps=3, neuron=neuron, **fields)


def assert_exact(module, variables, images, shape):
    """Holds the graph of a network, and what it is read back as, to the network; returns the graph."""
    graph = nir_write.to_nir(module, variables, shape)
    outputs, spikes = reference.outputs_and_spikes(module, variables, images)
    frames = nir_read.frames_of(images, len(outputs))
    expected, fired, nearest = reference.run(graph, frames, graph.metadata['dt'])
    assert nearest > 2e-6, 'a potential lies on the threshold: take another seed'
    assert spikes.keys() == fired.keys()
    for name, each in fired.items():
        np.testing.assert_array_equal(spikes[name], each, err_msg=name)
        assert 0.01 < each.mean() < 0.99, name
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    return graph, frames, fired


@pytest.mark.deep
@pytest.mark.parametrize('name', MODELS)
def test_every_network_is_exported_exactly_or_refused_by_its_layer(name):
    module = small(name)
    if name in SMALL:
        assert_exact(module, *reference.firing(module, SHAPE), SHAPE)
        return
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    through = 'stage0_stem/lif goes through a max pool'
    if name == 'resnet34':  # whose windows overlap
        through = 'stage0_stem3/lif goes through the operation reduce_window_sum'
    with pytest.raises(UserError, match=f'^{through} to stage1_block01/conv1/conv, for '):
        nir_write.to_nir(module, shapes, (16, 16, 1))


def test_recordings_come_back_from_their_file_with_what_it_says_of_itself(tmp_path):
    shape = (4, 5, 6, 2)
    module = VGG(classes=3, stages=((4,),), head=(7,), pool_last=True)
    variables, images = reference.firing(module, shape)
    graph, frames, fired = assert_exact(module, variables, images, shape)
    graph.metadata |= {'classes': '["a", "b", "c"]', 'mean': np.array([0.5, 0.25])}
    network = nir_read.read(nir_write.write(tmp_path / 'a.nir', graph))
    ran = jax.jit(network)(frames)
    for name, each in fired.items():
        np.testing.assert_array_equal(ran.spikes[name], each, err_msg=name)
    np.testing.assert_allclose(ran.outputs, reference.run(graph, frames, 1e-4)[0], atol=1e-5)
    assert (network.dt, network.input_shape) == (1e-4, (2, 5, 6))
    assert network.metadata['classes'] == '["a", "b", "c"]'
    np.testing.assert_array_equal(network.metadata['mean'], [0.5, 0.25])
    # Gradients flow through what was read.
    gradient = jax.grad(lambda frames: jnp.sum(network(frames, beta=0.5).outputs ** 2))(frames)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_a_potential_at_the_threshold_fires_there_as_here():
    """Ours fire at u >= v_th, NIR's above v_threshold."""
    module = VGG(classes=1, stages=(), head=(1,), time_steps=1)
    params = {name: {'dense': {'kernel': jnp.ones((1, 1)), 'bias': jnp.zeros(1)}} for name in ('fc01', 'output')}
    just_below = np.nextafter(np.float32(1), np.float32(0))
    images = np.array([1.0, just_below], np.float32).reshape(2, 1, 1, 1)
    variables = {'params': params, 'surrogate': {'fc01_lif': {'beta': jnp.ones(())}}}
    graph = nir_write.to_nir(module, variables, (1, 1, 1))
    _, spikes = reference.outputs_and_spikes(module, variables, images)
    frames = nir_read.frames_of(images, 1)
    network = nir_read.Network(graph)
    for found in (spikes, reference.run(graph, frames, 1e-4)[1], network(frames).spikes):
        np.testing.assert_array_equal(found['fc01_lif'], [[[1], [0]]])


class Joined(nn.Module):
    """Two layers of neurons whose spikes are joined by a function; or the map before them by another."""

    join: object = None
    before: object = None
    neuron: object = LIF

    @nn.compact
    def __call__(self, x, train=False):
        x = x[None].reshape(1, len(x), -1)
        x = self.before(x) if self.before else x
        first, second = (self.neuron(name=f'lif{n}')(Dense(4, name=f'fc{n}')(x), 3) for n in (1, 2))
        return Dense(2, name='output')(self.join(first, second) if self.join else first)


@pytest.mark.parametrize(
    ('module', 'sentence'),
    [
        (Joined(join=lambda a, b: a * b), 'lif1 goes through a product to output, for which NIR has no node: take a'),
        (Joined(join=lambda a, b: a + b), 'lif1 goes through a sum to output, for which NIR has no node'),
        (Joined(join=lambda a, b: (1 - a) * b), 'lif1 goes through a difference to output, for which NIR has no node'),
        (Joined(before=jnp.tanh), 'input goes through the operation tanh to fc1, for which NIR has no node'),
        (
            Joined(neuron=AdaptedLIF),
            'lif1 has neurons of the kind ds_atgo, which other programs have no node for: take',
        ),
    ],
)
def test_what_nir_cannot_say_is_refused_by_the_layer(module, sentence):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    with pytest.raises(UserError, match=f'^{re.escape(sentence)}'):
        nir_write.to_nir(module, shapes, (2, 2, 1))


def chain(*nodes):
    return nir.NIRGraph.from_list(*nodes)


def full(value, *shape):
    return np.full(shape, value, np.float32)


def foreign():
    """A graph as another library might write it: what ours have no use for."""
    rng = np.random.default_rng(0)
    weight = lambda *shape: rng.normal(0, 1, shape).astype(np.float32)
    neurons = {'v_threshold': weight(4, 3, 3) ** 2 + 0.4, 'v_reset': weight(4, 3, 3) - 1}
    return chain(
        nir.Input({'input': np.array([2, 6, 7])}),
        nir.Conv2d((6, 7), weight(4, 2, 3, 3), (1, 2), (1, 0), 1, 1, weight(4)),
        nir.AvgPool2d(np.array([2, 1]), np.array([2, 1]), np.array([0, 0])),
        nir.LIF(tau=full(3e-3, 4, 3, 3), r=full(3, 4, 3, 3), v_leak=full(0.2, 4, 3, 3), **neurons),
        nir.Scale(weight(4, 3, 3)),
        nir.Flatten({'input': np.array([4, 3, 3])}, 0, -1),
        nir.Linear(weight(5, 36)),
        nir.IF(r=full(1e3, 5), v_threshold=full(1.5, 5), v_reset=full(-0.5, 5)),
        nir.Affine(weight(2, 5), weight(2)),
        nir.Output({'output': np.array([2])}),
    )


def test_a_graph_of_another_library_is_run_as_nir_defines_it():
    graph = foreign()
    frames = np.random.default_rng(1).normal(size=(6, 3, 2, 6, 7)).astype(np.float32)
    outputs, spikes, nearest = reference.run(graph, frames, 1e-3)
    ran = jax.jit(nir_read.Network(graph, dt=1e-3))(frames)
    assert nearest > 1e-5 and spikes.keys() == ran.spikes.keys()
    for name, each in spikes.items():
        assert 0.05 < each.mean() < 0.95
        np.testing.assert_array_equal(ran.spikes[name], each, err_msg=name)
    np.testing.assert_allclose(ran.outputs, outputs, atol=1e-4)


def looped():
    lif = nir.LIF(full(1e-3, 2), full(1, 2), full(0, 2), full(1, 2))
    nodes = {'input': nir.Input(np.array([2])), 'lif': lif, 'back': nir.Linear(np.eye(2)), 'output': nir.Output([2])}
    edges = [('input', 'lif'), ('lif', 'back'), ('back', 'lif'), ('lif', 'output')]
    return nir.NIRGraph(nodes, edges)


def one_of(node):
    return chain(nir.Input(node.input_type), node, nir.Output(node.output_type))


@pytest.mark.parametrize(
    ('graph', 'dt', 'sentence'),
    [
        (one_of(nir.LI(*[full(1, 2)] * 3)), 1, 'li is a node of the kind LI, which is not read here: expected only In'),
        (looped(), 1, 'The graph has a loop, '),
        (one_of(nir.IF(full(1, 2), full(1, 2))), None, 'The graph does not tell the time step that if is to be run wi'),
        (nir.NIRGraph({}, []), 1, 'The graph has 0 inputs and 0 outputs, expected one of each.'),
    ],
)
def test_a_graph_that_is_not_read_is_refused_in_a_sentence(graph, dt, sentence):
    with pytest.raises(UserError, match=f'^{re.escape(sentence)}'):
        nir_read.Network(graph, dt)


def test_frames_of_another_shape_and_files_that_are_none_are_named(tmp_path):
    (tmp_path / 'text').write_text('no graph')
    with pytest.raises(UserError, match=r'text cannot be read \(.*\); expected a file of NIR\.'):
        nir_read.read(tmp_path / 'text')
    with pytest.raises(UserError, match=r'^There is no file .*none\.'):
        nir_read.read(tmp_path / 'none')
    with pytest.raises(ValueError, match=re.escape('frames must be [T, B, 2, 6, 7], got (3, 2, 6, 7).')):
        nir_read.Network(foreign(), 1e-3)(np.zeros((3, 2, 6, 7), np.float32))
