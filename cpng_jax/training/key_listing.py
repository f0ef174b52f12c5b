"""Keys as a table for the terminal, beside what a configuration sets them to: `train.py --mode=keys`."""

import io
import shutil
from collections.abc import Mapping
from typing import Any

import rich.box
import rich.console
import rich.table

from cpng_jax.models import registry
from cpng_jax.runtime.command import tuples
from cpng_jax.runtime.config import Config, flatten
from cpng_jax.runtime.errors import UserError, nearest
from cpng_jax.training.keys import FREE, described, table


def listing(match: str, name: str, config: Config) -> str:
    """Shows keys with their defaults, and what a configuration has instead.

    Args:
      match: text that the names of the keys contain; '' for all.
      name: of the configuration.
      config: the configuration, valid or not.

    Returns:
      The table, as wide as the terminal.

    Raises:
      UserError: no key contains the text.
    """
    rows = [row for row in _rows(name, flatten(config)) if match in row['key'].removesuffix(' *')]
    if not rows:
        known = [*table().known, *flatten(config)]
        raise UserError(f'--match is {match!r}, which no key contains; the nearest is {nearest(match, known)!r}.')
    lines = rich.table.Table(*rows[0], box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for column in lines.columns[:2] + lines.columns[-2:]:
        column.no_wrap = True
    for row in rows:
        lines.add_row(*{**row, 'used by': row['used by'].replace(', ', '\n')}.values())
    text = io.StringIO()
    width = max(shutil.get_terminal_size((160, 0)).columns, 120)
    rich.console.Console(file=text, width=width, markup=False, highlight=False).print(lines)
    shown = '\n'.join(line.rstrip() for line in text.getvalue().splitlines()).strip('\n')
    return f'{shown}\n\n{FREE} Under {name} is what that configuration has in place of a default.'


def _rows(name: str, values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each key of the table, and after those of `model` each field of a network that the configuration has as a key."""
    known, rows = table().known, []
    for key in known.values():
        default = values.get(key.follows) if key.follows else key.default
        value = tuples(values.get(key.name))
        rows.append(_beside_default(described(key), name, '' if value == default else repr(value)))
    place = 1 + max(index for index, key in enumerate(known) if key.startswith('model.'))
    rows[place:place] = [
        _beside_default(_field(key, str(values['model.name'])), name, repr(tuples(value)))
        for key, value in values.items()
        if key not in known and key.startswith('model.')
    ]
    return rows


def _beside_default(row: dict[str, str], name: str, value: str) -> dict[str, str]:
    """A row with a column more, the third: what the configuration of that name has."""
    cells = [*row.items()]
    return dict([*cells[:2], (name, value), *cells[2:]])


def _field(key: str, network: str) -> dict[str, str]:
    """The row of a field of a network."""
    cells = dict.fromkeys(described(table().known['model.name']), '')
    range = registry.FIELD_RANGES.get(key.removeprefix('model.'))
    return cells | {'key': key, 'range': range.expected if range else '', 'meaning': f'of the network {network}'}
