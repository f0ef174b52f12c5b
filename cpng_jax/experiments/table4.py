"""Table 4 over seeds: each system, directly trained or converted, by the number of time steps that it takes."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cpng_jax.convert import convert
from cpng_jax.experiments.grid import Cell, conversion_of
from cpng_jax.experiments.plan import Plan
from cpng_jax.experiments.statistics import mean_and_std, paired_difference
from cpng_jax.experiments.systems import BASELINE
from cpng_jax.experiments.tables import Finished, points, spread
from cpng_jax.nn.kinds import KINDS
from cpng_jax.runtime import files, metrics, tables
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.plots import ACCENT, GREY, new_figure, save, tidy
from cpng_jax.runtime.workdir import write_json
from cpng_jax.training.activity import activity
from cpng_jax.training.evaluate import restore
from cpng_jax.training.setup import build

_MEASURED = 'systems.json'
Row = dict[str, Any]


def measure(plan: Plan, cell: Cell, say: Callable[[str], None]) -> None:
    """Measures the system of a finished cell, and what its ANN is converted to; once.

    Args:
      plan: `systems.table4`, whose `conversion_steps` say at how many time steps.
      cell: finished.
      say: told of what is being done.
    """
    path, result = cell.folder / _MEASURED, cell.result()
    assert result is not None
    rows = _read(path)
    known = {(row['system'], row['time_steps']) for row in rows}
    spiking = KINDS[cell.config.neuron.kind].spikes
    own = (cell.arm.label, cell.config.model.time_steps if spiking else None)
    if own not in known:
        row = dict(zip(('system', 'time_steps'), own, strict=True))
        row |= {'test_accuracy': result['test_accuracy'], 'conversion_seconds': None}
        rows.append(row | _activity(cell))
        write_json(path, rows)
    for method in cell.arm.conversions:
        missing = [steps for steps in plan.conversion_steps if (_NAMES[method], steps) not in known]
        if not missing or result['diverged']:
            continue
        options = convert.Options(method)
        ann = convert.read(cell.folder, options)
        for steps in missing:
            say(f'{cell.arm.label}, seed {cell.seed}: {method} at T = {steps}')
            found = convert.convert(ann, options, steps, conversion_of(cell.folder, method, steps), lambda line: None)
            row = {'system': _NAMES[method], 'time_steps': steps, 'test_accuracy': found['test_accuracy']}
            row |= {'conversion_seconds': found['seconds']}
            rows.append(row | {name: found[name] for name in ('firing_rate', 'operations')})
            write_json(path, rows)


_NAMES = {
    'none': 'ANN, thresholds at the maximum',
    'calibration_light': 'Li et al., light',
    'calibration_advanced': 'Li et al., advanced',
    'qcfs': 'Bu et al., QCFS',
}


def _read(path: pathlib.Path) -> list[Row]:
    try:
        return json.loads(path.read_text()) if path.is_file() else []
    except ValueError as error:
        raise UserError(f'{path} is damaged ({error}): remove it, and the system is measured again.') from error


def _activity(cell: Cell) -> Row:
    """Firing rate, and operations of an image: multiply-adds of an ANN, additions by spikes of others."""
    setup = build(cell.config)
    state = restore(setup, cell.folder)
    if state is None:
        return {'firing_rate': None, 'operations': None}
    found = activity(setup, state)
    operations = found.multiply_adds if found.operations is None else found.operations
    return {'firing_rate': found.firing_rate, 'operations': operations}


def rows_of(cells: Sequence[Cell]) -> list[Row]:
    """Collects what has been measured.

    Args:
      cells: of the experiment.

    Returns:
      A row for each system, number of time steps and seed.
    """
    rows = []
    for cell in cells:
        more = {'training_seconds': _seconds(cell.folder), 'seed': cell.seed, 'folder': str(cell.folder)}
        rows += [{**row, **more} for row in _read(cell.folder / _MEASURED)]
    return rows


def _seconds(folder: pathlib.Path) -> float:
    """How long the training took: that of a typical epoch, so that a pause does not count, times their number."""
    epochs = metrics.read_epochs(folder)
    return len(epochs) * float(np.median([row['wall_seconds'] for row in epochs])) if epochs else float('nan')


def systems_csv(rows: Sequence[Row], workdir: pathlib.Path) -> str:
    """Makes the CSV, a line for each system, number of time steps and seed.

    Args:
      rows: from `rows_of`.
      workdir: of the experiment; folders are relative to it.

    Returns:
      The CSV.
    """
    own = [{**row, 'folder': str(pathlib.Path(row['folder']).relative_to(workdir))} for row in rows]
    return tables.to_csv(own) if own else ''


def systems_markdown(plan: Plan, rows: Sequence[Row]) -> str:
    """Makes the table, a line for each system and number of time steps.

    Args:
      plan: the experiment.
      rows: from `rows_of`.

    Returns:
      Markdown, with a heading and a paragraph about the columns.
    """
    note = (
        'Test accuracy of the last epoch, mean and standard deviation over seeds, by the T time steps that an answer '
        f'takes, and the difference to {BASELINE}, seed by seed, with a 95 % bootstrap interval, which of few seeds is '
        'too short. Firing: share of neurons and steps that spike. Operations for an image, in millions: additions '
        'that spikes make, of an ANN multiply-adds. Seconds of the training and, after that, of the conversion, on the '
        'machine at hand; of Diet-SNN those of its ANN come first.'
    )
    lines = [
        {
            'system': system,
            'T': '' if steps is None else str(steps),
            'seeds': str(len(alike)),
            'accuracy, %': spread([100 * row['test_accuracy'] for row in alike]),
            f'less {BASELINE}, points': _difference(alike, rows),
            'firing, %': _mean(alike, 'firing_rate', 100, 1),
            'operations, M': _mean(alike, 'operations', 1e-6, 2),
            'training, s': _mean(alike, 'training_seconds', 1, 0),
            'conversion, s': _mean(alike, 'conversion_seconds', 1, 0),
        }
        for (system, steps), alike in _by_system(rows).items()
    ]
    return f'# {plan.title} ({plan.source})\n\n{note}\n\n{tables.to_markdown(lines) if lines else ""}'


def _by_system(rows: Sequence[Row]) -> dict[tuple[str, int | None], list[Row]]:
    found: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        found.setdefault((row['system'], row['time_steps']), []).append(row)
    order = list(dict.fromkeys(system for system, _ in found))
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1] or 0)))


def _difference(alike: Sequence[Row], rows: Sequence[Row]) -> str:
    theirs = {row['seed']: row['test_accuracy'] for row in rows if row['system'] == BASELINE}
    ours = {row['seed']: row['test_accuracy'] for row in alike}
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds or alike[0]['system'] == BASELINE:
        return ''
    return points(paired_difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]))


def _mean(rows: Sequence[Row], column: str, factor: float, digits: int) -> str:
    values = [factor * row[column] for row in rows if row[column] is not None]
    return f'{np.mean(values):.{digits}f}' if values else ''


def draw(plan: Plan, rows: Sequence[Row], path: pathlib.Path) -> pathlib.Path:
    """Draws accuracy against the number of time steps: curves of conversions, dots of what was trained directly.

    Args:
      plan: the experiment.
      rows: from `rows_of`.
      path: of the PNG.

    Returns:
      The path.
    """
    from matplotlib import colormaps
    from matplotlib.ticker import NullLocator

    figure = new_figure(8.4, 4.8)
    axes, found = figure.subplots(), _by_system(rows)
    means = {key: mean_and_std([100 * row['test_accuracy'] for row in alike])[0] for key, alike in found.items()}
    steps_of: dict[str, list[int]] = {}
    for system, steps in found:
        steps_of.setdefault(system, []).extend([] if steps is None else [steps])
    curves = [system for system, steps in steps_of.items() if len(steps) > 1]
    dots = [system for system, steps in steps_of.items() if len(steps) == 1]
    levels = [system for system, steps in steps_of.items() if not steps]
    for system, hue in zip(curves, _shares(len(curves)), strict=True):
        values, colour = [means[system, each] for each in steps_of[system]], colormaps['viridis'](0.9 * hue)
        axes.plot(steps_of[system], values, color=colour, marker='o', label=system, alpha=0.8)
    for index, (system, share) in enumerate(zip(dots, _shares(len(dots)), strict=True)):
        (steps,) = steps_of[system]
        place = steps * 2 ** (0.4 * (share - 0.5))  # beside each other, or they would cover each other
        colour, mark = ACCENT if system == BASELINE else colormaps['Dark2'](index % 8), 'Ds^vP*X<'[index % 8]
        axes.plot(place, means[system, steps], color=colour, marker=mark, linestyle='', label=system)
    for index, system in enumerate(levels):
        style = {'color': GREY, 'linewidth': 1, 'linestyle': ('--', ':', '-.')[index % 3]}
        axes.axhline(means[system, None], label=f'{system}: {means[system, None]:.1f}', **style)
    ticks = sorted({steps for _, steps in found if steps is not None})
    axes.set_xscale('log', base=2)
    axes.set_xticks(ticks, [str(each) for each in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel('time steps T')
    axes.set_ylabel('test accuracy, last epoch [%]')
    seeds = len({row['seed'] for row in rows})
    axes.set_title(f'{plan.title} ({plan.source}); {seeds} seed{"s" if seeds != 1 else ""}', fontsize=11)
    figure.legend(frameon=False, loc='outside right upper')
    tidy(axes)
    return save(figure, path)


def _shares(count: int) -> list[float]:
    """As many numbers from 0 to 1, evenly."""
    return [index / max(1, count - 1) for index in range(count)]


def write(name: str, plan: Plan, finished: Finished, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes what has been measured, as CSV and Markdown.

    Args:
      name: of the files.
      plan: the experiment.
      finished: its cells with their results.
      folder: of the experiment.

    Returns:
      The two files.
    """
    rows = rows_of([cell for cell, _ in finished])
    return [
        files.replace(folder / f'{name}.csv', systems_csv(rows, folder)),
        files.replace(folder / f'{name}.md', systems_markdown(plan, rows)),
    ]
