"""Loss landscapes with filter-wise normalisation (A.8, Fig. 15): how the loss changes as the weights move.

Li et al. (2017), "Visualizing the loss landscape of neural nets", arXiv:1712.09913, Sec. 4.
"""

import csv
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cpng_jax import sharding
from cpng_jax.analysis.compared import Compared, Split, check_comparable, spread_examples
from cpng_jax.analysis.plots import ACCENT, QUIET, new_figure, save, tidy
from cpng_jax.data.pipeline import eval_batches
from cpng_jax.errors import UserError
from cpng_jax.experiment import compile_steps
from cpng_jax.surrogate import Array

PyTree = Any


def random_directions(params: PyTree, key: Array, count: int = 2) -> list[PyTree]:
    """Draws random directions in which each filter is as long as the filter of the weights in its place.

    A filter is what makes one output channel or neuron: all axes of a kernel but the last. Biases and the parameters
    of norms, which have a single axis, do not move: their directions are 0.

    Args:
      params: weights, `[..., outputs]`.
      key: of the directions; each is drawn from a normal distribution before it is scaled.
      count: how many.

    Returns:
      Pytrees like `params`.
    """
    leaves, structure = jax.tree.flatten(params)

    def one(key: Array) -> PyTree:
        keys = jax.random.split(key, max(len(leaves), 1))
        return jax.tree.unflatten(structure, [_like(leaf, key) for leaf, key in zip(leaves, keys, strict=False)])

    return [one(key) for key in jax.random.split(key, count)]


def _like(weights: Array, key: Array) -> Array:
    """A random array with filters of the norms of those of `weights`."""
    if weights.ndim < 2:
        return jnp.zeros_like(weights)
    random = jax.random.normal(key, weights.shape, weights.dtype)
    return random * (_norms(weights) / _norms(random))


def _norms(weights: Array) -> Array:
    return jnp.linalg.norm(weights.reshape(-1, weights.shape[-1]), axis=0)


@jax.jit
def moved(params: PyTree, directions: Sequence[PyTree], point: Array) -> PyTree:
    """Moves weights along directions.

    Args:
      params: weights.
      directions: K pytrees like `params`.
      point: how far along each, `[K]`.

    Returns:
      The weights there.
    """

    def add(weights: Array, *steps: Array) -> Array:
        return weights + sum(far * step for far, step in zip(point, steps, strict=True))

    return jax.tree.map(add, params, *directions)


def landscape(
    loss: Callable[[PyTree], float | Array], params: PyTree, directions: Sequence[PyTree], points: np.ndarray
) -> np.ndarray:
    """Measures the loss at points of the space that some directions span around the weights.

    Nothing is compiled for a point: the way there is an array argument. Make `loss` of a jitted function.

    Args:
      loss: maps weights to a scalar.
      params: the weights in the centre.
      directions: K pytrees like `params`, from `random_directions`.
      points: how far along each, `[N, K]`.

    Returns:
      The losses, float64 `[N]`.

    Raises:
      ValueError: `points` has another shape.
    """
    points = np.asarray(points, np.float32)
    if points.ndim != 2 or points.shape[1] != len(directions):
        raise ValueError(f'points must be [N, {len(directions)}], one number a direction, got shape {points.shape}.')
    # One after the other: each is as large as an evaluation, so that there is nothing to gain from several at once.
    return np.array([float(loss(moved(params, list(directions), jnp.asarray(point)))) for point in points])


def lines(radius: float, count: int, directions: int) -> np.ndarray:
    """Lays points along each direction by itself.

    Args:
      radius: of the farthest points.
      count: points on each line, odd, so that the centre is one of them.
      directions: K.

    Returns:
      `[K * count, K]`, line by line.

    Raises:
      ValueError: `count` is even or below 3, or `radius` is not above 0.
    """
    return np.kron(np.eye(directions), _steps(radius, count)[:, None])


def plane(radius: float, count: int) -> np.ndarray:
    """Lays points on a square grid in the plane of two directions.

    Args:
      radius: from the centre to a side.
      count: points on a side, odd, so that the centre is one of them.

    Returns:
      `[count * count, 2]`, the second coordinate changing fastest.

    Raises:
      ValueError: `count` is even or below 3, or `radius` is not above 0.
    """
    steps = _steps(radius, count)
    return np.stack(np.meshgrid(steps, steps, indexing='ij'), axis=-1).reshape(-1, 2)


