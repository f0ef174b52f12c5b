"""The experiments: the arms of each, and the baseline that each arm is compared with."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from cpng_jax.experiments.plan import CPNG, FIXED, Arm, Plan
from cpng_jax.experiments.systems import table4
from cpng_jax.models import registry
from cpng_jax.runtime.config import Config, flatten
from cpng_jax.runtime.errors import UserError

# Of the paper, Tables 3 and 6; chi can be set for each of them.
_SHAPES = ('triangular', 'rectangular', 'arctan')
# Table 5, column CPNG + TET.
_TET = {
    'loss.name': 'tet',
    'optim.name': 'adam',
    'optim.learning_rate': 1e-3,
    'optim.weight_decay': 4e-5,
    'optim.warmup_fraction': 0.0,
}


# Rules that go by the gain, and what they are compared with, by the names of their arms.
_BY_GAIN = {
    'fixed': FIXED,
    'CPNG': CPNG,
    'coherence and gain': CPNG | {'cpng.rule': 'coherent_gain'},
    'chi and gain': CPNG | {'cpng.rule': 'chi_gain'},
    'gain': CPNG | {'cpng.rule': 'gain'},
    'gain by the width': CPNG | {'cpng.rule': 'gain_width'},
    'Condition IV': CPNG | {'cpng.rule': 'condition_iv'},
    'CPNG x gain': CPNG | {'cpng.rule': 'cpng_gain'},
}


def beta_sweep(config: Config, values: Sequence[float] | None) -> Plan:
    """Accuracy for several values of a fixed beta (Fig. 1, left)."""
    betas = sorted({*(values or (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)), 1.0})
    arms = [
        Arm(f'beta = {beta:g}', FIXED | {'cpng.beta_init': float(beta)}, {'beta': beta}, baseline='beta = 1')
        for beta in betas
    ]
    return Plan('A fixed beta: rise and collapse', 'Fig. 1, left', tuple(arms), 'beta')


def chi_limit(config: Config, values: Sequence[float] | None) -> Plan:
    """Accuracy of CPNG for several lower bounds of chi (Table 2)."""
    arms = [Arm('fixed', FIXED, {'chi_limit': math.nan})]
    for limit in values or (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        changes = CPNG | {'cpng.chi_limit': float(limit)}
        arms.append(Arm(f'chi_limit = {limit:g}', changes, {'chi_limit': limit}, baseline='fixed'))
    return Plan('The lower bound of chi', 'Table 2', tuple(arms), 'chi_limit')


def surrogates(config: Config, values: Sequence[float] | None) -> Plan:
    """CPNG on each shape of the surrogate gradient, and with TET (Tables 3 and 6)."""
    arms = []
    for shape, loss in [*((shape, 'mean_output') for shape in _SHAPES), ('triangular', 'tet')]:
        name = shape + (' + TET' if loss == 'tet' else '')
        shared = {'neuron.surrogate': shape} | (_TET if loss == 'tet' else {})
        factors = {'surrogate': shape, 'loss': loss}
        arms.append(Arm(name, FIXED | shared, factors | {'cpng': False}))
        arms.append(Arm(f'{name} + CPNG', CPNG | shared, factors | {'cpng': True}, baseline=name))
    return Plan('CPNG on three surrogate gradients, and with TET', 'Tables 3 and 6', tuple(arms))


def frequency(config: Config, values: Sequence[float] | None) -> Plan:
    """CPNG once an epoch, once a batch, and never, at two sizes of the batch (Table 1)."""
    arms, sizes = [], values or (config.batch_size, 2 * config.batch_size)
    for size in sizes:
        if not float(size).is_integer():
            raise UserError(f'--values is {size:g}, expected sizes of a batch, such as 32,64.')
    for size in map(int, sizes):
        none = f'batch {size}, none'
        for every in ('none', 'batch', 'epoch'):
            changes = (FIXED if every == 'none' else CPNG | {'cpng.every': every}) | {'batch_size': size}
            factors = {'batch_size': size, 'every': every}
            arms.append(Arm(f'batch {size}, {every}', changes, factors, None if every == 'none' else none))
    return Plan('How often CPNG runs', 'Table 1', tuple(arms))


def from_scratch(config: Config, values: Sequence[float] | None) -> Plan:
    """The beta that CPNG found, fixed from the start, with beta = 1 for the first tenth and without (A.4)."""
    tenth = math.ceil(config.epochs / 10)
    arms = [
        Arm('fixed', FIXED, {'beta': 'fixed', 'warm_up': 0}),
        Arm('CPNG', CPNG, {'beta': 'CPNG', 'warm_up': 0}, baseline='fixed'),
        *(
            Arm(label, FIXED | {'cpng.beta_from_epoch': epochs}, {'beta': 'found', 'warm_up': epochs}, 'fixed', 'CPNG')
            for label, epochs in ((f'found, after {tenth} epochs', tenth), ('found, at once', 0))
        ),
    ]
    return Plan('The beta that CPNG found, from the start', 'A.4', tuple(arms))


def compare(config: Config, values: Sequence[float] | None) -> Plan:
    """CPNG, its options and the rules of other papers against a fixed beta."""
    at_each_batch = CPNG | {'cpng.every': 'batch'}  # as in their papers
    options = {
        'fixed': FIXED,
        'CPNG': CPNG,
        'CPNG, chi counted': CPNG | {'cpng.chi': 'counted'},
        'CPNG per channel': CPNG | {'cpng.per': 'channel'},
        'MPD-AGL': at_each_batch | {'cpng.rule': 'mpd_agl'},
        'MPD-AGL, at each step': FIXED | {'neuron.kind': 'mpd_agl'},  # the neuron sets the width itself
        'Dspike': CPNG | {'cpng.rule': 'dspike'},  # runs once an epoch
        'DS-ATGO': FIXED | {'neuron.kind': 'ds_atgo'},  # the neuron sets beta itself, at each time step
        'DS-ATGO, backward half': at_each_batch | {'cpng.rule': 'ds_atgo'},
    }
    if 0 < config.neuron.tau < 1:  # a tau of 0 or 1 cannot be learnt
        learnt = {'neuron.learn_tau': True}
        options['fixed, decay learnt'] = FIXED | learnt
        options['LSG'] = at_each_batch | learnt | {'cpng.rule': 'lsg'}
    arms = []
    for label, changes in options.items():
        settled: dict[str, Any] = {**flatten(config), **changes}
        factors = {key: settled[f'cpng.{key}'] for key in ('rule', 'chi', 'per')}
        if not settled['cpng.enabled']:
            factors['rule'] = 'fixed'
        factors |= {key: settled[f'neuron.{key}'] for key in ('kind', 'learn_tau')}
        arms.append(Arm(label, changes, factors, None if label == 'fixed' else 'fixed'))
    return Plan('CPNG, its options, and rules of other papers', 'Table 3, and beyond the paper', tuple(arms))


def gain(config: Config, values: Sequence[float] | None) -> Plan:
    """The gain held at 1 by height or width, against a fixed beta and CPNG, from several starts."""
    starts = sorted({*(values or (0.25, 0.5, 1.0, 2.0, 3.0, 5.0)), 1.0})
    arms = [
        Arm(
            f'{rule}, beta = {beta:g}',
            changes | {'cpng.beta_init': float(beta)},
            {'rule': rule, 'beta': beta},
            'fixed, beta = 1',
        )
        for rule, changes in _BY_GAIN.items()
        for beta in starts
    ]
    return Plan('The gain held, from any start', 'beyond the paper', tuple(arms), 'beta', 'rule')


def width(config: Config, values: Sequence[float] | None) -> Plan:
    """The share of potentials that sets the width, the gain held by the height, for each shape."""
    arms = []
    for shape in _SHAPES:
        for target in values or (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
            changes = CPNG | {'cpng.rule': 'chi_gain', 'cpng.chi_target': float(target), 'neuron.surrogate': shape}
            arms.append(Arm(f'{shape}, chi = {target:g}', changes, {'surrogate': shape, 'chi_target': target}))
    return Plan('The width, by chi, with the gain held', 'beyond the paper', tuple(arms), 'chi_target', 'surrogate')


def depth(config: Config, values: Sequence[float] | None) -> Plan:
    """The same at several depths of the network, from the configuration's beta, and of fixed ones some more."""
    arms, others = [], [beta for beta in (0.25, 0.5, 0.75, 1.0, 1.5) if beta != config.cpng.beta_init]
    swept = {f'fixed at {beta:g}': FIXED | {'cpng.beta_init': beta} for beta in others}
    for layers in values or (8, 16, 24, 32):
        if not (float(layers).is_integer() and layers >= 1):
            raise UserError(f'--values is {layers:g}, expected numbers of layers, such as 8,16.')
        deeper = deepened(config, int(layers))
        for rule, changes in (swept | _BY_GAIN).items():
            factors = {'rule': rule, 'layers': int(layers)}
            arms.append(Arm(f'{rule}, {layers:g} layers', changes | deeper, factors, f'fixed, {layers:g} layers'))
    return Plan('The gain held, by depth', 'beyond the paper', tuple(arms), 'layers', 'rule')


