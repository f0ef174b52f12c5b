"""Results of an experiment as CSV, a row for each run, and as a Markdown table, a row for each arm."""

import pathlib
from collections.abc import Sequence

from cpng_jax.experiments.grid import Cell, Row
from cpng_jax.experiments.plan import Arm, Plan
from cpng_jax.experiments.statistics import Interval, mean_and_std, paired_difference
from cpng_jax.runtime.tables import to_csv

Finished = list[tuple[Cell, Row]]


def results_csv(finished: Finished, workdir: pathlib.Path) -> str:
    """Makes the CSV of the finished cells, a row for each.

    Args:
      finished: cells with their results.
      workdir: of the experiment; folders are relative to it.

    Returns:
      The CSV, with a heading.
    """
    rows = [
        {
            'arm': cell.arm.label,
            **cell.arm.factors,
            'seed': cell.seed,
            **row,
            'folder': str(cell.folder.relative_to(workdir)),
        }
        for cell, row in finished
    ]
    return to_csv(rows) if rows else ''


def of_arm(finished: Finished, label: str, column: str) -> dict[int, float]:
    """Values of a column of the results of an arm, by seed."""
    return {cell.seed: row[column] for cell, row in finished if cell.arm.label == label}


def difference(finished: Finished, arm: Arm, column: str = 'test_accuracy') -> Interval | None:
    """Compares an arm with its baseline, seed by seed.

    Args:
      finished: cells with their results.
      arm: to compare.
      column: of the results.

    Returns:
      The mean difference over the seeds that both have, with its interval; None where the arm has no baseline or they
      have no seed in common.
    """
    if arm.baseline in (None, arm.label):
        return None
    ours, theirs = (of_arm(finished, label, column) for label in (arm.label, arm.baseline))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    return paired_difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])


def results_markdown(plan: Plan, finished: Finished) -> str:
    """Makes the Markdown table of an experiment, a row for each arm.

    Args:
      plan: the experiment.
      finished: cells with their results.

    Returns:
      Markdown, with a heading and a paragraph about the columns.
    """
    measured = ['beta', 'scale', 'chi', 'gain']
    heading = ['arm', 'seeds', 'last accuracy, %', 'best, %', 'difference, points', 'to', *measured, 'images/s']
    lines = [_row(heading), _row(['---'] * len(heading))]
    diverged = 0
    for arm in plan.arms:
        rows = [row for cell, row in finished if cell.arm.label == arm.label]
        if not rows:
            continue
        diverged += sum(bool(row['diverged']) for row in rows)
        interval = difference(finished, arm)
        lines.append(
            _row(
                [
                    arm.label,
                    str(len(rows)),
                    spread([100 * row['test_accuracy'] for row in rows]),
                    spread([100 * row['best_accuracy'] for row in rows]),
                    '' if interval is None else points(interval),
                    arm.baseline if interval is not None else '',
                    *(spread([row[f'{what}_mean'] for row in rows]) for what in measured),
                    f'{mean_and_std([row["images_per_second"] for row in rows])[0]:.0f}',
                ]
            )
        )
    by_validation = any(row['validation_accuracy'] is not None for _, row in finished)
    split = 'a validation split' if by_validation else 'the test split'
    notes = [
        f'# {plan.title} ({plan.source})',
        '',
        f'Test accuracy of the last epoch and of the best, which was chosen on {split}: mean and standard '
        'deviation over seeds. Difference of the last to the arm named, seed by seed, with a 95 % bootstrap interval, '
        'which of few seeds is too short. Beta, scale (the height of the surrogate gradient), chi '
        'and gain (its geometric mean): over the layers, at the end.',
    ]
    if diverged:
        notes += ['', f'{diverged} runs diverged; their accuracy is that of their last whole epoch.']
    return '\n'.join([*notes, '', *lines, ''])


def points(interval: Interval) -> str:
    """Formats a difference of accuracies in percentage points."""
    if interval.count < 2:
        return f'{100 * interval.mean:+.2f}'
    return f'{100 * interval.mean:+.2f} ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})'


def spread(values: Sequence[float]) -> str:
    """Formats mean and standard deviation of a sample; of one value that alone."""
    mean, std = mean_and_std(values)
    return f'{mean:.2f}' if len(values) < 2 else f'{mean:.2f} ± {std:.2f}'


def _row(cells: Sequence[str | None]) -> str:
    return '| ' + ' | '.join(cell or '' for cell in cells) + ' |'
