"""Options by name, with the values they may have: what a rule's file declares, and a configuration checks."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Range(NamedTuple):
    """Which values are accepted.

    Attributes:
      accepts: tells whether a value is.
      expected: in words what would be, as in 'expected an integer of at least 1'.
      names: those that a misspelt value may have meant.
    """

    accepts: Callable[[Any], bool]
    expected: str
    names: tuple[str, ...] = ()


class Option(NamedTuple):
    """An option of a rule: the key `cpng.NAME` of a configuration.

    Attributes:
      name: of the key, without its section.
      default: what it is if nobody says.
      range: the values it may have.
      meaning: a line for whoever sets it.
      since: the version of the package that added it.
    """

    name: str
    default: Any
    range: Range
    meaning: str
    since: str


def integer(low: int) -> Range:
    """Integers of at least `low`."""
    return Range(lambda value: type(value) is int and value >= low, f'an integer of at least {low}')


def number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Range:
    """Finite numbers from `low` to `high`, without an end that is open."""

    def accepts(value: Any) -> bool:
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return (value > low if open_low else value >= low) and (value < high if open_high else value <= high)

    lower = f'{"above" if open_low else "of at least"} {low:g}'
    upper = '' if math.isinf(high) else f' and {"below" if open_high else "at most"} {high:g}'
    return Range(accepts, f'a number {lower}{upper}')


def choice(*names: str) -> Range:
    """One of some names."""
    return Range(lambda value: value in names, 'one of ' + ', '.join(names), names)


BOOLEAN = Range(lambda value: type(value) is bool, 'True or False')
TEXT = Range(lambda value: isinstance(value, str) and '\0' not in value, 'a text')
