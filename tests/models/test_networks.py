"""The networks of the paper: counts against numbers made by hand from their papers' tables."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import base
from cpng_jax.models import registry
from cpng_jax.models.blocks import REMATS
from cpng_jax.models.resnet import ResNet
from cpng_jax.models.sew_resnet import CONNECTS, SEWBlock, SEWResNet
from cpng_jax.models.summary import input_density, summarise
from cpng_jax.models.vgg import VGG
from cpng_jax.nn.layers import Conv, TdBN
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.terms import Normalised
from cpng_jax.runtime.errors import UserError

# A low threshold, so that nets this small are alive from their start.
alive = functools.partial(LIF, surrogate='arctan', v_th=0.3)


def make(name, classes=10, **fields):
    config = base.get_config()
    config.model = {'name': name, 'time_steps': 4, 'width': 1.0, **fields}
    return registry.build(config, classes)


def stage(convolutions, before, features, edge, *, shortcut=True):
    """Weights, norm parameters, and multiply-adds a time step of a stage of 3x3 convolutions on edge x edge maps."""
    weights = 9 * (before * features + (convolutions - 1) * features**2) + shortcut * before * features
    return np.array([weights, 2 * features * (convolutions + shortcut), weights * edge**2])


def total(stages, stem, head, time_steps, *, static):
    """Parameters and multiply-adds: a stem (weights, channels, edge) that a static image passes once, and stages."""
    weights, norms, work = sum(stages)
    stem_weights, channels, edge = stem
    dense = sum(before * after for before, after in head)
    parameters = stem_weights + 2 * channels + weights + norms + dense + sum(after for _, after in head)
    return parameters, stem_weights * edge**2 * (1 if static else time_steps) + time_steps * (work + dense)


RESNET18 = total(
    [stage(4, 64, 64, 48, shortcut=False), stage(4, 64, 128, 24), stage(4, 128, 256, 12), stage(4, 256, 512, 6)],
    (9 * 2 * 64, 64, 48), [(512, 10)], 10, static=False,
)  # fmt: skip
RESNET19 = total(
    [stage(6, 128, 128, 32, shortcut=False), stage(6, 128, 256, 16), stage(4, 256, 512, 8)],
    (9 * 3 * 128, 128, 32), [(512, 256), (256, 10)], 6, static=True,
)  # fmt: skip
RESNET20 = total(
    [stage(6, 64, 64, 32, shortcut=False), stage(6, 64, 128, 16), stage(6, 128, 256, 8)],
    (9 * 3 * 64, 64, 32), [(256, 100)], 6, static=True,
)  # fmt: skip
SEW18 = total(
    [stage(4, 64, 64, 56, shortcut=False), stage(4, 64, 128, 28), stage(4, 128, 256, 14), stage(4, 256, 512, 7)],
    (49 * 3 * 64, 64, 112), [(512, 1000)], 4, static=True,
)  # fmt: skip
SEW34 = total(
    [stage(6, 64, 64, 56, shortcut=False), stage(8, 64, 128, 28), stage(12, 128, 256, 14), stage(6, 256, 512, 7)],
    (49 * 3 * 64, 64, 112), [(512, 1000)], 4, static=True,
)  # fmt: skip
# VGG16: maps of 32, 16, 8, 4 and 2, then 2048-4096-4096-100; VGG11: 48, 24, 12, 6, then 4608-10.
VGG16_STEPS = 32**2 * 9 * 64**2 + 16**2 * 9 * (64 * 128 + 128**2) + 8**2 * 9 * (128 * 256 + 2 * 256**2)
VGG16_STEPS += 4**2 * 9 * (256 * 512 + 2 * 512**2) + 2**2 * 9 * 3 * 512**2 + 2048 * 4096 + 4096**2 + 4096 * 100
VGG16 = (
    9 * (3 * 64 + 64**2 + 64 * 128 + 128**2 + 128 * 256 + 2 * 256**2 + 256 * 512 + 5 * 512**2)
    + 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512) + 2049 * 4096 + 4097 * 4096 + 4097 * 100,
    32**2 * 27 * 64 + 5 * VGG16_STEPS,
)  # fmt: skip
VGG11_CONVS = [(2, 64, 48), (64, 128, 48), (128, 256, 24), (256, 256, 24), (256, 512, 12), (512, 512, 12)]
VGG11_CONVS += [(512, 512, 6), (512, 512, 6)]
VGG11 = (
    sum(9 * a * b + 2 * b for a, b, _ in VGG11_CONVS) + 4609 * 10,
    10 * (sum(9 * a * b * edge**2 for a, b, edge in VGG11_CONVS) + 4608 * 10),
)


@pytest.mark.deep
@pytest.mark.parametrize(
    ('name', 'shape', 'classes', 'layers', 'counts'),
    [
        ('vgg16', (5, 32, 32, 3), 100, 13 + 2, VGG16),
        ('vgg11', (10, 48, 48, 2), 10, 8, VGG11),
        ('resnet18', (10, 48, 48, 2), 10, 1 + 16, RESNET18),
        ('resnet19', (6, 32, 32, 3), 10, 1 + 16 + 1, RESNET19),
        ('resnet20', (6, 32, 32, 3), 100, 1 + 18, RESNET20),
        ('sew_resnet18', (4, 224, 224, 3), 1000, 1 + 16 + 3, SEW18),
        ('sew_resnet34', (4, 224, 224, 3), 1000, 1 + 32 + 3, SEW34),
    ],
)
def test_counts(name, shape, classes, layers, counts):
    time_steps, *image = shape
    model = make(name, classes, time_steps=time_steps)
    events = image[-1] == 2
    example = jnp.zeros((time_steps, 1, *image) if events else (1, *image), jnp.float32)
    summary = summarise(model, example)
    assert (summary.parameters, summary.multiply_adds) == counts
    assert summary.beta_layers == layers
    assert jax.eval_shape(model.init_with_output, jax.random.key(0), example)[0].shape == (time_steps, 1, classes)


@pytest.mark.deep
@pytest.mark.parametrize(
    ('name', 'layers', 'parameters', 'work'),
    [
        # What torchvision publishes for the ResNets of these shapes: parameters, and G multiply-adds a time step.
        ('sew_resnet18', 20, 11_689_512, 1.81),
        ('sew_resnet34', 36, 21_797_672, 3.66),
        ('sew_resnet50', 1 + 3 * 16 + 4, 25_557_032, 4.09),
        ('sew_resnet101', 1 + 3 * 33 + 4, 44_549_160, 7.80),
        ('sew_resnet152', 1 + 3 * 50 + 4, 60_192_808, 11.51),
    ],
)
def test_sew_resnets_have_the_published_size(name, layers, parameters, work):
    model = make(name, 1000, time_steps=3)
    summary = summarise(model, jnp.zeros((1, 224, 224, 3)))
    assert summary.parameters == parameters
    assert summary.beta_layers == layers
    stem = 112**2 * 49 * 3 * 64  # once, not at each of the three steps
    assert (summary.multiply_adds + 2 * stem) / 3e9 == pytest.approx(work, abs=0.006)


@pytest.mark.deep
def test_vgg16_costs_what_the_paper_says():
    summary = summarise(make('vgg16', 100, time_steps=5), jnp.zeros((1, 32, 32, 3)))
    assert summary.neurons == 284_672
    assert summary.multiply_adds / 1e9 == pytest.approx(1.7, abs=0.02)  # Sec. 4.3
    assert summary.statistics_operations / 1e9 == pytest.approx(5.59e-3, rel=0.02)
    single = summarise(make('vgg16', 100, time_steps=5, head='single'), jnp.zeros((1, 32, 32, 3)))
    assert single.beta_layers == 13
    assert summary.parameters - single.parameters == 2049 * 4096 + 4097 * 4096 + 4097 * 100 - 2049 * 100


@pytest.mark.deep
@pytest.mark.parametrize('name', ['vgg16', 'resnet19', 'resnet20', 'sew_resnet34', 'sew_resnet152'])  # the deepest
def test_layers_are_sorted_by_depth(name):
    """`surrogate` sorted by name, as every tree function has it, is in the order the layers run in."""
    model = make(name, width=1 / 64)
    example = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), example)
    paths = [
        jax.tree_util.keystr(path, simple=True, separator='/')
        for path, _ in jax.tree.leaves_with_path(variables['surrogate'])
    ]
    ran = [f'{layer.path}/beta' for layer in summarise(model, example).layers if layer.kind == 'lif']
    assert paths == ran
    assert len(set(paths)) == len(paths)


def test_a_network_that_has_been_traced_is_summarised_none_the_less():
    model, example = make('vgg11', width=1 / 64), jnp.zeros((1, 32, 32, 3))
    init = model.init  # kept, and what JAX remembers of it with it
    jax.eval_shape(init, jax.random.key(0), example)
    assert summarise(model, example).beta_layers == 8


SMALL = {'time_steps': 3, 'neuron': alive}


@pytest.mark.deep
@pytest.mark.parametrize(
    'model',
    [
        VGG(5, ((8, 8), (8,)), head=(8,), **SMALL),
        ResNet(5, (2, 1), (8, 12), 8, **SMALL),
        ResNet(5, (2, 1), (8, 12), 8, deep_stem=True, **SMALL),
        SEWResNet(5, (2, 1), widths=(8, 12), stem_width=8, **SMALL),
        SEWResNet(5, (1, 1), bottleneck=True, widths=(4, 8), stem_width=8, **SMALL),
    ],
    ids=['vgg', 'resnet', 'deep_stem', 'sew', 'bottleneck'],
)
@pytest.mark.parametrize('remat', REMATS)
def test_what_is_differentiated_is_what_is_computed(model, remat):
    """The backward pass has bytes of what it was told to be whole multiples of a unit, and nothing else is cut off."""
    model, images = model.clone(remat=remat), jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)

    def outputs(params):
        return model.apply({**variables, 'params': params}, images, train=True, mutable=['batch_stats'])[0]

    computed, differentiated = jax.jit(outputs)(variables['params']), jax.jit(lambda p: jax.vjp(outputs, p)[0])
    assert jnp.std(computed) > 0.01
    np.testing.assert_allclose(differentiated(variables['params']), computed, rtol=1e-4, atol=1e-5)


@pytest.mark.deep
def test_bottlenecks_learn_from_images_and_events():
    """Output shape, and a finite gradient that reaches the stem; other networks make steps in tests/test_configs.py."""
    model = SEWResNet(10, (1, 1), bottleneck=True, widths=(4, 8), stem_width=4, time_steps=2, neuron=alive)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(0, 2, (2, 16, 16, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(1), images)

    @jax.jit
    def gradient(params):
        def loss(params):
            out, _ = model.apply({**variables, 'params': params}, images, train=True, mutable=['batch_stats'])
            return jnp.sum(jnp.square(out - 1)), out

        return jax.grad(loss, has_aux=True)(params)

    gradients, out = gradient(variables['params'])
    assert out.shape == (2, 2, 10)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients['stage0_stem']['conv']['conv']['kernel']).max() > 0
    events = jnp.broadcast_to(images, (3, *images.shape))
    assert jax.jit(model.apply)(variables, events).shape == (3, 2, 10)


@pytest.mark.parametrize(
    ('connect', 'table'),
    # (branch, shortcut) = (0, 0), (0, 1), (1, 0), (1, 1): Table 1 of Fang et al.
    [('ADD', [0, 1, 1, 2]), ('AND', [0, 0, 0, 1]), ('IAND', [0, 1, 0, 0])],
)
def test_connect_functions(connect, table):
    branch, shortcut = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32).T
    np.testing.assert_array_equal(CONNECTS[connect](branch, shortcut), table)


@pytest.mark.parametrize(('connect', 'identity'), [('ADD', True), ('IAND', True), ('AND', False)])
def test_a_silent_branch_makes_a_block_the_identity(connect, identity):
    """Fang et al., Sec. 3.3: with a branch that never fires ADD and IAND hand the spikes on, AND stops them."""
    silent = functools.partial(LIF, v_th=1e9)
    block = SEWBlock(3, connect=connect, neuron=silent, norm=TdBN)
    spikes = np.random.default_rng(0).integers(0, 2, (2, 1, 4, 4, 3)).astype(np.float32)
    out, _ = block.init_with_output(jax.random.key(0), spikes, train=True)
    np.testing.assert_array_equal(out, spikes if identity else np.zeros_like(spikes))


def spread_after_norms(model, edge):
    """Standard deviation of what each norm gives in training, by path."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, edge, edge, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    capture = functools.partial(model.apply, train=True, mutable=['batch_stats', 'intermediates'])
    is_norm = lambda module, _: isinstance(module, TdBN)
    _, seen = jax.jit(functools.partial(capture, capture_intermediates=is_norm))(variables, images)
    norms = jax.tree.leaves_with_path(seen['intermediates'], is_leaf=lambda node: isinstance(node, Normalised))
    spread = lambda norm: float(np.std(norm.array()))
    return {jax.tree_util.keystr(path[:-2], simple=True, separator='/'): spread(norm) for path, norm in norms}


