"""What people read of the cards of the zoo: a page for each, and the columns of the README's table."""

import re
from collections.abc import Mapping
from typing import Any

from cpng_jax.runtime import tables
from cpng_jax.runtime.errors import UserError

Card = Mapping[str, Any]

BEGIN, END = '<!-- zoo: python -m cpng_jax.training.zoo --table=README.md -->', '<!-- /zoo -->'
_CONFIGURATION = re.compile(r'configs/(\w+)\.py')
_ACCURACY, _WEIGHTS = 'here', 'weights'


def page(card: Card) -> str:
    """Writes the page of an entry, `README.md` of its folder."""
    name, commands = card['name'], card['commands']
    reached = [f'**{split} accuracy {accuracy(card[split])}**' for split in ('test', 'validation') if split in card]
    rows = [{'': title, ' ': text} for title, text in _facts(card).items()]
    return f"""# {name}

{_sentence(card)}: {', '.join(reached)}.

{tables.to_markdown(rows)}
Use, with jax, flax, optax, numpy and jaxtyping alone; `images` are uint8 {_shape(card)}:

```python
import cpng_jax

module, variables = cpng_jax.load({name!r})
card = cpng_jax.card({name!r})
logits = module.apply(variables, cpng_jax.network_input(images, card['mean'], card['std']))  # [T, B, classes]
classes = logits.mean(axis=0).argmax(axis=-1)
```

The digits above once more, and the training:

    {commands['evaluate']}
    {commands['train']}

Made of [card.json](card.json), which has the whole configuration and all versions. [docs/zoo.md](../../docs/zoo.md)
tells more.
"""


def accuracy(result: Mapping[str, Any]) -> str:
    """Writes an accuracy with what it counts, such as 96.11 % (346 of 360)."""
    return f'{result["accuracy"]:.2%} ({result["correct"]:,} of {result["examples"]:,})'.replace('%', ' %')


def _sentence(card: Card) -> str:
    overrides = f' with {", ".join(f"`{flag}`" for flag in card["overrides"])}' if card['overrides'] else ''
    return f'Weights of `configs/{card["configuration"]}.py`{overrides}, seed {card["seed"]}'


def _facts(card: Card) -> dict[str, str]:
    """What is known of an entry, by title."""
    environment = card['environments'][-1] if card['environments'] else {}
    packages = environment.get('packages') or {}
    versions = [
        f'{name} {packages[name]}' for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy') if packages.get(name)
    ]
    losses = [f'{card[split]["loss"]:.4f} ({split})' for split in ('test', 'validation') if split in card]
    machine = [environment.get('processor'), environment.get('devices')]
    earlier = len(card['environments']) - 1
    return {
        'data': f'{card["data"]}: {_examples(card)}; {_shape(card)}, {len(card["classes"])} classes',
        'loss, nats': ', '.join(losses),
        'weights': card['weights'],
        'stored': f'{card["parameters"]:,} parameters, {card["dtype"]}, {card["bytes"]:,} bytes',
        'sha256': f'`{card["sha256"]}`',
        'training': f'{card["epochs"]} epochs, {duration(card["seconds"])}',
        'machine': ', '.join(filter(None, machine)) or 'unknown',
        'commit': environment.get('commit') or 'unknown',
        'versions': ', '.join([f'Python {environment.get("python", "unknown")}', *versions])
        + (f'; the run was begun with others, {earlier} in `card.json`' if earlier > 0 else ''),
    }


def _examples(card: Card) -> str:
    counts = card['examples']
    splits = ', '.join(f'{counts[split]:,} for {split}' for split in counts)
    return splits.replace('for train', 'for training') + ('' if 'validation' in counts else ', no validation split')


def _shape(card: Card) -> str:
    """The shape of an image or a recording, such as 28 x 28 x 1."""
    return ' x '.join(map(str, card['image_shape']))


def duration(seconds: float | None) -> str:
    """Writes a time for a reader: seconds below two minutes, else minutes, or hours and minutes."""
    if seconds is None:
        return 'for an unknown time'
    if seconds < 120:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 120 else f'{minutes // 60} h {minutes % 60} min'


def with_table(text: str, cards: Mapping[str, Card]) -> str:
    """Fills the columns of a page's table that are made from the zoo.

    The table stands between two comments. Each of its rows names a configuration, such as `configs/digits.py`; in the
    column `here` it gets the test accuracy of the entry of that name, in `weights` a link to its folder. Other columns
    are left as they are.

    Args:
      text: of the page.
      cards: of the zoo, by name.

    Returns:
      The text with the table of today.

    Raises:
      UserError: there is no such table, or an entry has no row in it.
    """
    before, begin, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    lines = [line for line in table.splitlines() if line.startswith('|')]
    columns = _cells(lines[0]) if lines else []
    if not (begin and end) or not {_ACCURACY, _WEIGHTS} <= {*columns}:
        raise UserError(
            f'expected a table with the columns {_ACCURACY} and {_WEIGHTS} between the lines {BEGIN} and {END}.'
        )
    rows, missing = [], dict(cards)
    for line in lines[2:]:
        cells = dict(zip(columns, _cells(line), strict=True))
        found = _CONFIGURATION.search(line)
        card = missing.pop(found[1], None) if found else None
        cells[_ACCURACY] = accuracy(card['test']) if card else '-'
        cells[_WEIGHTS] = f'[zoo/{card["name"]}](zoo/{card["name"]}/README.md)' if card else '-'
        rows.append(f'| {" | ".join(cells.values())} |')
    if missing:
        raise UserError(f'the table has no row with configs/{next(iter(missing))}.py, which the zoo has an entry of.')
    return '\n'.join([before + begin, '', *lines[:2], *rows, '', end + after])


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip('|').split('|')]
