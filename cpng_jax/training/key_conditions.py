"""With what a key of the network, of the neurons or of what sets beta has an effect, for `Key.only`.

Each is read from what the modules and rules say of themselves.
"""

from collections.abc import Callable, Iterable

from cpng_jax.control.effective_domain import INTERVALS, domain_half_width
from cpng_jax.control.rules import RULES
from cpng_jax.models.registry import MODELS, NORMS
from cpng_jax.nn.kinds import KINDS
from cpng_jax.nn.surrogate import SURROGATES
from cpng_jax.runtime.config import Only

# Of rules that others register nothing is known: they may read the options of others.
OWN_RULES = tuple(RULES)


def only_with(key: str, table: Iterable[str], has_effect: Callable[[str], bool]) -> tuple[Only, ...]:
    """Makes the condition that a key has an effect with some names of a table.

    Args:
      key: that makes the choice.
      table: the names there are.
      has_effect: whether it has with a name.

    Returns:
      The condition; none where it has with all.
    """
    names = {name: has_effect(name) for name in table}
    choices = tuple(name for name, has in names.items() if has)
    idle = tuple(name for name in names if name not in choices)
    return (Only(key, choices, idle),) if idle else ()


def of_nets(field: str) -> tuple[Only, ...]:
    """Networks that have a field."""
    return only_with('model.name', MODELS, lambda name: field in MODELS[name].module.__dataclass_fields__)


def of_kinds(field: str) -> tuple[Only, ...]:
    """Kinds of neurons that have a field, and heed it."""
    has = lambda kind: field in kind.module.__dataclass_fields__ and field not in kind.ignores
    return only_with('neuron.kind', KINDS, lambda name: has(KINDS[name]))


def of_spikes() -> tuple[Only, ...]:
    """Kinds of neurons that have a surrogate gradient."""
    return only_with('neuron.kind', KINDS, lambda name: KINDS[name].spikes)


def of_norms() -> tuple[Only, ...]:
    """What stands before the neurons where that normalises."""
    return only_with('norm.kind', NORMS, lambda name: name == 'tdbn')


def of_shapes() -> tuple[Only, ...]:
    """Shapes of the surrogate gradient whose support is not the interval that the paper counts."""
    differ = lambda name: len({domain_half_width(SURROGATES[name], interval) for interval in INTERVALS}) > 1
    return only_with('neuron.surrogate', SURROGATES, differ)


def of_rules_that_heed(setting: str) -> tuple[Only, ...]:
    """Rules whose beta differs by a setting."""
    return only_with('cpng.rule', RULES, lambda name: setting in RULES[name].heeds)
