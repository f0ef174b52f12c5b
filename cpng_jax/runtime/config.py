"""Checks of a training configuration, before any work is done, and what it has in common with that of an older run.

Which keys there are is handed in, `Keys`. Further keys of `model` are the fields of the network's module and are
checked when it is built.
"""

import json
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from cpng_jax.runtime.errors import UserError, if_alike, nearest

ConfigDict = ml_collections.ConfigDict

Config = Any
"""A `ConfigDict`; its keys are checked by `validate`, since a type checker cannot know them."""

# Runs of this version had all keys that are not said to be later.
FIRST_VERSION = '0.1'

_LARGEST = {int: 2**32 - 1, float: 3.4028235e38}  # of seeds, and of float32


class Only(NamedTuple):
    """What has to be chosen for a key to have an effect.

    Attributes:
      key: the key that makes the choice.
      choices: in words, those with which it has one.
      idle: values of that key with which it has none; of values that are not among them, nothing is said.
    """

    key: str
    choices: tuple[str, ...]
    idle: Container[Any]

    def __str__(self) -> str:
        """As in 'optim.name sgd'."""
        return f'{self.key} {", ".join(self.choices)}'


class Key(NamedTuple):
    """A key of a configuration.

    Attributes:
      name: with its section, such as 'optim.momentum'.
      default: its value if nobody says; None where it follows another key.
      accepts: tells whether a value is in its range.
      expected: in words what would be, as in 'expected an integer of at least 1'.
      meaning: a line for whoever sets it.
      since: the version of the package that added it.
      used_by: modules that read it, by their names within the package.
      free: it may differ between the runs of one workdir: it changes what is seen or kept, not what is computed.
      grows: training may go on in a workdir with a greater value.
      follows: name of the key that it has one value with.
      before: what stands for it in runs that were made before there was the key; None for the default.
      only: choices without one of which it is idle: it changes neither what is computed nor what is reported.
      names: those that a misspelt value may have meant.
    """

    name: str
    default: Any
    accepts: Callable[[Any], bool]
    expected: str
    meaning: str
    since: str
    used_by: tuple[str, ...]
    free: bool = False
    grows: bool = False
    follows: str = ''
    before: Any = None
    only: tuple[Only, ...] = ()
    names: tuple[str, ...] = ()


class Retired(NamedTuple):
    """A key that another has taken the place of.

    Attributes:
      becomes: name of the key that has.
      since: the version of the package that did so.
      values: the new value for each of the old.
    """

    becomes: str
    since: str
    values: Mapping[Any, Any]


class Keys(NamedTuple):
    """The keys of a configuration.

    Attributes:
      known: by name, in the order to show them in.
      retired: by name, those that old runs have.
    """

    known: Mapping[str, Key]
    retired: Mapping[str, Retired] = {}


def defaults(keys: Keys) -> Config:
    """Makes the configuration in which every key has its default.

    Args:
      keys: those there are.

    Returns:
      The configuration; a key that follows another is a reference to it, so that setting one sets both.
    """
    config: Config = ConfigDict()
    for key in sorted(keys.known.values(), key=lambda key: bool(key.follows)):  # what they follow comes first
        section, name = _section(config, key.name)
        if key.follows:
            followed, other = _section(config, key.follows)
            section[name] = followed.get_ref(other)
        else:
            section[name] = key.default
    return config


def _section(config: Config, key: str) -> tuple[Config, str]:
    """The part of a configuration that a key lies in, made where it is missing, and its name there."""
    *sections, name = key.split('.')
    for section in sections:
        if section not in config:
            config[section] = ConfigDict()
        config = config[section]
    return config, name


