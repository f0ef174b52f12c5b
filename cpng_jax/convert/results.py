"""What a conversion reaches, by the number of time steps: a table and a curve, beside the ANN."""

import pathlib
from collections.abc import Sequence
from typing import Any

from cpng_jax.runtime import tables
from cpng_jax.runtime.plots import ACCENT, GREY, new_figure, save, tidy

Row = dict[str, Any]

_NOTE = (
    'Test accuracy of the ANN, a multiply-add for each weight and input, and of the networks that spike in its place: '
    'by T time steps, with the share of neurons and steps that spike, the additions that spikes make for an image, in '
    'millions, and the seconds that the conversion took.'
)


def write(rows: Sequence[Row], ann: Row, folder: pathlib.Path, *, title: str) -> list[pathlib.Path]:
    """Writes the results of a conversion.

    Args:
      rows: from `convert`, one for each number of time steps.
      ann: `test_accuracy` and `multiply_adds` of the ANN.
      folder: of the files.
      title: of the table.

    Returns:
      `convert.csv`, `convert.md` and `convert.png`.
    """
    shown = [
        {'T': 'ANN', **_columns(ann['test_accuracy']), 'operations, M': ann['multiply_adds'] / 1e6, 'seconds': None},
        *(
            {
                'T': str(row['time_steps']),
                **_columns(row['test_accuracy'], ann['test_accuracy'], row['firing_rate']),
                'operations, M': row['operations'] / 1e6,
                'seconds': float(row['seconds']),
            }
            for row in rows
        ),
    ]
    written = tables.write(folder / 'convert', shown, title=title, note=_NOTE)
    return [*written, _draw(rows, ann, folder / 'convert.png', title)]


def _columns(accuracy: float, of_ann: float | None = None, firing_rate: float | None = None) -> dict[str, tables.Value]:
    return {
        'accuracy, %': f'{100 * accuracy:.2f}',
        'less the ANN, points': None if of_ann is None else f'{100 * (accuracy - of_ann):+.2f}',
        'firing rate, %': None if firing_rate is None else f'{100 * firing_rate:.2f}',
    }


def _draw(rows: Sequence[Row], ann: Row, path: pathlib.Path, title: str) -> pathlib.Path:
    """The accuracy against T, with that of the ANN as a line."""
    from matplotlib.ticker import NullLocator

    figure = new_figure(6.4, 4.2)
    axes, steps = figure.subplots(), [row['time_steps'] for row in rows]
    axes.plot(steps, [100 * row['test_accuracy'] for row in rows], color=ACCENT, marker='o', label='spiking')
    axes.axhline(
        100 * ann['test_accuracy'],
        color=GREY,
        linestyle='--',
        linewidth=1,
        label=f'ANN: {100 * ann["test_accuracy"]:.2f}',
    )
    axes.set_xscale('log', base=2)
    axes.set_xticks(steps, [str(each) for each in steps])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel('time steps T')
    axes.set_ylabel('test accuracy [%]')
    axes.set_title(title)
    axes.legend(frameon=False, loc='best')
    tidy(axes)
    return save(figure, path)
