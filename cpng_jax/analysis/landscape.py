"""Loss landscapes with filter-wise normalisation (A.8, Fig. 15): how the loss changes as the weights move.

`surface` has the functions of any loss of any weights; here they are applied to runs and drawn.
"""

import csv
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cpng_jax.analysis.compared import Compared, Split, check_comparable, check_options, spread_examples
from cpng_jax.analysis.surface import PyTree, lines, losses_at, plane, random_directions, sharpness, steps
from cpng_jax.data.pipeline import eval_batches
from cpng_jax.runtime import sharding
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.plots import ACCENT, QUIET, new_figure, save, tidy


def loss_of(run: Compared, *, split: Split = 'test', images: int = 1000) -> Callable[[PyTree], float]:
    """Makes the loss of a run as a function of its weights: Eq. 5 in evaluation mode, running statistics kept fixed.

    Args:
      run: the run.
      split: 'test', or 'train' for training images without augmentation.
      images: of the split, at even distances; all of them, if they are fewer.

    Returns:
      Maps weights to the mean cross entropy in nats; compiles once.
    """
    setup, devices = run.setup, run.setup.mesh.size
    examples = spread_examples(setup.dataset, split, images)
    # Batches of nearly equal size, since what fills the last one up would be computed again at each point.
    parts = -(-len(examples) // setup.config.eval.batch_size)
    batch_size = -(-len(examples) // (parts * devices)) * devices
    batches = [sharding.put_batch(batch, setup.mesh) for batch in eval_batches(examples, batch_size)]

    def loss(params: PyTree) -> float:
        sums = [setup.eval_step(run.state.replace(params=params), batch) for batch in batches]
        return sum(float(one.loss) for one in sums) / len(examples)

    return loss


class Measured(NamedTuple):
    """The landscape of a run.

    Attributes:
      label: of the run.
      along: losses on lines, `[K, count]`, row by row along each direction.
      across: losses in the plane of the first two directions, `[count, count]`, by the first and then the second.
    """

    label: str
    along: np.ndarray
    across: np.ndarray


def draw(
    runs: Sequence[Compared],
    folder: pathlib.Path,
    *,
    radius: float = 1.0,
    count: int = 21,
    lines_drawn: int = 5,
    split: Split = 'test',
    images: int = 1000,
    seed: int = 0,
) -> list[pathlib.Path]:
    """Draws the loss along random directions and in a plane of two, runs side by side (Fig. 15).

    Networks with the same layers are moved along the same random directions, each filter scaled to its own network.

    Args:
      runs: one or more, on the same data; without CPNG first, in the paper's order.
      folder: where the pictures go; made when missing.
      radius: how far the weights are moved; at 1, as far as they are from 0.
      count: points on each line and on each side of the square, odd, at least 5.
      lines_drawn: random directions that curves are drawn along, at least 2; the first two span the plane.
      split: 'test', or 'train' for training images without augmentation.
      images: of the split, at even distances; all of them, if they are fewer.
      seed: of the directions.

    Returns:
      The paths of `landscape_1d.png`, `landscape_2d.png` and `landscape.csv`, which has all numbers.

    Raises:
      UserError: the runs have different data, or an option lies outside its range.
    """
    check_comparable(runs)
    check_options(count=(count, 5), lines_drawn=(lines_drawn, 2), images=(images, 1))
    try:
        on_lines, in_plane = lines(radius, count, lines_drawn), plane(radius, count)
    except ValueError as error:
        raise UserError(f'The landscape cannot be laid out: {error}') from error
    measured = []
    for run in runs:
        loss, params = loss_of(run, split=split, images=images), run.state.params
        ways = random_directions(params, jax.random.key(seed), lines_drawn)
        along = losses_at(loss, params, ways, on_lines).reshape(lines_drawn, count)
        across = losses_at(loss, params, ways[:2], in_plane).reshape(count, count)
        measured.append(Measured(run.label, along, across))
    folder.mkdir(parents=True, exist_ok=True)
    return [
        draw_lines(measured, radius, folder / 'landscape_1d.png'),
        draw_plane(measured, radius, folder / 'landscape_2d.png'),
        _write(measured, on_lines, in_plane, folder / 'landscape.csv'),
    ]


def draw_lines(measured: Sequence[Measured], radius: float, path: pathlib.Path) -> pathlib.Path:
    """Draws the curves: each direction as a thin line, the mean of all as a thick one.

    Args:
      measured: the landscape of each run.
      radius: of the farthest points.
      path: of the PNG.

    Returns:
      The path.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for run, colour in zip(measured, _colours(len(measured)), strict=True):
        count = run.along.shape[1]
        x = steps(radius, count)
        axes.plot(x, run.along.T, color=colour, linewidth=0.7, alpha=0.6)
        sharp = sharpness(lines(radius, count, len(run.along)), run.along.reshape(-1), radius / 2)
        label = _caption(run, sharp)
        axes.plot(x, run.along.mean(axis=0), color=colour, linewidth=2.2, label=label)
    axes.set_xlabel('distance from the trained weights, in norms of their filters')
    axes.set_ylabel('loss [nats]')
    axes.set_title(f'Loss along {len(measured[0].along)} random directions, and their mean', fontsize=10)
    axes.legend(frameon=False)
    tidy(axes)
    return save(figure, path)


def draw_plane(measured: Sequence[Measured], radius: float, path: pathlib.Path) -> pathlib.Path:
    """Draws the planes side by side, with one scale of colours and the same contours.

    Args:
      measured: the landscape of each run.
      radius: from the centre to a side.
      path: of the PNG.

    Returns:
      The path.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.2 * len(measured) + 1.1, 4.6)
    figure.set_layout_engine('compressed')  # for panels of a fixed shape
    panels = figure.subplots(1, len(measured), sharex=True, sharey=True, squeeze=False)[0]
    together = np.stack([run.across for run in measured])
    finite = together[np.isfinite(together)]
    low = float(finite.min())
    # At least a tenth of a nat: contours of a flat landscape would show rounding errors.
    levels = MaxNLocator(16).tick_values(low, max(float(finite.max()), low + 0.1))
    filled: Any = None
    for axes, run in zip(panels, measured, strict=True):
        count = len(run.across)
        x = steps(radius, count)
        # The first coordinate to the right: contour takes rows for y.
        filled = axes.contourf(x, x, run.across.T, levels=levels, cmap='viridis')
        curves = axes.contour(x, x, run.across.T, levels=levels, colors='white', linewidths=0.6)
        axes.clabel(curves, fontsize=7, fmt='%g')
        axes.plot(0, 0, '+', color='white', markersize=9)
        sharp = sharpness(plane(radius, count), run.across.reshape(-1), radius / 2)
        axes.set_title(_caption(run, sharp), fontsize=10)
        axes.set_aspect('equal')
        axes.set_xlabel('first direction')
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(np.linspace(-radius, radius, 5))
    panels[0].set_ylabel('second direction')
    figure.colorbar(filled, ax=panels, label='loss [nats]')
    return save(figure, path)


def _caption(run: Measured, sharp: float) -> str:
    """Label, loss in the centre and sharpness, in two lines, since labels may be long."""
    centre = run.across[len(run.across) // 2, len(run.across) // 2]
    return f'{run.label}\n{centre:.3f} in the centre, sharpness {sharp:.3f}'


def _colours(count: int) -> list[str]:
    """Colours of runs: the first grey, the last orange."""
    return [QUIET, *(f'C{index}' for index in range(2, count)), ACCENT][-count:]


def _write(
    measured: Sequence[Measured], on_lines: np.ndarray, in_plane: np.ndarray, path: pathlib.Path
) -> pathlib.Path:
    """Writes all numbers as CSV: a row for each point, with its coordinate along each direction."""
    names = [f'direction_{index + 1}' for index in range(on_lines.shape[1])]
    padded = np.pad(in_plane, ((0, 0), (0, on_lines.shape[1] - 2)))
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['run', 'drawing', *names, 'loss'])
        for run in measured:
            for drawing, points, losses in (('lines', on_lines, run.along), ('plane', padded, run.across)):
                for point, loss in zip(points, losses.reshape(-1), strict=True):
                    writer.writerow([run.label, drawing, *(f'{value:g}' for value in point), f'{loss:.6g}'])
    return path