def flatten(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Writes a nested configuration as one level.

    Args:
      config: the configuration, or what `json.loads` made of it.

    Returns:
      Values by dotted key; tuples become lists, as JSON stores them.

    Raises:
      UserError: naming a key that holds what JSON cannot, such as a number of NumPy.
    """
    nested = _as_json(config) if isinstance(config, ConfigDict) else config
    flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update({f'{key}.{inner}': leaf for inner, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


# JSON gives these back as they were; most values are such.
_AS_THEY_ARE = (bool, int, float, str, type(None))


def _as_json(config: ConfigDict, prefix: str = '') -> dict[str, Any]:
    nested = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            nested[key] = _as_json(value, f'{prefix}{key}.')
            continue
        if type(value) in _AS_THEY_ARE:
            nested[key] = value
            continue
        try:
            nested[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError) as error:
            raise UserError(
                f'config.{prefix}{key} is {value!r}, expected numbers, texts and tuples of Python itself, as int(), '
                'float(), str() and tolist() make them of others.'
            ) from error
    return nested


def from_flat(flat: Mapping[str, Any]) -> Config:
    """Makes a configuration of what `flatten` has made of one."""
    config: Config = ConfigDict()
    for key, value in flat.items():
        section, name = _section(config, key)
        section[name] = value
    return config


def validate(config: Config | Mapping[str, Any], keys: Keys) -> None:
    """Checks that each key is known, none is missing, and each value is in range.

    Args:
      config: the configuration, or what `flatten` makes of it.
      keys: those there are.

    Raises:
      UserError: naming the first key at fault, its value, what was expected, and the nearest valid key.
    """
    flat = flatten(config)
    for key in flat:
        if key in keys.retired:
            raise UserError(instead_of(key, keys.retired[key]))
        if key not in keys.known and not key.startswith('model.'):
            raise UserError(f'config has no key {key!r}; the nearest is {nearest(key, keys.known)!r}.')
    for key in keys.known:
        if key not in flat:
            raise UserError(f'config lacks the key {key!r}: start from cpng_jax.configs.base, which has every key.')
    for name, key in keys.known.items():
        value = flat[name]
        if not key.accepts(value):
            near = if_alike(value, key.names) if isinstance(value, str) else ''
            raise UserError(f'config.{name} is {value!r}, expected {key.expected}{near}.')
        # Greater ones end as infinity, or as a traceback of whoever counts with them.
        if type(value) in _LARGEST and value > _LARGEST[type(value)]:
            raise UserError(f'config.{name} is {value!r}, expected at most {_LARGEST[type(value)]:.8g}.')


def idle(flat: Mapping[str, Any], keys: Keys) -> dict[str, Only]:
    """Finds the keys that have no effect with what else is chosen.

    Switches that are off for the sake of a comparison, `cpng.enabled=False` and `data.fake=True`, and numbers such as a
    weight of 0 make no key idle: a series of runs turns them alone.

    Args:
      flat: values by dotted key.
      keys: those there are.

    Returns:
      What they lack, by their names.
    """
    return {
        name: only
        for name, key in keys.known.items()
        for only in reversed(key.only)  # the first of them is kept
        if flat.get(only.key) in only.idle
    }


def _as_stored(value: Any) -> Any:
    """A value as `flatten` has it."""
    return list(value) if isinstance(value, tuple) else value


def _neutral(name: str, flat: Mapping[str, Any], keys: Keys) -> Any:
    """The value of an idle key that claims nothing: its default, or that of the key that it has one value with."""
    key = keys.known[name]
    others = [key.follows] if key.follows else [other.name for other in keys.known.values() if other.follows == name]
    return flat[others[0]] if others else key.default


def refuse_idle(
    configs: Sequence[Config | Mapping[str, Any]], keys: Keys, stored: Mapping[str, Any] | None = None
) -> None:
    """Refuses a key that is set although it has no effect in any of some runs.

    Args:
      configs: valid configurations of the runs, or what `flatten` makes of them.
      keys: those there are.
      stored: values by dotted key of a run that goes on: with what it was begun with, it may.

    Raises:
      UserError: naming the first such key, its value, the choice that makes it idle, and what to do.
    """
    runs = [(flat, idle(flat, keys)) for flat in map(flatten, configs)]
    for name in runs[0][1]:
        if not all(name in lacking for _, lacking in runs):
            continue
        for flat, lacking in runs:
            value, neutral, only = flat[name], _neutral(name, flat, keys), lacking[name]
            if value != _as_stored(neutral) and (stored is None or stored.get(name) != value):
                raise UserError(
                    f'config.{name} is {value!r}, which has no effect with config.{only.key} {flat[only.key]!r}: leave '
                    f'it at {neutral!r}, or choose {" or ".join(", ".join(only.choices).rsplit(", ", 1))}.'
                )


def without_idle(config: Config, keys: Keys) -> Config:
    """Makes a configuration of the same run that claims nothing: keys that have no effect get their defaults.

    Args:
      config: a valid configuration.
      keys: those there are.

    Returns:
      A copy in which no key refers to another.
    """
    flat, settled = flatten(config), config.copy_and_resolve_references()
    for name in idle(flat, keys):
        section, last = _section(settled, name)
        section[last] = _neutral(name, flat, keys)
    return settled


def instead_of(name: str, retired: Retired) -> str:
    """Says in a sentence what to write instead of a key that has retired."""
    pairs = ', '.join(f'{new!r} for {old!r}' for old, new in retired.values.items())
    return f'config.{name} has become config.{retired.becomes}: write {pairs}.'


def brought_up_to_date(stored: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """Says what a run of an older version would have been configured with today.

    Args:
      stored: its configuration, nested, as JSON gives it.
      keys: those there are.

    Returns:
      Values by dotted key: keys that have retired are translated, and those that came later added.
    """
    flat = flatten(stored)
    for name, retired in keys.retired.items():
        for old, new in retired.values.items():
            if name in flat and flat[name] == old:
                del flat[name]
                flat.setdefault(retired.becomes, new)
    later = (key for key in keys.known.values() if key.since != FIRST_VERSION)
    return {key.name: _as_stored(key.default) if key.before is None else key.before for key in later} | flat


def differing(before: Mapping[str, Any], after: Mapping[str, Any], keys: Keys) -> list[str]:
    """Lists the keys by which two configurations are not the same run.

    Args:
      before: values by dotted key.
      after: values by dotted key.
      keys: those there are.

    Returns:
      Names of the keys whose values differ, or that only one of the two has, apart from free ones and from those that
      have no effect in either; in alphabetic order.
    """
    free = {key.name for key in keys.known.values() if key.free} | (idle(before, keys).keys() & idle(after, keys))
    absent = object()
    names = sorted((before.keys() | after.keys()) - free)
    return [name for name in names if before.get(name, absent) != after.get(name, absent)]


def changed_keys(old: Mapping[str, Any], new: Config, keys: Keys, *, but: Container[str] = ()) -> list[str]:
    """Lists what differs between the configuration of a workdir and a new one, apart from free and idle keys.

    Args:
      old: the stored configuration, nested, as JSON gives it.
      new: the configuration of this run.
      keys: those there are.
      but: names of keys that are left out, too.

    Returns:
      One text `key: old -> new` for each difference.
    """
    before, after, absent = brought_up_to_date(old, keys), flatten(new), 'absent'
    return [
        f'{name}: {before.get(name, absent)!r} -> {after.get(name, absent)!r}'
        for name in differing(before, after, keys)
        if name not in but
    ]


def raised_keys(old: Mapping[str, Any], new: Config, keys: Keys) -> dict[str, tuple[Any, Any]]:
    """Finds what training in a workdir may go on with: greater values of keys that grow.

    Args:
      old: the stored configuration, nested, as JSON gives it.
      new: the configuration of this run.
      keys: those there are.

    Returns:
      The value before and now by key.
    """
    before, after = brought_up_to_date(old, keys), flatten(new)
    values = {key.name: (before.get(key.name), after[key.name]) for key in keys.known.values() if key.grows}
    return {name: (was, now) for name, (was, now) in values.items() if isinstance(was, int | float) and now > was}