def _steps(radius: float, count: int) -> np.ndarray:
    if count < 3 or count % 2 == 0:
        raise ValueError(f'count must be odd and at least 3, got {count}.')
    if not radius > 0:
        raise ValueError(f'radius must be above 0, got {radius}.')
    # Symmetric to the last digit, and 0 in the middle.
    return radius * np.arange(-(count // 2), count // 2 + 1) / (count // 2)


def sharpness(points: np.ndarray, losses: np.ndarray, radius: float) -> float:
    """Measures how much the loss grows about the centre, on average over the points within a distance of it.

    Where the loss is a quadratic form with second derivative k in each direction, that is half of k times the mean
    square of the distance.

    Args:
      points: `[N, K]`, with the centre among them.
      losses: there, `[N]`.
      radius: the largest distance that counts.

    Returns:
      The mean increase, in the unit of the losses; negative where the centre is not a minimum.

    Raises:
      ValueError: the centre, or any other point within `radius`, is missing.
    """
    distance = np.linalg.norm(points, axis=1)
    centre = distance == 0
    near = (distance <= radius * (1 + 1e-6)) & ~centre
    if not centre.any() or not near.any():
        raise ValueError(f'points must have the centre and others within {radius} of it, got {len(points)} points.')
    return float(np.mean(losses[near]) - np.mean(losses[centre]))


def loss_of(run: Compared, *, split: Split = 'test', images: int = 1000) -> Callable[[PyTree], float]:
    """Makes the loss of a run a function of its weights: Eq. 5 in evaluation mode, with the running statistics kept.

    Args:
      run: the run.
      split: 'test', or 'train' for training images without augmentation.
      images: of the split, at even distances, or all, if they are fewer.

    Returns:
      Maps weights to the mean cross entropy in nats; compiles once.
    """
    experiment, devices = run.experiment, run.experiment.mesh.size
    examples = spread_examples(experiment.dataset, split, images)
    # Batches of one size, so that little is computed for filling: it would be at each point.
    parts = -(-len(examples) // experiment.config.eval.batch_size)
    batch_size = -(-len(examples) // (parts * devices)) * devices
    batches = [sharding.put_batch(batch, experiment.mesh) for batch in eval_batches(examples, batch_size)]
    _, evaluate = compile_steps(experiment)

    def loss(params: PyTree) -> float:
        sums = [evaluate(run.state.replace(params=params), batch) for batch in batches]
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
      count: points on each line and on each side of the square, odd.
      lines_drawn: random directions that curves are drawn along, at least 2; the first two span the plane.
      split: as of `loss_of`.
      images: likewise.
      seed: of the directions.

    Returns:
      The paths of `landscape_1d.png`, `landscape_2d.png` and `landscape.csv`, which has all numbers.

    Raises:
      UserError: the runs have different data, or an option lies outside its range.
    """
    check_comparable(runs)
    if lines_drawn < 2:
        raise UserError(f'lines_drawn is {lines_drawn}, expected at least 2: the first two span the plane.')
    try:
        on_lines, in_plane = lines(radius, count, lines_drawn), plane(radius, count)
    except ValueError as error:
        raise UserError(f'The landscape cannot be laid out: {error}') from error
    measured = []
    for run in runs:
        loss, params = loss_of(run, split=split, images=images), run.state.params
        ways = random_directions(params, jax.random.key(seed), lines_drawn)
        along = landscape(loss, params, ways, on_lines).reshape(lines_drawn, count)
        across = landscape(loss, params, ways[:2], in_plane).reshape(count, count)
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
        x = _steps(radius, count)
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
    # At least a tenth of a nat, or a landscape that is level would be drawn with contours of its rounding.
    levels = MaxNLocator(16).tick_values(low, max(float(finite.max()), low + 0.1))
    filled: Any = None
    for axes, run in zip(panels, measured, strict=True):
        count = len(run.across)
        x = _steps(radius, count)
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
    """Two lines, since labels may be long."""
    centre = run.across[len(run.across) // 2, len(run.across) // 2]
    return f'{run.label}\n{centre:.3f} in the centre, sharpness {sharp:.3f}'


def _colours(count: int) -> list[str]:
    """The first in quiet grey, the last in orange."""
    return [QUIET, *(f'C{index}' for index in range(2, count)), ACCENT][-count:]


def _write(
    measured: Sequence[Measured], on_lines: np.ndarray, in_plane: np.ndarray, path: pathlib.Path
) -> pathlib.Path:
    """All numbers as a table: a row for each point, with its coordinates along the first and the other directions."""
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
