"""What an experiment is: its arms, the baseline that each is compared with, and the folders of their runs."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cpng_jax.runtime.config import Config, Retired, flatten
from cpng_jax.runtime.errors import UserError, nearest

FIXED = {'cpng.enabled': False}
CPNG = {'cpng.enabled': True}


class Arm(NamedTuple):
    """One setting of an experiment, run with every seed.

    Attributes:
      label: its name in tables and pictures.
      changes: values of the configuration that it sets, by key.
      factors: what distinguishes it, as values of columns of the results.
      baseline: label of the arm that it is compared with, seed by seed; None for none.
      beta_of: label of the arm whose final beta it takes; None for none.
      converted_from: label of the arm of an ANN that it starts from, converted by the method of `CONVERSION`.
      folder: of its runs, where what it changes is too much for a name.
      conversions: methods by which the ANN of this arm is converted after its training, to be measured.
    """

    label: str
    changes: Mapping[str, Any]
    factors: Mapping[str, Any]
    baseline: str | None = None
    beta_of: str | None = None
    converted_from: str | None = None
    conversions: tuple[str, ...] = ()
    folder: str | None = None

    @property
    def source(self) -> str | None:
        """Label of the arm whose run, of the same seed, it needs; None for none."""
        return self.beta_of or self.converted_from


class Plan(NamedTuple):
    """An experiment.

    Attributes:
      title: its question, in a line.
      source: figure, table or section of the paper.
      arms: in the order of the table.
      factor: column of `Arm.factors` on the horizontal axis of the picture; None draws the arms side by side.
      series: column of `Arm.factors` that has a curve for each of its values; None draws one curve.
      conversion_steps: numbers of time steps that ANNs among the arms are converted for; of `systems.table4`.
    """

    title: str
    source: str
    arms: tuple[Arm, ...]
    factor: str | None = None
    series: str | None = None
    conversion_steps: tuple[int, ...] = ()


def compared_with(plan: Plan, label: str) -> Plan:
    """Compares all arms of an experiment with one of them.

    Args:
      plan: the experiment.
      label: of the arm.

    Returns:
      The plan.

    Raises:
      UserError: there is no such arm.
    """
    known = [arm.label for arm in plan.arms]
    if label not in known:
        raise UserError(f'--baseline is {label!r}; the nearest is {nearest(label, known)!r} of {"; ".join(known)}.')
    return plan._replace(arms=tuple(arm._replace(baseline=label) for arm in plan.arms))


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
        if arm.source is not None and arm.source not in {other.label for other in arms}:
            what = 'takes the beta of' if arm.beta_of else 'starts from'
            raise UserError(f'{arm.label!r} {what} {arm.source!r}: keep it, too, --arm={arm.source!r}.')
    return plan._replace(arms=arms)


def folder_of(arm: Arm, plan: Plan, config: Config, retired: Mapping[str, Retired] | None = None) -> str:
    """Names the folder of an arm after what it changes, so that experiments of one workdir share equal runs.

    Args:
      arm: one of the plan.
      plan: the experiment.
      config: the configuration that the arms change.
      retired: keys whose names are taken where they were those of a change, and values are written out in full; for
        the folder of older results.

    Returns:
      The name, such as `cpng.beta_init=2.0,cpng.enabled=False`; without spaces, and short for many layers, too.
    """
    if arm.folder is not None:
        return arm.folder
    base = flatten(config)
    changes = {key: value for key, value in arm.changes.items() if base.get(key) != value}
    for name, key in (retired or {}).items():
        for old, new in key.values.items():
            if changes.get(key.becomes) == new:
                changes[name] = old
                del changes[key.becomes]
    in_words = _in_short if retired is None else str
    parts = [f'{key}={in_words(value)}' for key, value in sorted(changes.items())]
    if arm.source is not None:
        (other,) = (other for other in plan.arms if other.label == arm.source)
        what = 'beta_of' if arm.beta_of else 'converted'
        parts.append(f'{what}({folder_of(other, plan, config, retired)})')
    return ','.join(parts) or 'as_configured'


def _in_short(value: Any) -> str:
    """A value as part of a folder's name: of widths, or stages of widths, those that repeat are counted, `8x3_24x9`."""
    if not isinstance(value, tuple):
        return str(value)
    if any(isinstance(part, tuple) for part in value):
        return '_'.join(map(_in_short, value))
    runs = [(part, len([*alike])) for part, alike in itertools.groupby(value)]
    return '-'.join(f'{part}x{count}' if count > 1 else str(part) for part, count in runs)
