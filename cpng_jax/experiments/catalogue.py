"""The experiments: the arms of each, and the baseline that each arm is compared with."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cpng_jax.nn.surrogate import SURROGATES
from cpng_jax.runtime.config import Config, Retired, flatten
from cpng_jax.runtime.errors import UserError, nearest

FIXED = {'cpng.enabled': False}
CPNG = {'cpng.enabled': True}
# Table 5, column CPNG + TET.
_TET = {
    'loss.name': 'tet',
    'optim.name': 'adam',
    'optim.learning_rate': 1e-3,
    'optim.weight_decay': 4e-5,
    'optim.warmup_fraction': 0.0,
}


class Arm(NamedTuple):
    """One setting of an experiment, run with every seed.

    Attributes:
      label: its name in tables and pictures.
      changes: values of the configuration that it sets, by key.
      factors: what distinguishes it, as values of columns of the results.
      baseline: label of the arm that it is compared with, seed by seed; None for none.
      beta_of: label of the arm whose final beta it takes; None for none.
    """

    label: str
    changes: Mapping[str, Any]
    factors: Mapping[str, Any]
    baseline: str | None = None
    beta_of: str | None = None


class Plan(NamedTuple):
    """An experiment.

    Attributes:
      title: its question, in a line.
      source: figure, table or section of the paper.
      arms: in the order of the table.
      factor: column of `Arm.factors` on the horizontal axis of the picture; None draws the arms side by side.
    """

    title: str
    source: str
    arms: tuple[Arm, ...]
    factor: str | None = None


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
    for shape, loss in [*((shape, 'mean_output') for shape in SURROGATES), ('triangular', 'tet')]:
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


EXPERIMENTS: dict[str, Callable[[Config, Sequence[float] | None], Plan]] = {
    'beta_sweep': beta_sweep,
    'chi_limit': chi_limit,
    'surrogates': surrogates,
    'frequency': frequency,
    'from_scratch': from_scratch,
    'compare': compare,
}
# Experiments whose values `--values` may replace.
WITH_VALUES = ('beta_sweep', 'chi_limit', 'frequency')


def keep_arms(plan: Plan, labels: Sequence[str]) -> Plan:
    """Keeps only some arms of an experiment.

    Args:
      plan: the experiment.
      labels: of the arms to keep; empty for all.

    Returns:
      The plan with those arms, in their order in the plan.

    Raises:
      UserError: there is no such arm, or one of them takes the beta of an arm that would be left out.
    """
    known = [arm.label for arm in plan.arms]
    for label in labels:
        if label not in known:
            raise UserError(f'--arm is {label!r}; the nearest is {nearest(label, known)!r} of {"; ".join(known)}.')
    arms = tuple(arm for arm in plan.arms if arm.label in labels or not labels)
    for arm in arms:
        if arm.beta_of is not None and arm.beta_of not in {other.label for other in arms}:
            raise UserError(f'{arm.label!r} takes the beta of {arm.beta_of!r}: keep it, too, --arm={arm.beta_of!r}.')
    return plan._replace(arms=arms)


def folder_of(arm: Arm, plan: Plan, config: Config, retired: Mapping[str, Retired] | None = None) -> str:
    """Names the folder of an arm after what it changes, so that experiments of one workdir share equal runs.

    Args:
      arm: one of the plan.
      plan: the experiment.
      config: the configuration that the arms change.
      retired: keys whose names are taken where they were those of a change; for the folder of older results.

    Returns:
      The name, such as `cpng.beta_init=2.0,cpng.enabled=False`.
    """
    base = flatten(config)
    changes = {key: value for key, value in arm.changes.items() if base[key] != value}
    for name, key in (retired or {}).items():
        for old, new in key.values.items():
            if changes.get(key.becomes) == new:
                changes[name] = old
                del changes[key.becomes]
    parts = [f'{key}={value}' for key, value in sorted(changes.items())]
    if arm.beta_of is not None:
        (other,) = (other for other in plan.arms if other.label == arm.beta_of)
        parts.append(f'beta_of({folder_of(other, plan, config, retired)})')
    return ','.join(parts) or 'as_configured'
