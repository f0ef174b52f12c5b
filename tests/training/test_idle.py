"""Every key with every choice: it changes what is built, or is refused for having no effect."""

import collections
import dataclasses
import functools
import hashlib
import io
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import base
from cpng_jax import data
from cpng_jax.control.controller import FirstLayer, Observed, Surrogates
from cpng_jax.control.effective_domain import chi_by_layer
from cpng_jax.data import cifar10_dvs, digits, digits_events, fake, folder, idx, tfds_builders
from cpng_jax.models import registry
from cpng_jax.models.inputs import network_input
from cpng_jax.nn.kinds import KINDS
from cpng_jax.nn.statistics import DISTANCES, MembraneDistances, MembraneStats
from cpng_jax.nn.surrogate import SURROGATES, spike
from cpng_jax.runtime.config import flatten, refuse_idle, validate
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import keys, objective, optim, setup

TABLE = keys.table()

# Another value for each key; where a choice has that already, the default is the other.
OTHER = {
    'epochs': 21, 'batch_size': 8, 'dtype': 'bfloat16', 'remat': 'block',
    'data.name': 'digits_events', 'data.fake': True, 'data.fake_examples': 100, 'data.per_class': 2,
    'data.validation': 0.25,
    'data.crop_padding': 2, 'data.flip': True, 'data.policy': 'autoaugment', 'data.cutout': 4,
    'data.mixup_alpha': 0.2, 'data.cutmix_alpha': 0.2, 'data.resize': 'fixed', 'data.image_size': 12,
    'data.event_size': 10, 'data.slicing': 'time', 'data.frame_scale': 'max', 'data.roll': 3, 'data.split': 'random',
    'data.time_steps': 3,
    'model.name': 'resnet18', 'model.width': 2.0, 'model.time_steps': 3,
    'neuron.kind': 'ds_atgo', 'neuron.tau': 0.4, 'neuron.learn_tau': True, 'neuron.v_th': 0.7,
    'neuron.surrogate': 'rectangular', 'neuron.detach_reset': True,
    'neuron.levels': 8, 'neuron.threshold': 4.0, 'norm.kind': 'bias',
    'norm.alpha': 0.9, 'norm.alpha_residual': 0.6, 'norm.momentum': 0.8,
    'loss.name': 'tet', 'loss.tet_weight': 0.1, 'loss.tet_target': 0.6, 'loss.label_smoothing': 0.1,
    'optim.name': 'adam', 'optim.learning_rate': 0.2, 'optim.momentum': 0.8,
    'optim.weight_decay': 0.01, 'optim.decay_norm_and_bias': False, 'optim.warmup_fraction': 0.3,
    'optim.schedule': 'steps', 'optim.cosine_epochs': 3, 'optim.step_at': (0.5,), 'optim.step_factor': 0.3,
    'cpng.enabled': False, 'cpng.beta_init': 1.5, 'cpng.scale_init': 0.5, 'cpng.chi': 'counted',
    'cpng.interval': 'support', 'cpng.rule': 'dspike', 'cpng.per': 'channel',
    'cpng.every': 'batch', 'cpng.statistics': 'epoch_mean', 'cpng.chi_limit': 0.3, 'cpng.limit_mode': 'immediate',
    'cpng.dspike_epsilon': 0.05, 'cpng.dspike_step': 0.2,
    'cpng.beta_from': 'another_run', 'cpng.beta_from_epoch': 1, 'cpng.gain_target': 0.5, 'cpng.chi_target': 0.5,
    'cpng.coherence': 0.9,
}  # fmt: skip

