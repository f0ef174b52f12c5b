"""Spiking VGG: structure against counts made by hand, and behaviour."""

import functools
import math
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cpng_jax.control.layer_tree import like_beta
from cpng_jax.models.vgg import VGG
from cpng_jax.nn.layers import Dropout, TdBN
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import MembraneStats

f32: Any = functools.partial(np.asarray, dtype=np.float32)
KEY = jax.random.key(0)
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG16 = VGG(100, VGG16_STAGES, head=(4096, 4096), time_steps=5)
VGG16_SINGLE = VGG(100, VGG16_STAGES, time_steps=5)
VGG11 = VGG(10, ((64, 128), (256, 256), (512, 512), (512, 512)), pool_last=True)
# A low threshold, so that a net this small is alive from its start.
SMALL = VGG(3, ((4,), (6, 6)), head=(5,), time_steps=4, neuron=functools.partial(LIF, surrogate='arctan', v_th=0.3))
apply = jax.jit(SMALL.apply, static_argnames=('train', 'mutable'))


def normal(*shape, seed=0):
    return f32(np.random.default_rng(seed).normal(size=shape))


def run_abstractly(model, shape):
    """Initialises without computing: the variables, and each module called with the shape of its output, in order."""
    calls = []

    def record(next_function, args, kwargs, context):
        result = next_function(*args, **kwargs)
        if context.method_name in ('__call__', 'deferred') and hasattr(result, 'shape'):
            calls.append((context.module, result.shape))
        return result

    with nn.intercept_methods(record):
        variables = jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct(shape, np.float32))
    return variables, calls


# Convolutions without bias, tdBN scale and bias, dense with bias.
CONV16 = 9 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 2 * 256 * 256 + 256 * 512 + 5 * 512 * 512)
NORM16 = 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)
CONV11 = 9 * (2 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 3 * 512 * 512)
NORM11 = 2 * (64 + 128 + 2 * 256 + 4 * 512)


@pytest.mark.parametrize(
    ('model', 'shape', 'layers', 'parameters', 'neurons'),
    [
        (VGG16, (1, 32, 32, 3), 15, CONV16 + NORM16 + 2049 * 4096 + 4097 * 4096 + 4097 * 100, 284_672),
        (VGG16_SINGLE, (1, 32, 32, 3), 13, CONV16 + NORM16 + 2049 * 100, 284_672 - 2 * 4096),
        (VGG11, (10, 1, 48, 48, 2), 8, CONV11 + NORM11 + (3 * 3 * 512 + 1) * 10, 48**2 * 192 + 24**2 * 512 + 720 * 256),
        (SMALL, (1, 8, 8, 3), 4, 27 * 4 + 36 * 6 + 54 * 6 + 2 * 16 + 97 * 5 + 6 * 3, 64 * 4 + 16 * 12 + 5),
    ],
    ids=['VGG16', 'VGG16 single', 'VGG11', 'small'],
)
def test_structure(model, shape, layers, parameters, neurons):
    variables, calls = run_abstractly(model, shape)
    calls = [('/'.join(module.path), output) for module, output in calls if isinstance(module, LIF)]
    assert len(calls) == len(jax.tree.leaves(variables['surrogate'])) == layers
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params'])) == parameters
    time_steps = shape[0] if len(shape) == 5 else model.time_steps
    assert {output[0] for _, output in calls} == {time_steps}
    assert sum(math.prod(output[1:]) for _, output in calls) == neurons
    # Sorted names are in the order of depth, in `surrogate` and in whatever a tree function makes of it.
    paths = [
        jax.tree_util.keystr(p, simple=True, separator='/')
        for p, _ in jax.tree.leaves_with_path(variables['surrogate'])
    ]
    assert paths == [f'{path}/beta' for path, _ in calls]


@pytest.fixture(scope='module')
def small():
    return jax.jit(SMALL.init)(KEY, normal(1, 8, 8, 3))