def test_sew_norms_are_ordinary_batch_norms():
    norm = functools.partial(TdBN, v_th=0.5)
    spread = spread_after_norms(SEWResNet(10, (1, 1), widths=(8, 8), norm=norm, stem_width=8), 32)
    assert len(spread) == 1 + 2 + 3
    assert spread['stage0_stem/norm'] == pytest.approx(1, rel=1e-3)


def test_summed_branches_have_their_own_alpha():
    model = ResNet(10, (1, 1), (8, 8), stem_width=8, alpha_residual=0.25)
    spread = spread_after_norms(model, 16)
    block = {name: spread[f'stage2_block01/{name}/norm'] for name in ('conv1', 'conv2', 'shortcut')}
    assert block == pytest.approx({'conv1': 1.0, 'conv2': 0.25, 'shortcut': 0.25}, rel=0.02)


def test_the_configuration_reaches_the_summed_branches():
    config = base.get_config()
    config.model = {'name': 'resnet20', 'time_steps': 2, 'width': 1 / 16}
    config.norm.alpha_residual = 0.25
    model = registry.build(config, 10)
    assert isinstance(model, ResNet)
    assert model.alpha_residual == 0.25


@pytest.mark.parametrize(
    ('name', 'fields', 'sentence'),
    [
        (
            'vgg16',
            {'head': 'fc4090'},
            "config.model.head is 'fc4090', expected one of fc4096, single; the nearest is 'fc4096'.",
        ),
        ('resnet19', {'head': 'fc4096'}, "config.model.head is 'fc4096', expected widths of layers"),
        ('resnet19', {'head': 256}, 'config.model.head is 256, expected widths of layers'),
        ('vgg', {'stages': (4, 8)}, r'config.model.stages is \(4, 8\), expected the channels of each stage'),
        ('vgg', {'stages': ()}, r'config.model.stages is \(\), expected'),
        ('vgg', {'stages': ((4,), (0,))}, 'config.model.stages is'),
        ('vgg11', {'pool_last': 'no'}, "config.model.pool_last is 'no', expected True or False"),
        ('resnet18', {'stem_width': 0}, 'config.model.stem_width is 0, expected an integer of at least 1'),
        ('resnet18', {'blocks': 3}, 'config.model.blocks is 3, expected numbers of blocks'),
        ('resnet20', {'blocks': (3, 3)}, 'both need one number for each stage'),
        ('sew_resnet18', {'bottleneck': 2}, 'config.model.bottleneck is 2, expected True or False'),
        ('sew_resnet18', {'blocks': (2, 2, 2, 255)}, 'config.model.blocks is .* at most 254'),
        ('sew_resnet34', {'connect': 'XOR'}, "config.model.connect is 'XOR', expected one of ADD, AND, IAND"),
    ],
)
def test_a_wrong_value_is_named(name, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        make(name, **fields)


def test_modules_used_alone_check_their_fields_too():
    for module in (SEWResNet(10, (1,), connect='XOR', widths=(8,)), ResNet(10, (1, 1), (8,))):
        with pytest.raises(ValueError, match=r"connect is 'XOR', expected one of ADD|one number a stage"):
            module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_operations_follow_the_density_of_the_inputs():
    model = make('vgg', stages=((4,), (6,)), width=1.0)
    images = jnp.asarray(np.random.default_rng(0).normal(0, 3, (2, 8, 8, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    density = input_density(model, variables, images)
    summary = summarise(model, images[:1], density)
    bound = summarise(model, images[:1])
    assert summary.measured
    assert not bound.measured
    assert bound.operations == bound.multiply_adds == summary.multiply_adds
    by_path = {layer.path: layer for layer in summary.layers}
    assert density['conv01/conv/conv'] == 1
    assert 0 < density['conv02/conv/conv'] < 1
    second = by_path['conv02/conv']
    assert second.multiply_adds == 4 * 16 * 6 * 9 * 4
    assert second.operations == pytest.approx(second.multiply_adds * density['conv02/conv/conv'])
    lines = str(summary).splitlines()
    assert len(lines) == 1 + len(summary.layers) + 2
    assert f'{summary.parameters:,} parameters, 2 beta layers' in lines[-2]
    assert math.prod((8, 8, 4)) + math.prod((4, 4, 6)) == summary.neurons


class Importer(nn.Module):
    """A network of someone who takes tdBN as an array, and once as what neurons apply."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(TdBN(name='applied')(Conv(4)(x), train=False))
        return LIF()(TdBN(name='deferred').deferred(Conv(5)(x), train=False))


def test_each_norm_is_counted_once_however_it_is_called():
    summary = summarise(Importer(), jnp.zeros((2, 1, 6, 6, 3)))
    assert [(layer.kind, layer.shape, layer.parameters) for layer in summary.layers] == [
        ('conv', (2, 6, 6, 4), 9 * 3 * 4),
        ('norm', (2, 6, 6, 4), 8),
        ('conv', (2, 6, 6, 5), 9 * 4 * 5),
        ('norm', (2, 6, 6, 5), 10),
        ('lif', (2, 6, 6, 5), 0),
    ]


@pytest.mark.deep
@pytest.mark.parametrize(
    ('name', 'connect'), [('vgg', ''), ('resnet20', ''), ('sew_resnet18', 'ADD'), ('sew_resnet18', 'IAND')]
)
def test_what_is_kept_as_bytes_consists_of_its_unit(name, connect):
    """Each convolution but the first names the unit of its input, which is 0 to 255 times it."""
    config = base.get_config()
    config.model = {'name': name, 'time_steps': 3, 'width': 1 / 8}
    if name == 'vgg':
        config.model.update({'stages': ((32,), (32, 32), (64,)), 'width': 1.0})
    if connect:
        config.model.connect = connect
    config.neuron.v_th = 0.3
    model, seen = registry.build(config, 4), []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, Conv) and context.method_name == 'packed':
            seen.append((kwargs['unit'], np.asarray(args[0])))
        return next_function(*args, **kwargs)

    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    with nn.intercept_methods(record):
        model.apply(variables, images, train=True, mutable=['batch_stats'])
    (first, _), *others = seen
    assert first is None
    for unit, x in others:
        counts = x / unit
        np.testing.assert_array_equal(counts, np.round(counts))
        assert 0 <= counts.min() <= counts.max() <= 255
    assert sum(bool(x.any()) for _, x in others) >= 3
