"""The plots of a run: accuracy and loss, chi (Fig. 3) and gain over the epochs, final beta (Fig. 4); and helpers."""

import functools
import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cpng_jax.runtime import files, metrics
from cpng_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]

QUIET, ACCENT, GREY = '#8a9bb0', '#c2410c', '#666666'
CHI_TITLE = 'χ, the share of membrane potentials in the effective domain, by layer'
GAIN_TITLE = 'Gain of the gradient by layer: at 1 it neither grows nor vanishes'
_DEPTH_COLOURS = 'viridis'
# With more bars, their names would run into each other.
MOST_NAMES = 60


def plot_run(workdir: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Draws a run from its metrics into `workdir/plots`.

    Args:
      workdir: folder of the run.

    Returns:
      The pictures, PNG; none when no epoch has ended yet.

    Raises:
      UserError: matplotlib is not installed.
    """
    rows = metrics.read_epochs(workdir)
    if not rows:
        return []
    folder = pathlib.Path(workdir, 'plots')
    folder.mkdir(exist_ok=True)
    drawings: dict[str, Callable[[Rows], Figure]] = {
        'accuracy_and_loss.png': functools.partial(accuracy_and_loss, test=metrics.read_test(workdir)),
    }
    if rows[-1].get('beta'):  # an ANN has none
        drawings |= {'chi.png': chi_per_layer, 'beta.png': final_beta}
    if any(has_gain(row) for row in rows):
        drawings['gain.png'] = gain_per_layer
    return [save(draw(rows), folder / name) for name, draw in drawings.items()]


def accuracy_and_loss(rows: Rows, *, test: dict[str, Any] | None = None, stacked: bool = False) -> 'Figure':
    """Draws accuracy and loss of training against the epoch, and of the split that the best epoch is chosen on.

    Args:
      rows: the rows of the epochs.
      test: what was measured on the test split at the end, see `metrics.read_test`.
      stacked: one below the other, for a narrow page, instead of side by side.

    Returns:
      A figure with two panels.
    """
    figure = new_figure(5, 6.4) if stacked else new_figure(10, 4)
    left, right = figure.subplots(2, 1) if stacked else figure.subplots(1, 2)
    epochs, rated = [row['epoch'] for row in rows], metrics.rated_by(rows[-1])
    for axes, what, factor in ((left, 'accuracy', 100), (right, 'loss', 1)):
        for split, colour in (('train', QUIET), (rated, ACCENT)):
            values = _floats([row[f'{split}_{what}'] for row in rows], factor)
            axes.plot(epochs, values, color=colour, marker=_marker(epochs), label=split)
        _epoch_axis(axes, epochs)
        tidy(axes)
    best = metrics.best_epoch(rows)
    last, highest = rows[-1][f'{rated}_accuracy'], best[f'{rated}_accuracy']
    left.plot(best['epoch'], 100 * highest, 'o', color=ACCENT, markerfacecolor='white', markersize=8)
    title = f'{rated.capitalize()} accuracy: last {last:.2%}, best {highest:.2%} (epoch {best["epoch"]})'
    if test:
        title += f'\ntest: last {test["test_accuracy"]:.2%}, best by validation {test["best_test_accuracy"]:.2%}'
    left.set_title(title)
    left.set_ylabel('accuracy [%]')
    right.set_title(f'{rated.capitalize()} loss: last {_floats([rows[-1][f"{rated}_loss"]])[0]:.3f}')
    right.set_ylabel('loss [nats]')
    left.legend(loc='best', frameon=False)
    right.legend(loc='best', frameon=False)
    return figure


def chi_per_layer(*runs: Rows, titles: Sequence[str] = (CHI_TITLE,)) -> 'Figure':
    """Draws chi of each layer against the epoch, coloured by depth (Fig. 3 and 6); runs side by side (Fig. 5).

    Args:
      *runs: the rows of the epochs of each.
      titles: of the panels, as many as there are runs.

    Returns:
      A figure with a panel for each run, all with one axis for chi, and a colour bar for the depth.
    """
    figure, panels = _over_epochs('chi', runs, titles)
    for axes, rows in zip(panels, runs, strict=True):  # after all curves, which set the range of the shared axis
        if not any(np.isfinite(line.get_ydata()).any() for line in axes.get_lines()):
            axes.set_ylim(0, 1)
            axes.text(0.5, 0.5, 'χ was not finite in any layer', transform=axes.transAxes, ha='center', color=GREY)
        _draw_limit(axes, rows[-1].get('chi_limit'))
    panels[0].set_ylabel('χ')
    if len(runs) > 1:
        figure.suptitle(CHI_TITLE)
    return figure


def has_gain(row: dict[str, Any]) -> bool:
    """Whether the row of an epoch has the gain of a layer: older runs have none, nor do adaptive thresholds."""
    return any(value is not None for value in row.get('gain', {}).values())


def gain_per_layer(*runs: Rows, titles: Sequence[str] = (GAIN_TITLE,)) -> 'Figure':
    """Draws the gain of each layer against the epoch, coloured by depth; runs side by side.

    Args:
      *runs: the rows of the epochs of each.
      titles: of the panels, as many as there are runs.

    Returns:
      A figure with a panel for each run, all with one logarithmic axis, and a colour bar for the depth.
    """
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    figure, panels = _over_epochs('gain', runs, titles)
    for axes in panels:
        axes.set_yscale('log', base=2)
        axes.yaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.axhline(1, color=GREY, linestyle='--', linewidth=1)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(min(low, 0.45), max(high, 2.2))  # so that what lies near 1 looks it
    panels[0].set_ylabel('gain')
    if len(runs) > 1:
        figure.suptitle(GAIN_TITLE)
    return figure


def _over_epochs(what: str, runs: Sequence[Rows], titles: Sequence[str]) -> 'tuple[Figure, list[Axes]]':
    """A figure with a panel for each run, in it a curve for each layer, and a colour bar for their depth."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.5 if len(runs) == 1 else 1.5 + 4.5 * len(runs), 4.5)
    panels = list(figure.subplots(1, len(runs), sharey=True, squeeze=False)[0])
    layers = max(len(rows[-1][what]) for rows in runs)
    colours = ScalarMappable(Normalize(1, max(layers, 2)), _DEPTH_COLOURS)
    for axes, rows, title in zip(panels, runs, titles, strict=True):
        _draw_layers(axes, what, rows, colours)
        axes.set_title(title)
    figure.colorbar(colours, ax=panels, label='depth of the layer', ticks=MaxNLocator(8, integer=True))
    return figure, panels


def _draw_layers(axes: 'Axes', what: str, rows: Rows, colours: 'ScalarMappable') -> None:
    """Draws the curves of a run, one for each layer."""
    epochs = [row['epoch'] for row in rows]
    layers = list(rows[-1][what])
    for depth, layer in enumerate(layers, start=1):
        axes.plot(
            epochs,
            _floats([row.get(what, {}).get(layer) for row in rows]),
            color=colours.to_rgba(np.array(depth)),
            marker=_marker(epochs),
            linewidth=1.3 if len(layers) <= MOST_NAMES else 0.6,
            label=layer,
        )
    _epoch_axis(axes, epochs)
    tidy(axes)


def _draw_limit(axes: 'Axes', limit: float | None) -> None:
    """Draws chi_limit as a line where it lies near the curves; far below them, as a text at the lower edge."""
    if limit is None:
        return
    low, high = axes.get_ylim()
    if limit > low - (high - low):
        axes.axhline(limit, color=GREY, linestyle='--', linewidth=1)
        anchor, coordinates, text = limit, ('axes fraction', 'data'), f'chi_limit {limit:g}'
    else:
        anchor, coordinates, text = 0.01, 'axes fraction', f'chi_limit {limit:g} lies below'
    axes.annotate(text, (0.99, anchor), xycoords=coordinates, ha='right', va='bottom', color=GREY)


def final_beta(*runs: Rows, names: Sequence[str] = ()) -> 'Figure':
    """Draws beta of each layer after the last epoch, by depth, as bars from its `beta_init` (Fig. 4, 7 to 10).

    Args:
      *runs: the rows of the epochs of one run, or of two with the same layers, whose bars stand in pairs.
      names: of two runs.

    Returns:
      A figure.
    """
    layers = list(runs[0][-1]['beta'])
    starts = [rows[-1].get('beta_init', 1.0) for rows in runs]
    room_for_names = 0.35 if len(runs) == 1 else 0.45
    figure = new_figure(min(max(5.0, room_for_names * len(layers) + 2), 14.0), 4.2)
    axes = figure.subplots()
    depths, width = np.arange(1, len(layers) + 1), 0.7 / len(runs)
    ends = list(starts)
    for place, (rows, start) in enumerate(zip(runs, starts, strict=True)):
        values = _floats([rows[-1]['beta'][layer] for layer in layers])
        # With an edge, so that the bar of a beta that stayed where it was shows as a line.
        axes.bar(
            depths + (place - (len(runs) - 1) / 2) * width,
            [value - start for value in values],
            bottom=start,
            color=(ACCENT, QUIET)[place],
            edgecolor=(ACCENT, QUIET)[place],
            linewidth=1.5,
            zorder=2.5,
            width=width,
            label=names[place] if names else None,
        )
        ends += values
    for start in sorted({*starts}):
        axes.axhline(start, color=GREY, linestyle='--', linewidth=1)
    dashed = ' and '.join(f'{start:g}' for start in sorted({*starts}))
    axes.set_title(f'Width parameter β by layer, epoch {runs[0][-1]["epoch"]} (dashed: beta_init {dashed})')
    axes.set_ylabel('β')
    if len(layers) <= MOST_NAMES:
        shown = [name.removesuffix('/lif') for name in layers]
        axes.set_xticks(list(depths), shown, rotation=90 if len(layers) > 10 else 0)
    else:
        axes.set_xlabel('depth of the layer')
    if names:
        axes.legend(frameon=False, loc='best')
    low, high = np.nanmin(ends), np.nanmax(ends)
    room = 0.12 * (high - low) or 0.01
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(0.3, len(layers) + 0.7)
    tidy(axes)
    axes.grid(axis='x', visible=False)
    return figure


def new_figure(width: float, height: float) -> 'Figure':
    """Makes a figure outside pyplot, which would keep it alive and might open a window.

    Args:
      width: in inches.
      height: in inches.

    Returns:
      The figure.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('The pictures of a run need matplotlib: pip install matplotlib') from error
    return Figure((width, height), dpi=150, layout='constrained')


def tidy(axes: 'Axes') -> None:
    """Removes the upper and right side of the frame and draws a pale grid behind the data."""
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)


def _epoch_axis(axes: 'Axes', epochs: list[int]) -> None:
    """Ticks at whole epochs, also where matplotlib would choose its own range: one epoch, or no finite value."""
    from matplotlib.ticker import MaxNLocator

    room = max(0.02 * (epochs[-1] - epochs[0]), 0.5)
    axes.set_xlim(epochs[0] - room, epochs[-1] + room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel('epoch')


def _marker(epochs: list[int]) -> str | None:
    """A marker for short runs: a line of one point would not show."""
    return 'o' if len(epochs) < 6 else None


def _floats(values: list[float | None], factor: float = 1) -> list[float]:
    """Values to plot; None, which metrics hold for what was not finite, becomes NaN, a gap in the curve."""
    return [float('nan') if value is None else factor * value for value in values]


def to_png(figure: 'Figure') -> bytes:
    """Renders a figure as the bytes of a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)  # draws once, where `savefig` draws twice
    return file.getvalue()


def save(figure: 'Figure', path: pathlib.Path) -> pathlib.Path:
    """Writes a figure as PNG, in one go; returns the path."""
    return files.replace(path, to_png(figure))
