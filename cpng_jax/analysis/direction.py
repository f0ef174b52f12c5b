"""How well the surrogate gradient points, by its width: the fall of the loss along it, by finite differences.

The height of a surrogate gradient scales the gradient of a layer; its width turns it. Where it points is told without
a reference: the loss, a step to either side along the gradient, falls by the slope of the smoothed loss times the
cosine between the two. Of several widths at the same weights the slope is the same, so that the falls compare cosines.
"""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cpng_jax.analysis.compared import (
    Compared,
    check_betas,
    check_comparable,
    check_fixed_threshold,
    check_options,
    spread_examples,
    state_with,
)
from cpng_jax.control.controller import MEASURED, Observed
from cpng_jax.control.effective_domain import chi_by_layer
from cpng_jax.control.gain import gradients_of, needs_of, signals_of
from cpng_jax.control.gradient_gain import Signals, scale_by_layer
from cpng_jax.control.layer_tree import like_beta
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime import plots, tables
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import objective
from cpng_jax.training.state import TrainState
from cpng_jax.training.step import batch_loss, measurements

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NOTE = (
    'Fall of the loss, in nats for a relative change of the kernels by their own size, along the gradient at each '
    'width: central differences over {step:g} of the size of each kernel, on {images} training images without '
    'augmentation, normalised as in training. Heights hold the gain at 1, and each kernel moves by the same share, so '
    'that the direction alone counts. `relative`: to the steepest of the run. Chi and scale: mean over the layers.'
)
# Smaller than this the norm of a gradient counts as none.
_TINY = 1e-30


def falls(
    run: Compared, state: TrainState, betas: Sequence[float], *, images: int, step: float
) -> list[dict[str, float]]:
    """Measures how steeply the loss falls along the surrogate gradient, for several widths with the gain held at 1.

    Args:
      run: network and data.
      state: with the weights to measure at.
      betas: width parameters, each for all layers.
      images: of the training split, at even distances; all of them, if they are fewer.
      step: of each kernel to either side, by its norm.

    Returns:
      For each width `beta`, `chi` and `scale` in the mean over the layers, and `fall`, in nats.

    Raises:
      UserError: the neurons have no fixed threshold.
    """
    setup, settings = run.setup, run.setup.settings
    check_fixed_threshold(run)
    examples = spread_examples(setup.dataset, 'train', images)
    batch, labels = setup.prepare(jnp.asarray(examples.images)), jnp.asarray(examples.labels)
    loss = objective.make_loss(setup.config.loss, len(setup.dataset.class_names))

    # Programs of the whole, since each operation on each shape would be compiled by itself. Weights and examples are
    # arguments: XLA would fold large constants while it compiles.
    def loss_of(params: Any, surrogates: Any, batch: Array, labels: Array) -> Array:
        variables = {**state.variables, **surrogates, 'params': params}
        return batch_loss(setup.model, variables, batch, labels, loss)

    @jax.jit
    def steps_of(params: Any, *rest: Any) -> Any:
        return jax.tree.map(_along, jax.grad(loss_of)(params, *rest), params)

    @jax.jit
    def moved_loss(by: Array, along: Any, params: Any, *rest: Any) -> Array:
        return loss_of(jax.tree.map(lambda leaf, to: leaf + by * to, params, along), *rest)

    signals = _signals(run, state, batch)

    def of(beta: float) -> dict[str, float]:
        widths = jax.tree.map(lambda leaf: jnp.full_like(leaf, beta), state.surrogate)
        heights = scale_by_layer(1.0, signals, widths, gradients_of(settings))
        heights = jax.tree.map(lambda height: jnp.where(height > 0, height, 1), heights)  # silent layers have none
        surrogates = {'surrogate': widths, 'scale': like_beta(heights, state.scale)}
        given = state.params, surrogates, batch, labels
        along = steps_of(*given)
        moved = lambda by: float(moved_loss(by, along, *given))

        chi = chi_by_layer(
            signals.membrane, widths, v_th=settings.v_th, surrogate=settings.surrogate, interval=settings.interval
        )
        fall = (moved(step) - moved(-step)) / (2 * step)
        return {'beta': float(beta), 'chi': _mean(chi), 'scale': _mean(heights), 'fall': fall}

    return [of(beta) for beta in betas]


def _signals(run: Compared, state: TrainState, batch: Array) -> Signals:
    """What the layers measure of a batch, which no surrogate gradient changes."""
    setup = run.setup
    names = [name for name in needs_of(setup.settings) if name in MEASURED]
    measure = jax.jit(lambda variables, batch: measurements(setup.model, variables, batch, names))
    seen = measure(state.variables, batch)
    return signals_of(Observed(params=state.params, **seen), state.surrogate, setup.settings)


def _along(gradient: Array, weights: Array) -> Array:
    """A step along the gradient of a kernel of the kernel's own norm; none of norms and biases."""
    if weights.ndim < 2:
        return jnp.zeros_like(weights)
    size = jnp.linalg.norm(weights.ravel()) / jnp.maximum(jnp.linalg.norm(gradient.ravel()), _TINY)
    return gradient * size


def _mean(tree: Any) -> float:
    return float(np.mean([np.mean(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))]))


def draw(
    runs: Sequence[Compared],
    folder: pathlib.Path,
    *,
    betas: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0),
    weights: str = 'start',
    images: int = 256,
    step: float = 0.03,
) -> list[pathlib.Path]:
    """Draws how well the surrogate gradient points, by its width, runs in one picture.

    Args:
      runs: one or more, on the same data.
      folder: where the results go; made when missing.
      betas: width parameters, each for all layers.
      weights: 'start', those that training began with, or 'trained'.
      images: of the training split, at even distances; all of them, if they are fewer.
      step: of each kernel to either side, by its norm.

    Returns:
      `direction.png`, `direction.csv` and `direction.md`.

    Raises:
      UserError: the runs have different data, neurons without a fixed threshold, or an option lies outside its range.
    """
    check_comparable(runs)
    check_options(images=(images, 1))
    check_betas(betas)
    if not 0 < step < 1:
        raise UserError(f'step is {step:g}, expected a number between 0 and 1.')
    folder.mkdir(parents=True, exist_ok=True)
    rows, figure = [], plots.new_figure(6.4, 4.2)
    axes = figure.subplots()
    for run, colour in zip(runs, (plots.ACCENT, plots.QUIET), strict=False):
        found = falls(run, state_with(run, weights), betas, images=images, step=step)
        steepest = max(row['fall'] for row in found)
        label = {'run': run.label} if len(runs) > 1 else {}
        rows += [label | row | {'relative': row['fall'] / steepest} for row in found]
        axes.plot(betas, [row['fall'] / steepest for row in found], color=colour, marker='o', label=run.label)
    _finish(axes, len(runs))
    title = f'Direction by width, {"trained weights" if weights == "trained" else "weights at the start"}'
    figure.suptitle(title, fontsize=11)
    note = _NOTE.format(images=min(images, len(runs[0].setup.dataset.train)), step=step)
    return [
        plots.save(figure, folder / 'direction.png'),
        *tables.write(folder / 'direction', rows, title=title, note=note),
    ]


def _finish(axes: 'Axes', runs: int) -> None:
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter('{x:g}')
    axes.set_xlabel('β, the same in every layer')
    axes.set_ylabel('fall of the loss, by the steepest')
    axes.axhline(0, color=plots.GREY, linewidth=1)
    if runs > 1:
        axes.legend(frameon=False)
    plots.tidy(axes)
