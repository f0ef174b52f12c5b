"""Networks by name, as a configuration asks for them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import linen as nn

from cpng_jax.control.options import BOOLEAN, Range, choice, integer, number
from cpng_jax.models.resnet import ResNet
from cpng_jax.models.sew_resnet import CONNECTS, SEWResNet
from cpng_jax.models.vgg import VGG
from cpng_jax.nn.kinds import KINDS
from cpng_jax.nn.layers import Bias, TdBN
from cpng_jax.nn.surrogate import get_surrogate
from cpng_jax.runtime.errors import UserError, if_alike, nearest


class Variant(NamedTuple):
    """A network that has a name.

    Attributes:
      module: its class.
      fields: what the name stands for; a configuration may change each.
      words: for a field, values that have a word in the configuration; the default is the first.
    """

    module: type[nn.Module]
    fields: Mapping[str, Any] = {}
    words: Mapping[str, Mapping[str, Any]] = {}


def _sew(*blocks: int, bottleneck: bool = False) -> Variant:
    return Variant(SEWResNet, {'blocks': blocks, 'bottleneck': bottleneck})


MODELS: dict[str, Variant] = {
    'vgg': Variant(VGG),
    'vgg16': Variant(
        VGG,
        {'stages': ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)},
        {'head': {'fc4096': (4096, 4096), 'single': ()}},
    ),
    # VGGSNN of TET (Deng et al., 2022).
    'vgg11': Variant(VGG, {'stages': ((64, 128), (256,) * 2, (512,) * 2, (512,) * 2), 'pool_last': True}),
    'resnet18': Variant(ResNet, {'blocks': (2, 2, 2, 2), 'widths': (64, 128, 256, 512)}),
    # Zheng et al. (2020).
    'resnet19': Variant(ResNet, {'blocks': (3, 3, 2), 'widths': (128, 256, 512), 'stem_width': 128, 'head': (256,)}),
    'resnet20': Variant(ResNet, {'blocks': (3, 3, 3), 'widths': (64, 128, 256)}),
    # Of Li et al. (2021), who pool by averages.
    'resnet34': Variant(
        ResNet, {'blocks': (3, 4, 6, 3), 'widths': (64, 128, 256, 512), 'stem_width': 64, 'deep_stem': True}
    ),
    # Fang et al. (2021).
    'sew_resnet18': _sew(2, 2, 2, 2),
    'sew_resnet34': _sew(3, 4, 6, 3),
    'sew_resnet50': _sew(3, 4, 6, 3, bottleneck=True),
    'sew_resnet101': _sew(3, 4, 23, 3, bottleneck=True),
    'sew_resnet152': _sew(3, 8, 36, 3, bottleneck=True),
}


def _counts(value: Any) -> bool:
    """Whether a value is a sequence of integers of at least 1."""
    return isinstance(value, list | tuple) and all(type(number) is int and number >= 1 for number in value)


def _stages(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(stage and _counts(stage) for stage in value)


# What a field of any network may be.
FIELD_RANGES: dict[str, Range] = {
    'stages': Range(_stages, 'the channels of each stage, such as ((16, 16), (32, 32, 32)), or ()'),
    'head': Range(_counts, 'widths of layers, such as (256,) or ()'),
    # Sums of spikes over the blocks of a stage are kept as bytes.
    'blocks': Range(
        lambda value: bool(value) and _counts(value) and max(value) <= 254,
        'numbers of blocks, each at most 254, such as (2, 2, 2, 2)',
    ),
    'widths': Range(lambda value: bool(value) and _counts(value), 'numbers of channels, such as (64, 128)'),
    'stem_width': integer(1),
    'pool_last': BOOLEAN,
    'kernel_size': Range(lambda value: type(value) is int and value >= 1 and value % 2 == 1, 'an odd integer'),
    'head_norm': BOOLEAN,
    'dropout': number(0, 1, open_high=True),
    'head_dropout': number(0, 1, open_high=True),
    'bias': BOOLEAN,
    'bottleneck': BOOLEAN,
    'deep_stem': BOOLEAN,
    'connect': choice(*CONNECTS),
}

# Fields that come from elsewhere in the configuration or belong to flax.
_NOT_SETTABLE = ('classes', 'neuron', 'norm', 'alpha_residual', 'remat', 'name', 'parent')


def _checked_fields(name: str, known: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a network: those its name stands for, changed by those that are given, words replaced; all checked."""
    variant = MODELS[name]
    settable = [field for field in known if field not in _NOT_SETTABLE]
    for field in given:
        if field not in settable:
            close = nearest(f'model.{field}', [f'model.{other}' for other in settable])
            raise UserError(f"config has no key 'model.{field}'; the nearest of the network {name} is {close!r}.")
    fields = {**variant.fields, **{field: next(iter(words)) for field, words in variant.words.items()}, **given}
    for field, words in variant.words.items():
        if isinstance(fields[field], str):
            if fields[field] not in words:
                expected = f'expected one of {", ".join(words)}{if_alike(fields[field], words)}'
                raise UserError(f'config.model.{field} is {fields[field]!r}, {expected}.')
            fields[field] = words[fields[field]]
    for field, range in FIELD_RANGES.items():
        if field in fields and not range.accepts(fields[field]):
            near = if_alike(str(fields[field]), range.names)
            raise UserError(f'config.model.{field} is {fields[field]!r}, expected {range.expected}{near}.')
    if 'stages' in fields and not fields['stages'] and not fields.get('head'):
        raise UserError(
            f'config.model.stages is {fields["stages"]!r}, expected the channels of at least one stage, or '
            'config.model.head with a width: a network needs a spiking layer.'
        )
    if len(fields.get('blocks', ())) != len(fields.get('widths', fields.get('blocks', ()))):
        raise UserError(
            f'config.model.blocks is {fields["blocks"]!r} and config.model.widths {fields["widths"]!r}: '
            'both need one number for each stage.'
        )
    return fields


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the network that a configuration describes, those that its name stands for included.

    Args:
      config: the whole configuration.

    Returns:
      The fields by name, as `build` hands them to the module.

    Raises:
      UserError: no network has that name, or it has no such field or value.
    """
    name = config['model']['name']
    if name not in MODELS:
        expected = f'expected one of {", ".join(MODELS)}{if_alike(str(name), MODELS)}'
        raise UserError(f'config.model.name is {name!r}, {expected}.')
    known = [field.name for field in dataclasses.fields(MODELS[name].module)]
    return _checked_fields(name, known, {field: value for field, value in config['model'].items() if field != 'name'})


def build(config: Mapping[str, Any], classes: int) -> nn.Module:
    """Makes the network that a configuration describes.

    Args:
      config: the whole configuration, a `ConfigDict` or nested mappings: `model` holds the network's name and fields,
        `neuron`, `norm` and `cpng.beta_init`, `cpng.scale_init` and `cpng.per` the settings of its layers.
      classes: number of outputs.

    Returns:
      The linen module.

    Raises:
      UserError: no network has that name, or it has no such field or value.
    """
    fields, variant = fields_of(config), MODELS[config['model']['name']]
    if 'alpha_residual' in {field.name for field in dataclasses.fields(variant.module)}:
        fields['alpha_residual'] = config['norm']['alpha_residual']
    fields['remat'] = config['remat']
    try:
        return variant.module(classes=classes, neuron=_neuron(config), norm=_norm(config), **fields)
    except TypeError as error:
        raise UserError(f'config.model does not describe a network {config["model"]["name"]}: {error}.') from error


# What stands between a convolution and its neurons, `config.norm.kind`.
NORMS = ('tdbn', 'bias', 'none')


def _norm(config: Mapping[str, Any]) -> Callable[..., nn.Module]:
    """What stands between a convolution and its neurons, as a configuration describes it."""
    fields = {name: value for name, value in config['norm'].items() if name not in ('kind', 'alpha_residual')}
    # Cards of the zoo from before there was another have none.
    kind = config['norm'].get('kind', NORMS[0])
    if kind == 'tdbn':
        return functools.partial(TdBN, v_th=config['neuron']['v_th'], **fields)
    return functools.partial(_without_norm, kind == 'bias')


def _without_norm(learnt: bool, *, name: str, alpha: float = 1.0, v_th: float = 1.0) -> Bias:
    """A bias, or nothing, for networks that say what threshold and branches a norm is for."""
    del alpha, v_th
    return Bias(learnt, name=name)


def _neuron(config: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """The layers of neurons that a configuration describes, once it has been checked that their kind can do so."""
    fields = dict(config['neuron'].items())
    name = fields.pop('kind')
    kind, counted, per_channel = KINDS[name], config['cpng']['chi'] == 'counted', config['cpng']['per'] == 'channel'
    if fields['implementation'] == 'pallas' and (counted or per_channel or fields['learn_tau'] or not kind.pallas):
        able = ' or '.join(other for other in KINDS if KINDS[other].pallas)
        raise UserError(
            'config.neuron.implementation is pallas, whose kernels know a fixed tau and threshold and measure mean and '
            'variance of whole layers: take scan, or cpng.chi gaussian, cpng.per layer, neuron.learn_tau False and '
            f'neuron.kind {able}.'
        )
    if counted and not kind.counts:
        raise UserError(
            f'config.neuron.kind is {name} and config.cpng.chi is counted, expected gaussian with it: '
            'distances are counted from a fixed threshold, at one width.'
        )
    if counted and per_channel:
        raise UserError(
            'config.cpng.chi is counted and config.cpng.per is channel, expected gaussian or layer with it: '
            'counts of each channel would need more memory than the potentials.'
        )
    if kind.sets_support and not math.isinf(get_surrogate(fields['surrogate']).reach):
        raise UserError(
            f'config.neuron.kind is {name} and config.neuron.surrogate is {fields["surrogate"]}: the kind sets the '
            'width of the interval where the gradient is not 0, which is one and the same for that shape: expected '
            'another shape with it.'
        )
    if fields['learn_tau'] and not 0 < fields['tau'] < 1:
        raise UserError(f'config.neuron.tau is {fields["tau"]}, expected a number between 0 and 1 for it to be learnt.')
    if not kind.spikes and config['model']['time_steps'] != 1:
        raise UserError(
            f'config.neuron.kind is {name} and config.model.time_steps is {config["model"]["time_steps"]}, expected 1 '
            'with it: an ANN answers an image once.'
        )
    # Cards of the zoo from before there were heights have none.
    fields |= {'beta_init': config['cpng']['beta_init'], 'scale_init': config['cpng'].get('scale_init', 1.0)}
    fields['per_channel'] = per_channel
    known = {field.name for field in dataclasses.fields(kind.module)}
    return functools.partial(kind.module, **{name: value for name, value in fields.items() if name in known})