NEEDS = {'lsg': {'neuron.learn_tau': True}, 'from_run': {'cpng.beta_from': 'a run', 'cpng.beta_from_epoch': 2}}
CHOICES = [
    {},
    *({'data.name': name} for name in data.DATASETS),
    pytest.param({'model.name': 'resnet18'}, marks=pytest.mark.deep),
    pytest.param({'model.name': 'sew_resnet18'}, marks=pytest.mark.deep),
    *({'neuron.surrogate': name} for name in SURROGATES),
    *({'cpng.rule': name, **NEEDS.get(name, {})} for name in keys.RULES),
    {'cpng.rule': 'cpng', **NEEDS['from_run']},
    {'neuron.kind': 'ds_atgo'},
    {'neuron.kind': 'diet'},
    {'neuron.kind': 'mpd_agl'},
    {'neuron.kind': 'if_soft'},
    {'neuron.kind': 'qcfs', 'model.time_steps': 1},
    {'norm.kind': 'none'},
    {'loss.name': 'tet'},
    {'loss.name': 'sum_output'},
    {'optim.name': 'adam'},
    {'optim.name': 'amsgrad'},
    {'optim.schedule': 'steps'},
    {'cpng.chi': 'counted'},
    {'cpng.every': 'batch'},
    {'cpng.per': 'channel'},
]
# What these turn off, or stand for, is not refused: a series of runs turns them alone.
SWITCHES = [{'cpng.enabled': False}, {'data.fake': True}, {'data.name': 'cifar10_dvs', 'data.fake': True}]


def small(**changes):
    """A configuration whose parts take milliseconds to trace."""
    config = base.get_config()
    config.epochs, config.batch_size, config.model.time_steps = 20, 4, 2
    edge = {
        'imagenet2012': 'image_size',
        'folder': 'image_size',
        'digits_events': 'event_size',
        'cifar10_dvs': 'event_size',
    }
    name = changes.get('data.name', 'digits')
    if name in edge:
        config.data[edge[name]] = 8
    for key, value in changes.items():
        *sections, last = key.split('.')
        section = functools.reduce(getattr, sections, config)
        if isinstance(value, type(section[last])):
            section[last] = value
        else:  # which takes ten times as long
            with config.ignore_type():
                section[last] = value
    residual = {'blocks': (1,), 'widths': (1,), 'stem_width': 1}
    config.model.update({'stages': ((2,),)} if config.model.name.startswith('vgg') else residual)
    return config


def digest(*values):
    return hashlib.sha256(repr(values).encode()).hexdigest()


def part(*read):
    """Makes a function of a configuration one that computes once for equal values of the keys that start so."""

    def decorate(function):
        kept = {}

        @functools.wraps(function)
        def remembered(config):
            values = json.dumps({key: value for key, value in flatten(config).items() if key.startswith(read)})
            if values not in kept:
                try:
                    kept[values] = function(config)
                except (UserError, ValueError) as error:
                    kept[values] = error
            if isinstance(kept[values], Exception):
                raise kept[values]
            return kept[values]

        return remembered

    return decorate


