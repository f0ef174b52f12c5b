"""Checks of a training configuration, before any work is done.

The rules below name every key that `configs/base.py` defines. Further keys of `model` are the fields of the network's
module and are checked when it is built.
"""

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_collections

from cpng_jax.control.cpng import LIMIT_MODES
from cpng_jax.control.effective_domain import INTERVALS
from cpng_jax.control.rules import RULES as OTHER_RULES
from cpng_jax.models.blocks import REMATS
from cpng_jax.nn.neuron import IMPLEMENTATIONS
from cpng_jax.nn.surrogate import SURROGATES
from cpng_jax.runtime.errors import UserError

ConfigDict = ml_collections.ConfigDict

Config = Any
"""A `ConfigDict`; its keys are checked by `validate`, since a type checker cannot know them."""


class Rule(NamedTuple):
    """Whether a value is accepted, and in words what would be."""

    accepts: Callable[[Any], bool]
    expected: str


def _integer(low: int) -> Rule:
    return Rule(lambda value: type(value) is int and value >= low, f'an integer of at least {low}')


def _number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Rule:
    def accepts(value: Any) -> bool:
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return (value > low if open_low else value >= low) and (value < high if open_high else value <= high)

    lower = f'{"above" if open_low else "of at least"} {low:g}'
    upper = '' if math.isinf(high) else f' and {"below" if open_high else "at most"} {high:g}'
    return Rule(accepts, f'a number {lower}{upper}')


def _choice(*options: str) -> Rule:
    return Rule(lambda value: value in options, 'one of ' + ', '.join(options))


