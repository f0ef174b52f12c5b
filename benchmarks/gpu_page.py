"""The tables of `benchmarks.gpu`, in Markdown, from what its files say."""

from collections.abc import Callable
from typing import Any

from benchmarks import race
from benchmarks.contest import Contender, Spread
from benchmarks.memory import table

SCAN, PALLAS = 'scan', 'Pallas'
PEER = 'SpikingJelly'
COMPILED = f'{PEER}, compiled'

Row = dict[str, Any]


def _cells(row: Row, labels: tuple[str, ...], words: Callable[[Contender], str]) -> list[str]:
    """Of each side a cell; of what failed a dash."""
    return [words(Contender(**row['sides'][label])) if label in row['sides'] else '-' for label in labels]


def ratio(row: Row) -> Spread | None:
    """Compares the faster one of ours with the faster one of the peer.

    Args:
      row: from `gpu.race_of`.

    Returns:
      Seconds of ours over theirs, round by round; None where all of ours or of theirs failed.
    """
    medians = {label: Spread.of(side['seconds']).median for label, side in row['sides'].items()}
    ours = min((label for label in medians if label in (SCAN, PALLAS)), key=medians.__getitem__, default=None)
    theirs = min((label for label in medians if label in (PEER, COMPILED)), key=medians.__getitem__, default=None)
    if ours is None or theirs is None:
        return None
    return Spread.of_ratios(row['sides'][ours]['seconds'], row['sides'][theirs]['seconds'])


def _failures(rows: list[Row]) -> list[str]:
    return [f'{row["size"]}: {words}' for row in rows for words in row['failed'].values()]


def time_lines(rows: list[Row]) -> list[str]:
    """Lays out times of sides, as shares of the floor too where rows have one, and what failed."""
    lines, floors = [], 'floor_s' in rows[0]
    for row in rows:

        def words(side: Contender, floor: float | None = row.get('floor_s')) -> str:
            seconds = Spread.of(side.seconds).median
            return race.milliseconds(seconds) + (f', {seconds / floor:.2f}' if floor else '')

        found = ratio(row)
        line = [row['size'], *([race.milliseconds(row['floor_s'])] if floors else [])]
        line += _cells(row, (SCAN, PALLAS, PEER, COMPILED), words)
        lines.append([*line, race.ratio(found) if found else '-', row['equality'] or '-'])
    heading = ['size', *(['floor'] if floors else []), SCAN, PALLAS, PEER, 'compiled']
    said = []
    if floors:
        said.append(f'The floor at {rows[0]["bytes_per_s"] / 1e9:,.0f} GB/s; after a time, how often it is that.')
    return [*said, table([*heading, 'best of ours / of theirs', 'results'], lines), *_failures(rows)]


def memory_lines(rows: list[Row]) -> list[str]:
    """Lays out peaks of memory."""
    labels = (SCAN, PALLAS, PEER)
    cells = [[row['size'], *_cells(row, labels, lambda side: race.megabytes(side.peak_bytes))] for row in rows]
    measured = sorted({side['measured'] for row in rows for side in row['sides'].values()})
    return [f'Memory {"; ".join(measured)}.', table(['size', *labels], cells), *_failures(rows)]


def equal_lines(rows: list[Row]) -> list[str]:
    """Lays out whether two devices compute the same."""
    return [table(['what', 'size', 'results'], [[row['case'], row['size'], row['equality']] for row in rows])]


def input_lines(rows: list[Row]) -> list[str]:
    """Says how many images a second are prepared, and how many a training step takes."""
    (row,) = rows
    prepared = Spread.of(row['images_per_s'])
    lines = [f'{row["cores"]} cores prepare {prepared.median:,.0f} ({prepared.least:,.0f} to {prepared.most:,.0f}).']
    if row['sides']:
        fastest = min(Spread.of(side['seconds']).median for side in row['sides'].values())
        taken = row['batch'] / fastest
        share = prepared.median / taken
        lines.append(f'A step of ours, {row["size"]}, takes {taken:,.0f}: the input reaches {share:.2f} of that.')
    return [f'Images/s. {" ".join(lines)}', *_failures(rows)]


def target_lines(rows: list[Row]) -> list[str]:
    """Says how long a run took to its target."""
    (row,) = rows
    best = f'the best epoch has {max(row["accuracies"]):.2%} of the validation images'
    if row['epoch'] is None:
        return [f'`{row["command"]}`: {row["target"]:.2%} was not reached; {best}.']
    when = f'{row["target"]:.2%} after epoch {row["epoch"]}, {row["seconds"]:.1f} s from the start'
    return [f'`{row["command"]}`: {when}; {best}.']