def deepened(config: Config, layers: int) -> dict[str, Any]:
    """Spreads another number of layers over the stages of a network, in proportion to what they have.

    Args:
      config: of a VGG or a ResNet, with the fields that say what its stages are.
      layers: of neurons: convolutions of a VGG, with its first convolution those of a ResNet.

    Returns:
      The change, by key of the configuration.

    Raises:
      UserError: the network has no such fields, or fewer layers than stages are asked for.
    """
    fields = registry.fields_of(config)
    if 'stages' in fields:
        counts = spread(layers, [len(stage) for stage in fields['stages']])
        stages = tuple((stage[0],) * count for stage, count in zip(fields['stages'], counts, strict=True))
        return {'model.stages': stages}
    if 'blocks' in fields:
        per_block = 3 if fields.get('bottleneck') else 2
        return {'model.blocks': tuple(spread((layers - 1) // per_block, fields['blocks']))}
    raise UserError(f'config.model.name is {config.model.name}, whose depth has no field: expected a VGG or a ResNet.')


def spread(total: int, shares: Sequence[int]) -> list[int]:
    """Divides a number in proportion to others, at least 1 each.

    Args:
      total: to divide.
      shares: at least one.

    Returns:
      Integers with that sum.

    Raises:
      UserError: the total is less than the number of shares.
    """
    if total < len(shares) or not shares:
        raise UserError(f'--values asks for too few layers: the network has {len(shares)} stages, and each needs one.')
    counts = [1] * len(shares)
    for _ in range(total - len(shares)):
        wanted = [share / count for share, count in zip(shares, counts, strict=True)]
        counts[wanted.index(max(wanted))] += 1
    return counts


EXPERIMENTS: dict[str, Callable[[Config, Sequence[float] | None], Plan]] = {
    'beta_sweep': beta_sweep,
    'chi_limit': chi_limit,
    'surrogates': surrogates,
    'frequency': frequency,
    'from_scratch': from_scratch,
    'compare': compare,
    'gain': gain,
    'width': width,
    'depth': depth,
    'table4': table4,
}
# Experiments whose values `--values` may replace.
WITH_VALUES = ('beta_sweep', 'chi_limit', 'frequency', 'gain', 'width', 'depth', 'table4')