@pytest.mark.parametrize(('shape', 'time_steps'), [((2, 8, 8, 3), 4), ((6, 2, 8, 8, 3), 6)], ids=['images', 'events'])
def test_outputs_and_statistics(small, shape, time_steps):
    out, updates = apply(small, normal(*shape), train=True, mutable=('batch_stats', 'membrane', 'firing_rate'))
    assert out.shape == (time_steps, 2, 3)
    assert out.dtype == np.float32
    stats = jax.tree.leaves(
        like_beta(updates['membrane'], small['surrogate']), is_leaf=lambda node: isinstance(node, MembraneStats)
    )
    assert all(isinstance(node, MembraneStats) for node in stats)
    rates = jax.tree.leaves(like_beta(updates['firing_rate'], small['surrogate']))
    assert len(stats) == len(rates) == len(jax.tree.leaves(small['surrogate']))
    changed = jax.tree.map(lambda new, old: bool((new != old).any()), updates['batch_stats'], small['batch_stats'])
    assert all(jax.tree.leaves(changed))


def test_evaluation_changes_nothing_and_sees_each_example_alone(small):
    images = normal(3, 8, 8, 3)
    out = apply(small, images)  # batch_stats is not mutable: evaluation must not write
    alone = apply(small, images[1:2])
    np.testing.assert_allclose(out[:, 1:2], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('train', [False, True])
def test_static_images_are_events_that_repeat(small, train):
    images = normal(3, 8, 8, 3)
    present = functools.partial(apply, small, train=train, mutable=('batch_stats', 'membrane'))
    static, repeated = present(images), present(np.repeat(images[None], 4, axis=0))
    chex.assert_trees_all_close(static, repeated, rtol=1e-5, atol=1e-5)
    assert (np.diff(static[0], axis=0) != 0).any()


def test_one_convolution_a_layer_and_the_first_only_once(small):
    program = str(jax.make_jaxpr(SMALL.apply)(small, normal(2, 8, 8, 3)))
    shapes = re.findall(r'\[([\d,]+)\] = conv_general_dilated\[', program)
    assert shapes == ['2,8,8,4', '8,4,4,6', '8,4,4,6']


def test_neurons_and_norms_are_the_given_ones():
    neuron = functools.partial(LIF, surrogate='rectangular', tau=1.0, v_th=0.5, beta_init=2.0)
    _, calls = run_abstractly(SMALL.clone(neuron=neuron, norm=functools.partial(TdBN, v_th=0.5)), (2, 8, 8, 3))
    neurons = [(m.surrogate, m.tau, m.v_th, m.beta_init) for m, _ in calls if isinstance(m, LIF)]
    assert neurons == [('rectangular', 1.0, 0.5, 2.0)] * 4
    assert [m.v_th for m, _ in calls if isinstance(m, TdBN)] == [0.5] * 3


def test_every_parameter_gets_a_gradient(small):
    images = normal(4, 8, 8, 3)
    weights = normal(4, 4, 3, seed=1)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: jnp.sum(weights * apply({**small, 'params': p}, images)))(params)

    for path, leaf in jax.tree.leaves_with_path(gradient(small['params'])):
        assert np.isfinite(leaf).all(), path
        assert (leaf != 0).any(), path


@pytest.mark.parametrize(
    ('message', 'model', 'shape'),
    [
        (r'VGG takes images .* or events .*, got shape \(8, 8, 3\)', SMALL, (8, 8, 3)),
        (r'VGG takes images .* or events .*, got shape \(1, 1, 2, 8, 8, 3\)', SMALL, (1, 1, 2, 8, 8, 3)),
        ('a map of 1 x 1 is smaller than its window of 2', SMALL, (2, 1, 1, 3)),
        ('a map of 1 x 1 is smaller than its window of 2', VGG11, (2, 8, 8, 2)),
    ],
)
def test_errors(message, model, shape):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct(shape, np.float32))