@pytest.fixture(scope='module')
def data_sets(tmp_path_factory):
    """The data sets by the same code as ever, with images and frames that are made up where files would be read."""
    images, labels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8), np.arange(40) % 4

    def frames(path, count, recordings, *, time_steps, slicing, size, sensor, scale):
        drawn = np.random.default_rng([*slicing.encode(), *scale.encode()])
        return drawn.integers(0, 4, (count, time_steps, *size, 2), np.uint8)

    def shaped(config):
        config = config.copy_and_resolve_references()
        config.fake_examples, config.per_class = 40, 0
        return fake.load(config, data.kind_of(config))

    def in_memory(config):
        dataset = shaped(config)
        train = data.ArraySource(dataset.train.images, np.arange(40) % 4)
        return dataclasses.replace(dataset, train=train)

    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image[:, :24]).save(buffer, 'PNG')
        encoded.append(buffer.getvalue())
    records = [
        {'image': image, 'label': label, 'file_name': 'an image'} for image, label in zip(encoded, labels, strict=True)
    ]
    classes = tmp_path_factory.mktemp('folder')
    for index, image in enumerate(encoded):
        path = classes / ('test' if index < 8 else 'train') / 'abcd'[labels[index]] / f'{index:02}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)

    features = {'label': types.SimpleNamespace(names='abcd')}
    builder = types.SimpleNamespace(
        info=types.SimpleNamespace(features=features), data_path=tmp_path_factory.mktemp('tfds')
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, rule in keys.RULES.items():
            if name != 'from_run':  # which `make` knows by identity
                patch.setitem(keys.RULES, name, watched(name, rule))
        patch.setattr(digits, 'scans', lambda: (images[..., :1], labels))
        for module in (digits_events, cifar10_dvs):
            patch.setattr(module, 'cached_frames', frames)
        patch.setattr(cifar10_dvs, '_open', lambda folder: (folder, [20] * 10, None))
        patch.setattr(tfds_builders, 'open_builder', lambda *_: builder)
        patch.setattr(idx, '_prepare_what_is_at_hand', lambda *_: None)
        patch.setattr(tfds_builders, 'records', lambda *_, **__: records)
        patch.setattr(tfds_builders, 'read_all', iter)
        patch.setattr(folder, 'local', lambda *_: classes)
        patch.setattr(
            tfds_builders,
            'read_images',
            lambda _, split, shape, place: (images[:, : shape[0], : shape[1], : shape[2]], labels),
        )
        patch.setitem(data.DATASETS, 'mnist5k', data.DATASETS['mnist5k']._replace(load=in_memory))
        yield


@part('data.')
def data_of(config):
    dataset = data.load(config.data)
    rng = np.random.default_rng(0)
    seen = [dataset.augment(dataset.train[index], rng)['image'].tobytes() for index in range(4)]
    tested = [dataset.prepare(dataset.test[index])['image'].tobytes() for index in range(min(20, len(dataset.test)))]
    return digest(len(dataset.train), len(dataset.test), dataset.image_shape, seen, tested)


@part('data.mixup', 'data.cutmix', 'loss.')
def loss_of(config):
    logits, labels, images = jnp.zeros((2, 4, 3)), jnp.zeros(4, int), jnp.zeros((4, 8, 8, 1))
    mix = objective.make_mix(config.data, 0, 3)
    loss = jax.make_jaxpr(objective.make_loss(config.loss, 3))(logits, labels)
    return digest(loss, mix and jax.make_jaxpr(mix)(images, labels, 0))


@part('optim.', 'epochs', 'batch_size')
def optimizer_of(config):
    optimizer = optim.make_optimizer(config.optim, 40 // config.batch_size * config.epochs)
    params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
    state = jax.eval_shape(optimizer.init, params)
    return digest(jax.make_jaxpr(optimizer.update)(params, state, params))


def network_of(config):
    shape = data.kind_of(config.data).image_shape
    # Frames of one size: traces of large images say no more.
    return traced(config, (*shape[:-3], 8, 8, shape[-1]))


@part('model.', 'neuron.', 'norm.', 'remat', 'dtype', 'cpng.beta_init', 'cpng.scale_init', 'cpng.per', 'cpng.chi')
def trace_for(config):
    return functools.cache(lambda shape: trace(config, shape))


def traced(config, shape):
    return trace_for(config)(shape)


def trace(config, shape):
    model = registry.build(config, 3)
    images = network_input(jnp.zeros((2, *shape), jnp.uint8), np.zeros(shape[-1]), np.ones(shape[-1]), config.dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    mutable = ['batch_stats', 'distances' if config.cpng.chi == 'counted' else 'membrane']

    def loss(params, others):
        outputs, updates = model.apply({**others, 'params': params}, images, train=True, mutable=mutable)
        return jnp.sum(outputs), updates

    others = {name: variables[name] for name in variables if name not in ('params', 'membrane', 'distances')}
    gradient = jax.make_jaxpr(jax.value_and_grad(loss, has_aux=True))(variables['params'], others)
    learnt = config.neuron.learn_tau or config.neuron.kind in ('diet', 'if_soft', 'qcfs')  # from a value on
    return digest(gradient, learnt and jax.make_jaxpr(model.init)(jax.random.key(0), images))


# The options of all rules, and of each rule those that it has read so far, but for from_run, which is not watched.
OF_RULES = {option.name for rule in keys.RULES.values() for option in rule.options}
READ = {name: set() for name in keys.RULES}


class Options(collections.UserDict):
    """Options that tell which of them a rule reads, in whichever way."""

    def __init__(self, values, rule):
        super().__init__(values)
        self._rule = rule

    def __getitem__(self, name):
        READ[self._rule].add(name)
        return super().__getitem__(name)


def watched(name, rule):
    return rule._replace(make=lambda settings: rule.make(settings._replace(options=Options(settings.options, name))))


# Of the potentials at each step, two an epoch: chi falls below its limit, and rises.
VARIANCES = (1.5, 1.0, 9.0, 60.0, 3.0, 0.5, 1.0, 2.0)


@part('cpng.', 'neuron.', 'model.time_steps')
def surrogates_of(config):
    """Width and height after each step of four epochs with made-up statistics, and the chi that is reported of it."""
    if not KINDS[config.neuron.kind].spikes:
        return digest(), digest()
    settings = setup._settings(config, ['lif'], 2, config.model.time_steps)._replace(
        beta_of_run=lambda folder: {'lif': float(len(folder))}
    )
    controller = setup._controller(config, settings)
    tree = lambda leaf: {'lif': {'beta': leaf}}
    channels = (2,) if config.cpng.per == 'channel' else ()
    weights, signs = jnp.array([0.38, 0.3, 0.45]), jnp.array([1.0, -2.0, 3.0])
    loss = lambda kernel, beta: jnp.sum(signs * spike(kernel, jnp.mean(beta['lif']['beta']), 0.4, 'triangular'))
    params = {'lif': {'decay': jnp.float32(0.3)}, 'weights': weights}
    first = FirstLayer(weights, loss)
    set_beta = lambda observed, *rest: controller.update(observed._replace(first_layer=first), *rest)
    if 'first_layer' in controller.needs:
        set_beta = jax.jit(set_beta)  # which training does, too
    given = Surrogates(*(tree(jnp.full(channels, config.cpng[f'{what}_init'])) for what in Surrogates._fields))
    state, trained, reported, update = controller.init(given.beta), [], [], 0
    # At first the layer is silent and constant: what goes by the gain, or by chi, leaves it as configured.
    silent = {'currents': tree(MembraneStats(*[jnp.ones(channels)] * 2)), 'firing_rate': tree(jnp.zeros(channels))}
    if controller.start is not None:
        unseen = (
            tree(MembraneStats(jnp.ones(channels), jnp.zeros(channels))),
            tree(MembraneDistances(jnp.zeros((*channels, len(DISTANCES))))),
        )
        start = Observed(params=params, membrane=unseen[0], distances=unseen[1], **silent)
        # Nor is that all that a rule may do: of a layer that spikes.
        alive = Observed(
            params=params,
            membrane=tree(MembraneStats(*[jnp.ones(channels)] * 2)),
            distances=tree(MembraneDistances(jnp.broadcast_to(np.minimum(DISTANCES, 1), (*channels, len(DISTANCES))))),
            currents=silent['currents'],
            firing_rate=tree(jnp.full(channels, 0.2)),
        )
        begun, _ = controller.start(alive, given, state)
        trained.append([np.broadcast_to(leaf, 2).tolist() for leaf in jax.tree.leaves(begun)])
        given, state = controller.start(start, given, state)
    for step in range(1, len(VARIANCES) + 1):
        first_of_pool = step - 2 if config.cpng.statistics == 'epoch_mean' and step % 2 == 0 else step - 1
        of_channels = np.mean(VARIANCES[first_of_pool:step]) * jnp.array([1.0, 1.5], jnp.float32)
        variances = of_channels if channels else of_channels.mean()
        membrane = MembraneStats(0.1 * variances, variances)
        distances = MembraneDistances(jnp.minimum(jnp.asarray(DISTANCES) ** 0.7 / (1 + variances[..., None]), 0.95))
        chi = chi_by_layer(
            tree(distances if settings.counted else membrane),
            given.beta,
            v_th=settings.v_th,
            surrogate=settings.surrogate,
            interval=settings.interval,
        )
        if settings.every == 'batch' or step % 2 == 0:
            update += 1
            measured = {'membrane': tree(membrane), 'distances': tree(distances), 'params': params}
            spiking = {'currents': tree(membrane), 'firing_rate': tree(0.1 + 0 * variances)}
            observed = Observed(**measured, **spiking, updates=update)
            given, state, _ = set_beta(observed, given, state)
        trained.append([np.broadcast_to(leaf, 2).tolist() for leaf in jax.tree.leaves(given)])
        reported.append(np.broadcast_to(jax.tree.leaves(chi)[0], 2).tolist())
    return digest(trained), digest(reported)


def built(config):
    """What of a run decides how it trains, and chi, which is reported besides."""
    surrogates, chi = surrogates_of(config)
    return {
        'data': data_of(config),
        'loss': loss_of(config),
        'optimizer': optimizer_of(config),
        'network': network_of(config),
        'surrogates': surrogates,
        'chi': chi,
    }


# Shown by tests of their own: each is in effect whatever is chosen. What a run starts from is in test_weights.py.
ALWAYS = {'seed', 'optim.accumulate', 'init_from', 'init_checkpoint', 'init_skip'}


def test_every_key_that_a_workdir_holds_to_is_tried():
    assert set(OTHER) == {key.name for key in TABLE.known.values() if not key.free} - ALWAYS


def attempt(function, *arguments):
    """What a function returns, or the sentence that it raises instead."""
    try:
        return function(*arguments)
    except (UserError, ValueError) as error:
        return str(error)


@pytest.mark.parametrize('choice', CHOICES + SWITCHES, ids=lambda choice: ','.join(map(str, choice.values())) or 'none')
def test_a_key_changes_what_is_built_or_is_refused(choice, data_sets):
    """And what is refused would change nothing that the network is trained by."""
    config = small(**choice)
    refuse_idle([config], TABLE)
    before = built(config)
    for name, value in OTHER.items():
        says_nothing = choice.get('cpng.rule') in ('fixed', 'from_run') or not KINDS[config.neuron.kind].spikes
        if name in choice or (name == 'cpng.enabled' and says_nothing):
            continue  # then both say the same
        other = small(**{**choice, name: value})
        validate(other, TABLE)
        refused = attempt(refuse_idle, [other], TABLE)
        rule, option = config.cpng.rule, name.removeprefix('cpng.')
        sets = rule != 'from_run' and KINDS[config.neuron.kind].spikes  # a rule, by its options
        if refused and sets and option in OF_RULES and option != 'beta_from':
            assert option not in READ[rule]  # and what a rule does not read changes nothing
            continue
        after = attempt(built, other)
        if isinstance(after, str):
            continue  # refused for what else is chosen, by a sentence of its own
        if refused is None:
            assert choice in SWITCHES or after != before, f'config.{name} does nothing'
        else:
            idle = re.match(r'config\.(\S+) is \S+, which has no effect with config\.', refused)
            assert idle and idle[1] in (name, *choice)
            if idle[1] != name or choice in SWITCHES:
                continue
            for what in before.keys() - {
                'chi',
                'network' if name == 'cpng.per' else '',
            }:  # where beta has another shape
                assert after[what] == before[what], f'{refused} But {what} is another.'
