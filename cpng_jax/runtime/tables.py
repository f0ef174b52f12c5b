"""Tables of numbers as CSV and as Markdown."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence

from cpng_jax.runtime import files

Value = str | int | float | None
Rows = Sequence[Mapping[str, Value]]


def write(path: pathlib.Path, rows: Rows, *, title: str, note: str) -> list[pathlib.Path]:
    """Writes a table as `.csv` with every digit, and rounded as `.md`.

    Args:
      path: of the two files, without a suffix.
      rows: values by column; all have the columns of the first. None leaves a cell empty.
      title: heading of the Markdown.
      note: what the columns are.

    Returns:
      The two files.
    """
    return [
        files.replace(path.with_suffix('.csv'), to_csv(rows)),
        files.replace(path.with_suffix('.md'), f'# {title}\n\n{note}\n\n{to_markdown(rows)}'),
    ]


def to_csv(rows: Rows) -> str:
    """Formats rows as CSV with a heading, numbers with every digit."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(rows: Rows) -> str:
    """Formats rows as a Markdown table; numbers with four digits, aligned to the right."""
    columns = list(rows[0])
    numeric = [all(not isinstance(row[column], str) for row in rows) for column in columns]
    lines = [columns, ['--:' if right else ':--' for right in numeric]]
    lines += [[shown(row[column]) for column in columns] for row in rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def shown(value: Value) -> str:
    """Formats a value for a reader: a float with four digits, None as an empty text."""
    if value is None:
        return ''
    return f'{value:.4g}' if isinstance(value, float) else str(value)