def test_fully_connected_layers_alone():
    """784-400-400-10 with norms, by hand: weights and biases, and scale and bias of each norm."""
    model = VGG(10, (), head=(400, 400), head_norm=True, time_steps=5)
    variables, calls = run_abstractly(model, (2, 28, 28, 1))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params'])) == (
        784 * 400 + 400 + 400 * 400 + 400 + 400 * 10 + 10 + 2 * 2 * 400
    )
    assert list(variables['surrogate']) == ['fc01_lif', 'fc02_lif']
    shapes = {module.name: shape for module, shape in calls if isinstance(module, LIF)}
    assert shapes == {'fc01_lif': (5, 2, 400), 'fc02_lif': (5, 2, 400)}
    # The image is multiplied once, its currents serve at each time step.
    assert next(shape for module, shape in calls if module.name == 'fc01') == (1, 2, 400)


def test_a_norm_in_the_head_is_that_of_the_convolutions():
    """Equal to the currents normalised by float64 numpy, which the neurons get at each time step."""
    model = VGG(3, (), head=(6,), head_norm=True, time_steps=3, norm=functools.partial(TdBN, v_th=0.5))
    x = normal(8, 4, 4, 1)
    variables = model.init(KEY, x)
    _, seen = model.apply(variables, x, train=True, mutable=['potentials', 'batch_stats'])
    dense = variables['params']['fc01']['dense']
    currents = x.reshape(8, 16).astype(np.float64) @ dense['kernel'] + dense['bias']
    expected = 0.5 * (currents - currents.mean(0)) / np.sqrt(currents.var(0) + 1e-5)
    np.testing.assert_allclose(seen['potentials']['fc01_lif']['potentials'][0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen['batch_stats']['fc01_norm']['norm']['mean'], 0.1 * currents.mean(0), rtol=1e-4)
    # In evaluation the running statistics serve.
    _, seen = model.apply(variables, x, mutable=['potentials'])
    np.testing.assert_allclose(
        seen['potentials']['fc01_lif']['potentials'][0], 0.5 * currents / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-6
    )


def test_kernels_of_five():
    """32C5-P2-64C5-P2-1024 on 28 x 28, by hand."""
    model = VGG(10, ((32,), (64,)), head=(1024,), pool_last=True, kernel_size=5, time_steps=5)
    variables, calls = run_abstractly(model, (2, 28, 28, 1))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params'])) == (
        25 * 32 + 2 * 32 + 25 * 32 * 64 + 2 * 64 + 7 * 7 * 64 * 1024 + 1024 + 1024 * 10 + 10
    )
    shapes = [shape for module, shape in calls if isinstance(module, LIF)]
    assert shapes == [(5, 2, 28, 28, 32), (5, 2, 14, 14, 64), (5, 2, 1024)]


def test_a_network_without_neurons_is_refused():
    with pytest.raises(ValueError, match=r'VGG needs a spiking layer, got stages=\(\) and head=\(\)'):
        VGG(10, ()).init(KEY, normal(2, 8, 8, 1))


def test_dropout_follows_each_activation_but_where_a_pool_takes_its_place():
    """And without biases there are none."""
    stages = ((4, 4, 4), (6,), (6, 6))
    model = VGG(3, stages, head=(5,), time_steps=2, dropout=0.2, head_dropout=0.5, bias=False)
    variables, calls = run_abstractly(model, (1, 8, 8, 1))
    found = {module.name: module.rate for module, _ in calls if isinstance(module, Dropout)}
    assert found == {'dropout01': 0.2, 'dropout02': 0.2, 'dropout05': 0.2, 'dropout06': 0.2, 'dropout07': 0.5}
    assert [list(variables['params'][name]['dense']) for name in ('fc07', 'output')] == [['kernel']] * 2
    plain, _ = run_abstractly(VGG(3, stages, head=(5,), time_steps=2, bias=False), (1, 8, 8, 1))
    assert jax.tree.structure(plain) == jax.tree.structure(variables)
