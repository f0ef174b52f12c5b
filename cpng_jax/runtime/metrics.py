"""The metrics of a run: rows in `metrics.jsonl`, which is the record of it."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cpng_jax.runtime import files
from cpng_jax.runtime.errors import UserError

FILE_NAME = 'metrics.jsonl'


class MetricsWriter:
    """Appends rows to the `metrics.jsonl` of a workdir; use it in a `with`."""

    def __init__(self, workdir: str | os.PathLike[str], *, first_step: int = 0) -> None:
        """Opens the file.

        Rows of later steps than `first_step` stem from work that was lost when a run was killed and will be done
        again: they are dropped, and so is a last line that was being written then.

        Args:
          workdir: folder of the run.
          first_step: the step that training goes on from.

        Raises:
          UserError: a row cannot be read.
        """
        path = pathlib.Path(workdir, FILE_NAME)
        if path.exists():
            _keep_until(path, first_step)
        self._file = path.open('a')

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends a row, which others can read from then on.

        Args:
          event: the kind of row, 'step', 'epoch', 'test', 'memory' or 'start'.
          step: the training step it belongs to.
          values: numbers, texts, lists, or mappings of them; a number that is not finite is written as null.
        """
        self._file.write(json.dumps({'event': event, 'step': step, **_plain(values)}) + '\n')
        self._file.flush()

    def flush(self) -> None:
        """Nothing: each row has been."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> 'MetricsWriter':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the rows of a run.

    Args:
      workdir: folder of the run.

    Returns:
      The rows in the order they were written; none when there is no file. A last line that was cut off is left out.

    Raises:
      UserError: another line is not a row; the message names it.
    """
    path = pathlib.Path(workdir, FILE_NAME)
    if not path.exists():
        return []
    return [row for _, row in _whole_rows(path)]


def read_epochs(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the rows of a run whose event is 'epoch'."""
    return [row for row in read(workdir) if row['event'] == 'epoch']


def read_test(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Reads the latest row whose event is 'test': what a run with a validation split reaches on the test split.

    Args:
      workdir: folder of the run.

    Returns:
      The row, with `test_accuracy` and `test_loss` of the last epoch, `epoch`, and `best_test_accuracy` and
      `best_test_loss` of `best_epoch`, which was chosen on the validation split; None where it has not ended, or has
      no such split.
    """
    return next((row for row in reversed(read(workdir)) if row['event'] == 'test'), None)


def rated_by(row: Mapping[str, Any]) -> str:
    """The split that the row of an epoch has accuracy and loss of, and the best is chosen on: test or validation."""
    return 'validation' if 'validation_accuracy' in row else 'test'


def best_epoch(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the best epoch by the accuracy on the split it is chosen on, of equals the later; of at least one."""
    return max(rows, key=lambda row: (row[f'{rated_by(row)}_accuracy'], row['epoch']))


def typical_speed(rows: list[dict[str, Any]]) -> float:
    """Median images per second over the epochs but the first, which warms up; of at least one row."""
    return float(np.median([row['images_per_second'] for row in rows[1:] or rows]))


def _whole_rows(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines and the rows in them, without a last line that was cut off."""
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append((line + b'\n', _parse(line)))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f'{path}, line {number} is not a row ({error}): mend or delete that line.') from error
    return rows


def _parse(line: bytes) -> dict[str, Any]:
    """Reads a row; anything else, bytes that are no text included, is a ValueError."""
    row = json.loads(line)
    if not (isinstance(row, dict) and isinstance(row.get('event'), str) and isinstance(row.get('step'), int)):
        raise ValueError('expected an object with event and step')
    return row


def _keep_until(path: pathlib.Path, last_step: int) -> None:
    """Drops the rows of later steps, in one go."""
    kept = b''.join(line for line, row in _whole_rows(path) if row['step'] <= last_step)
    if kept == path.read_bytes():
        return
    files.replace(path, kept)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, 'item'):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
