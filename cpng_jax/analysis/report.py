"""The report: one HTML page of everything in a workdir, that of a run or of experiments."""

import csv
import io
import json
import pathlib
from typing import Any

import numpy as np

from cpng_jax.analysis import html
from cpng_jax.analysis.run import Run
from cpng_jax.runtime import files, metrics, plots, tables
from cpng_jax.runtime.config import Config, defaults, flatten
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import keys

# Headings of pictures without a Markdown table, which would bring its own.
_HEADINGS = {'beta': 'Final β', 'chi': 'χ over the epochs', 'gain': 'Gain over the epochs'}


def analyse(run: Run) -> list[pathlib.Path]:
    """Writes the report of a workdir.

    Args:
      run: its workdir holds a run, or the results of `python -m cpng_jax.experiments`.

    Returns:
      `report.html`.

    Raises:
      UserError: there is neither, no epoch has ended yet, or matplotlib is missing.
    """
    if (run.workdir / 'config.json').exists():
        title, parts = f'{run.config.model.name} on {run.config.data.name}: {run.workdir.name}', _of_run(run)
    elif experiments := _experiments(run.workdir):
        title = f'Experiments: {run.workdir.name}'
        parts = [_of_experiment(path) for path in experiments]
    else:
        raise UserError(f'There is nothing to report in {run.workdir}: expected the folder of a run or of experiments.')
    return [files.replace(run.folder / 'report.html', html.document(title, ''.join(parts)))]


def _of_run(run: Run) -> list[str]:
    curves = plots.to_png(plots.accuracy_and_loss(run.epochs, test=metrics.read_test(run.workdir), stacked=True))
    return [
        html.facts(_facts(run)),
        html.section('Accuracy and loss', html.picture(curves, 'accuracy and loss')),
        *_analyses(run.workdir),
        html.section('Epochs', _epochs(run.epochs)),
        _config(run.config),
        _environment(run.workdir),
    ]


def _facts(run: Run) -> dict[str, str]:
    rows = run.epochs
    last, best, split = rows[-1], metrics.best_epoch(rows), metrics.rated_by(rows[-1])
    return {
        f'{split} accuracy, last epoch': f'{last[f"{split}_accuracy"]:.2%}',
        f'best on {split}, epoch {best["epoch"]}': f'{best[f"{split}_accuracy"]:.2%}',
        **_tested(run.workdir),
        'epochs': f'{last["epoch"]} of {run.config.epochs}',
        'training speed': f'{metrics.typical_speed(rows):,.0f} images/s',
        **(_of_spikes(run, len(last['beta'])) if 'beta' in last else {'neurons': f'{run.config.neuron.kind}, an ANN'}),
    }


def _of_spikes(run: Run, layers: int) -> dict[str, str]:
    return {
        'spiking layers': str(layers),
        'surrogate gradients': f'{run.config.cpng.rule}, every {run.config.cpng.every}' if run.sets_beta else 'fixed',
    }


def _tested(workdir: pathlib.Path) -> dict[str, str]:
    """What a run with a validation split reached on the test split, which is measured at its end alone."""
    test = metrics.read_test(workdir)
    if test is None:
        return {}
    return {
        f'test accuracy, epoch {test["epoch"]}': f'{test["test_accuracy"]:.2%}',
        f'test accuracy, epoch {test["best_epoch"]}, chosen on validation': f'{test["best_test_accuracy"]:.2%}',
    }


def _analyses(workdir: pathlib.Path) -> list[str]:
    """A section for each picture or table in the workdir; `analysis/NAME.png` replaces `plots/NAME.png`."""
    drawn = {path.stem: path for folder in ('plots', 'analysis') for path in sorted((workdir / folder).glob('*.png'))}
    drawn.pop('accuracy_and_loss', None)  # the page has it already, one panel below the other
    written = {path.stem: path for path in sorted((workdir / 'analysis').glob('*.md'))}
    sections = []
    for name in sorted({*drawn, *written}):
        drawing = html.picture_file(drawn[name]) if name in drawn else ''
        if name in written:
            sections.append(f'<section>\n{html.markdown(written[name].read_text("utf-8"), drawing)}</section>\n')
        else:
            sections.append(html.section(_HEADINGS.get(name, name.replace('_', ' ').capitalize()), drawing))
    return sections


def _epochs(rows: list[dict[str, Any]]) -> str:
    split = metrics.rated_by(rows[-1])
    spiking = 'beta' in rows[-1]
    columns = [
        *('epoch', 'train accuracy, %', f'{split} accuracy, %', 'train loss', f'{split} loss', 'learning rate'),
        *(('β median', 'scale median', 'χ median', 'gain median') if spiking else ()),
        'images/s',
    ]
    lines = [
        (
            row['epoch'],
            f'{row["train_accuracy"]:.2%}'[:-1],
            f'{row[f"{split}_accuracy"]:.2%}'[:-1],
            row['train_loss'],
            row[f'{split}_loss'],
            row['learning_rate'],
            *(_medians(row) if spiking else ()),
            round(row['images_per_second']),
        )
        for row in rows
    ]
    return html.table(columns, lines)


def _medians(row: dict[str, Any]) -> list[float]:
    """Medians over the layers of beta, scale, chi and gain, in an epoch."""
    middle = lambda values: float(np.median([np.nan if value is None else value for value in values] or [np.nan]))
    return [
        middle(row['beta'].values()),
        middle(row.get('scale', {}).values()),  # of older runs nothing is known
        middle(row['chi'].values()),
        middle([gain for gain in row.get('gain', {}).values() if gain is not None]),  # silent layers have none
    ]


def _config(config: Config) -> str:
    """Values that differ from configs/base.py, and, folded, every value."""
    values = {key: json.dumps(value) for key, value in flatten(config).items()}
    everything = html.folded('every value', html.table(['key', 'value'], sorted(values.items())))
    base = {key: json.dumps(value) for key, value in flatten(defaults(keys.table())).items()}
    changed = [(key, value, base.get(key, '')) for key, value in sorted(values.items()) if base.get(key) != value]
    heading = ['key', 'value', 'configs/base.py']
    return html.section('Configuration', html.table(heading, changed), everything)


def _environment(workdir: pathlib.Path) -> str:
    """Versions and devices of the last time that the run was started or resumed."""
    path = workdir / 'environment.json'
    if not path.is_file():
        return ''
    now = json.loads(path.read_text())[-1]
    rows = [(name, value) for name, value in now.items() if isinstance(value, str)]
    rows += [(name, version or 'not installed') for name, version in now['packages'].items()]
    return html.section('Environment', html.table(['', ''], rows))


def _experiments(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The tables of experiments in a workdir: Markdown that has a CSV beside it."""
    return [path for path in sorted(workdir.glob('*.md')) if path.with_suffix('.csv').is_file()]


def _of_experiment(path: pathlib.Path) -> str:
    drawing = path.with_suffix('.png')
    parts = [html.markdown(path.read_text('utf-8'), html.picture_file(drawing) if drawing.is_file() else '')]
    heading, *rows = [*csv.reader(io.StringIO(path.with_suffix('.csv').read_text('utf-8')))] or [[]]
    if rows:
        numbers = [[_number(value) for value in row] for row in rows]
        parts.append(html.folded(f'each of the {len(rows)} runs', html.table(heading, numbers)))
    return f'<section>\n{"".join(parts)}</section>\n'


def _number(text: str) -> tables.Value:
    """A decimal fraction as a float, so that few of its digits are shown; any other text as it is."""
    try:
        return float(text) if '.' in text else text
    except ValueError:
        return text