def _accepts_steps(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2 or any(type(step) is not int for step in value):
        return False
    return tuple(value) == (0, 0) or 1 <= value[0] <= value[1]


_BOOLEAN = Rule(lambda value: type(value) is bool, 'True or False')
_TEXT = Rule(lambda value: isinstance(value, str), 'a text')

RULES: dict[str, Rule] = {
    'seed': Rule(lambda value: type(value) is int and 0 <= value < 2**32, 'an integer from 0 to 2**32 - 1'),
    'epochs': _integer(1),
    'batch_size': _integer(1),
    'dtype': _choice('float32', 'bfloat16'),
    'remat': _choice(*REMATS),
    'data.name': _TEXT,
    'data.dir': _TEXT,
    'data.fake': _BOOLEAN,
    'data.fake_examples': _integer(4),
    'data.per_class': _integer(0),
    'data.threads': _integer(0),
    'data.workers': _integer(0),
    'data.crop_padding': _integer(0),
    'data.flip': _BOOLEAN,
    'data.policy': _choice('none', 'autoaugment', 'randaugment'),
    'data.cutout': _integer(0),
    'data.mixup_alpha': _number(0),
    'data.cutmix_alpha': _number(0),
    'data.image_size': _integer(1),
    'data.event_size': _integer(1),
    'data.slicing': _choice('count', 'time'),
    'data.roll': _integer(0),
    'data.split': _choice('fixed', 'random'),
    'data.time_steps': _integer(1),
    'model.width': _number(0, open_low=True),
    'model.time_steps': _integer(1),
    'neuron.tau': _number(0, 1),
    'neuron.learn_tau': _BOOLEAN,
    'neuron.ds_atgo': _BOOLEAN,
    'neuron.v_th': _number(0, open_low=True),
    'neuron.surrogate': _choice(*SURROGATES),
    'neuron.detach_reset': _BOOLEAN,
    'neuron.implementation': _choice(*IMPLEMENTATIONS),
    'norm.alpha': _number(0, open_low=True),
    'norm.alpha_residual': _number(0, open_low=True),
    'norm.momentum': _number(0, 1, open_high=True),
    'loss.name': _choice('mean_output', 'tet'),
    'loss.tet_weight': _number(0, 1),
    'loss.tet_target': _number(0),
    'loss.label_smoothing': _number(0, 1, open_high=True),
    'optim.accumulate': _integer(1),
    'optim.name': _choice('sgd', 'adam'),
    'optim.learning_rate': _number(0, open_low=True),
    'optim.momentum': _number(0, 1, open_high=True),
    'optim.weight_decay': _number(0),
    'optim.decay_norm_and_bias': _BOOLEAN,
    'optim.warmup_fraction': _number(0, 1, open_high=True),
    'cpng.enabled': _BOOLEAN,
    'cpng.beta_init': _number(0, open_low=True),
    'cpng.beta_from': _TEXT,
    'cpng.beta_from_epoch': _integer(0),
    'cpng.chi': _choice('gaussian', 'counted'),
    'cpng.chi_limit': _number(0, 1, open_high=True),
    'cpng.limit_mode': _choice(*LIMIT_MODES),
    'cpng.interval': _choice(*INTERVALS),
    'cpng.rule': _choice('cpng', *OTHER_RULES, 'dspike'),
    'cpng.dspike_epsilon': _number(0, open_low=True),
    'cpng.dspike_step': _number(0, open_low=True),
    'cpng.per': _choice('layer', 'channel'),
    'cpng.every': _choice('epoch', 'batch'),
    'cpng.statistics': _choice('last_batch', 'epoch_mean'),
    'eval.batch_size': _integer(1),
    'eval.checkpoint': _choice('latest', 'best'),
    'checkpoint.every_steps': _integer(0),
    'checkpoint.keep': _integer(1),
    'distributed': _choice('auto', 'on', 'off'),
    'cluster.start_timeout': _integer(1),
    'cluster.heartbeat_timeout': _integer(1),
    'mesh.fsdp': _BOOLEAN,
    'profile.steps': Rule(_accepts_steps, 'the first and the last step, such as (20, 25), or (0, 0) for none'),
    'log.every_steps': _integer(1),
}

# Keys that came later, with the value that stands for what runs before them did.
ADDED = {
    'data.per_class': 0,
    'cpng.beta_from': '',
    'cpng.beta_from_epoch': 0,
    'cpng.chi': 'gaussian',
    'cpng.dspike_epsilon': 0.3,
    'cpng.dspike_step': 0.1,
    'cpng.per': 'layer',
    'cpng.rule': 'cpng',
    'neuron.ds_atgo': False,
    'neuron.learn_tau': False,
}

# These may differ between the runs of one workdir: they change what is seen or kept, not what is computed.
FREE = (
    *('data.dir', 'data.threads', 'data.workers', 'eval.', 'checkpoint.'),
    *('neuron.implementation', 'distributed', 'cluster.', 'mesh.', 'profile.', 'log.'),
)


def flatten(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Writes a nested configuration as one level.

    Args:
      config: the configuration, or what `json.loads` made of it.

    Returns:
      Values by dotted key; tuples become lists, as JSON stores them.
    """
    nested = json.loads(config.to_json()) if isinstance(config, ConfigDict) else config
    flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update({f'{key}.{inner}': leaf for inner, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def nearest(key: str, known: Iterable[str]) -> str:
    """Says which known key a misspelt one is most like.

    Args:
      key: the key that does not exist.
      known: the keys that do.

    Returns:
      The known key that is spelt most alike.
    """
    # Keys of the same section first: model.tme_steps is nearer to model.time_steps than to any other key.
    return max(known, key=lambda other: difflib.SequenceMatcher(None, key, other).ratio())


def validate(config: Config) -> None:
    """Checks that each key is known, none is missing, and each value is in range.

    Args:
      config: the configuration.

    Raises:
      UserError: naming the first key at fault, its value, what was expected, and the nearest valid key.
    """
    flat = flatten(config)
    model_keys = {key for key in flat if key.startswith('model.')}
    for key in flat:
        if key not in RULES and key not in model_keys:
            raise UserError(f'config has no key {key!r}; the nearest is {nearest(key, RULES)!r}.')
    for key in (*RULES, 'model.name'):
        if key not in flat:
            raise UserError(f'config lacks the key {key!r}: start from configs/base.py, which has every key.')
    for key, rule in RULES.items():
        if not rule.accepts(flat[key]):
            raise UserError(f'config.{key} is {flat[key]!r}, expected {rule.expected}.')


def changed_keys(old: Mapping[str, Any], new: Config) -> list[str]:
    """Lists what differs between the configuration of a workdir and a new one, apart from `FREE` keys.

    Args:
      old: the stored configuration, nested, as JSON gives it.
      new: the configuration of this run.

    Returns:
      One text `key: old -> new` for each difference.
    """
    before, after = {**ADDED, **flatten(old)}, flatten(new)
    keys = [key for key in sorted(before.keys() | after.keys()) if not key.startswith(FREE)]
    absent = 'absent'
    return [
        f'{key}: {before.get(key, absent)!r} -> {after.get(key, absent)!r}'
        for key in keys
        if before.get(key, absent) != after.get(key, absent)
    ]
