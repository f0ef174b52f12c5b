"""How the norm of gradients changes from layer to layer, for several widths of the surrogate gradient.

Gradients of the kernels, whatever makes them grow. What the neurons have to do with it, and what is to be expected of
them, is in `gain`.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from cpng_jax.analysis.compared import (
    Compared,
    check_betas,
    check_comparable,
    check_options,
    spread_examples,
    state_with,
)
from cpng_jax.models.inputs import network_input
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime import plots, tables
from cpng_jax.training.state import TrainState
from cpng_jax.training.step import batch_loss

_NOTE = (
    'Norm of the gradient of each kernel by the loss (Eq. 5), divided by the norm of the kernel, on {images} training '
    'images without augmentation, normalised as in training, with the same beta in all layers. Growth: by how much it '
    'grows from a kernel to the one before it, in the geometric mean over those with neurons behind them.'
)


def relative_gradients(run: Compared, state: TrainState, betas: Sequence[float], images: int) -> np.ndarray:
    """Measures the gradient of each kernel in units of the kernel, for several beta.

    Args:
      run: network and data.
      state: with the weights to measure at.
      betas: K width parameters, each for all layers.
      images: of the training split, at even distances; all of them, if they are fewer.

    Returns:
      Norm of the gradient divided by norm of the kernel, `[K, kernels]`, in the order of the layers' names.
    """
    setup = run.setup
    dataset, model = setup.dataset, setup.model
    examples = spread_examples(dataset, 'train', images)
    batch = network_input(jnp.asarray(examples.images), dataset.mean, dataset.std)

    # The state and the batch are arguments: XLA would fold large constants while it compiles.
    @jax.jit
    def measure(state: TrainState, batch: Array, labels: Array, beta: Array) -> Array:
        surrogate = jax.tree.map(lambda leaf: jnp.full_like(leaf, beta), state.surrogate)

        def loss(params: Any) -> Array:
            variables = state.replace(params=params, surrogate=surrogate).variables
            return batch_loss(model, variables, batch, labels)

        norms = lambda tree: jnp.stack([jnp.linalg.norm(leaf.ravel()) for _, leaf in _kernels(tree)])
        return norms(jax.grad(loss)(state.params)) / norms(state.params)

    labels = jnp.asarray(examples.labels)
    return np.stack([np.asarray(measure(state, batch, labels, jnp.float32(beta)), np.float64) for beta in betas])


def growth(relative: np.ndarray) -> float:
    """The factor by which gradients grow from a kernel to the one before it.

    The last kernel is left out: no neurons follow it.

    Args:
      relative: norms of the gradients of the kernels, first to last, at least 3.

    Returns:
      The geometric mean; 1 where the first has the norm of the last but one. NaN for fewer kernels.
    """
    hidden = relative[:-1]
    return float((hidden[0] / hidden[-1]) ** (1 / (len(hidden) - 1))) if len(hidden) > 1 else float('nan')


def draw(
    runs: Sequence[Compared],
    folder: pathlib.Path,
    *,
    betas: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
    weights: str = 'start',
    images: int = 256,
) -> list[pathlib.Path]:
    """Draws the gradient of each layer for several widths, runs side by side.

    Args:
      runs: one or more, on the same data.
      folder: where the results go; made when missing.
      betas: width parameters, each for all layers.
      weights: 'start', those that training began with, or 'trained'.
      images: of the training split, at even distances; all of them, if they are fewer.

    Returns:
      `gradients.png`, `gradients.csv` and `gradients.md`.

    Raises:
      UserError: the runs have different data, or an option lies outside its range.
    """
    check_comparable(runs)
    check_options(images=(images, 1))
    check_betas(betas)
    states = [state_with(run, weights) for run in runs]
    folder.mkdir(parents=True, exist_ok=True)
    measured, rows = [], []
    for run, state in zip(runs, states, strict=True):
        relative = relative_gradients(run, state, betas, images)
        measured.append(relative)
        names = ['/'.join(path[:-1]) for path, _ in _kernels(state.params)]
        for beta, values in zip(betas, relative, strict=True):
            row = {'run': run.label} if len(runs) > 1 else {}
            rows.append(row | {'beta': float(beta), 'growth': growth(values)} | dict(zip(names, values, strict=True)))
    title = f'Gradients by layer, {"trained weights" if weights == "trained" else "weights at the start"}'
    note = _NOTE.format(images=min(images, len(runs[0].setup.dataset.train)))
    return [
        _picture(runs, measured, betas, title, folder / 'gradients.png'),
        *tables.write(folder / 'gradients', rows, title=title, note=note),
    ]


def _picture(
    runs: Sequence[Compared], measured: Sequence[np.ndarray], betas: Sequence[float], title: str, path: pathlib.Path
) -> pathlib.Path:
    """Draws a panel for each run with a line for each beta."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    figure = plots.new_figure(2.2 + 4.8 * len(runs), 4.4)
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, run, relative in zip(panels, runs, measured, strict=True):
        depth = np.arange(1, relative.shape[1] + 1)
        for index, (beta, values) in enumerate(zip(betas, relative, strict=True)):
            colour = colormaps['viridis'](0.95 * index / max(len(betas) - 1, 1))
            label = f'β = {beta:g}: {growth(values):.2f} times a layer'
            shown = np.where(values > 0, values, np.nan)  # a logarithmic axis has no 0
            axes.semilogy(depth, shown, color=colour, marker='.', label=label)
        axes.set_xlabel('depth of the kernel')
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        config = run.setup.config
        axes.set_title(run.label if len(runs) > 1 else f'{config.model.name} on {config.data.name}', fontsize=10)
        axes.legend(frameon=False, fontsize=8)
        plots.tidy(axes)
    panels[0].set_ylabel('norm of the gradient / norm of the kernel')
    figure.suptitle(title, fontsize=11)
    return plots.save(figure, path)


def _kernels(params: Any) -> list[tuple[tuple[str, ...], Any]]:
    """Kernels by their paths, in the order of the layers' names."""
    return [(path, leaf) for path, leaf in sorted(flatten_dict(params).items()) if path[-1] == 'kernel']
