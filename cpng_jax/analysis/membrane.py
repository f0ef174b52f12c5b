"""The distribution of each layer's membrane potentials, and chi by Eq. 6 against a count (Fig. 2, 11 to 13).

The network is run as in the evaluation, normalised by its running statistics, on test images. Potentials are those
before the reset, of all neurons, time steps and images, as in Sec. 4.1. They are counted batch by batch and not kept.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cpng_jax.analysis import histograms
from cpng_jax.analysis.histograms import Layer
from cpng_jax.analysis.run import Run
from cpng_jax.control.effective_domain import chi, domain_radius
from cpng_jax.control.layer_tree import layer_paths
from cpng_jax.data.dataset import Example, Source
from cpng_jax.data.pipeline import Batch, eval_batches
from cpng_jax.nn.statistics import MembraneStats, membrane_stats
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime import plots, sharding, tables
from cpng_jax.training.setup import Setup
from cpng_jax.training.state import TrainState

# Test images measured; of more, evenly spaced ones, since splits may be sorted by class.
MOST_IMAGES = 1024
# Images of a batch, all of whose potentials are in memory at once.
_BATCH = 64

BINS = 100
# Distance from the mean to the outermost bins, in standard deviations, both of the first batch.
_REACH = 5.0


class Sums(NamedTuple):
    """Sums over the potentials of a layer in a batch, by example: those that pad the last batch are left out later.

    Attributes:
      powers: sums of z, z squared and z cubed, `[3, T, B]`; z is the potential, standardised by the mean and deviation
        of the first batch.
      inside: potentials in the effective domain, int32 `[T, B]`.
      bins: potentials in each bin, first those below all bins, last those above, int32 `[B, BINS + 2]`.
    """

    powers: Array
    inside: Array
    bins: Array


def analyse(run: Run) -> list[pathlib.Path]:
    """Measures the membrane potentials of each layer, draws them and writes a table.

    Args:
      run: with a checkpoint, and its data at hand.

    Returns:
      `membrane.png`, `membrane.csv` and `membrane.md`.

    Raises:
      UserError: there is no run or no checkpoint, the data are missing, or matplotlib is.
    """
    plots.new_figure(1, 1)  # Raises without matplotlib, before the measurement takes its time.
    layers = measure(run.setup, run.state)
    images = min(MOST_IMAGES, len(run.setup.dataset.test))
    neuron, interval = run.config.neuron, run.config.cpng.interval
    figure = histograms.draw(layers, neuron.v_th, neuron.surrogate, interval)
    figure.suptitle(f'Membrane potentials, {run.title()}: {images} test images', fontsize=11)
    rows = [
        {
            'layer': layer.name,
            'mean': layer.mean,
            'std': layer.std,
            'skewness': layer.skewness,
            'beta': layer.beta,
            'chi Gaussian': layer.chi_gaussian,
            'chi counted': layer.chi_counted,
            'difference': layer.chi_gaussian - layer.chi_counted,
        }
        for layer in layers
    ]
    farthest = max(layers, key=lambda layer: abs(layer.chi_gaussian - layer.chi_counted))
    mean = np.mean([abs(layer.chi_gaussian - layer.chi_counted) for layer in layers])
    note = (
        f'{run.title()}, {run.checkpoint} checkpoint. Potentials before the reset of all neurons and time steps, '
        f'{images} test images, normalised by the running statistics as in the evaluation. χ by Eq. 6, as if they were '
        f'Gaussian, and counted. The two differ by {mean:.3f} in the mean over the layers, and by '
        f'{abs(farthest.chi_gaussian - farthest.chi_counted):.3f} at most, in {farthest.name}.'
    )
    return [
        plots.save(figure, run.folder / 'membrane.png'),
        *tables.write(run.folder / 'membrane', rows, title='Membrane potentials', note=note),
    ]


def measure(setup: Setup, state: TrainState) -> list[Layer]:
    """Measures the membrane potentials of each layer on test images.

    Args:
      setup: from `build`.
      state: of the trained network.

    Returns:
      A `Layer` for each, in the order of their paths.
    """
    variables = state.variables
    potentials_of, frame_of = _steps(setup)
    frame: list[MembraneStats] = []
    totals: list[Any] = []
    for batch in _batches(setup):
        keep = np.asarray(batch.pop('weight')) > 0
        image = sharding.put_batch(batch['image'], setup.mesh)
        frame = frame or frame_of(variables, image)
        sums = [_without_filling(each, keep) for each in jax.device_get(potentials_of(variables, image, frame))]
        totals = [jax.tree.map(np.add, *pair) for pair in zip(totals, sums, strict=True)] if totals else sums
    names, betas = layer_paths(state.surrogate), jax.tree.leaves(jax.device_get(state.surrogate))
    config = setup.config
    domain = dict(v_th=config.neuron.v_th, surrogate=config.neuron.surrogate, interval=config.cpng.interval)
    return [
        _layer(name, beta, where, total, domain)
        for name, beta, where, total in zip(names, betas, jax.device_get(frame), totals, strict=True)
    ]


def _batches(setup: Setup) -> Iterator[Batch]:
    """Batches of evenly spaced test images."""
    devices, config = setup.mesh.size, setup.config
    return eval_batches(
        _EvenlySpaced(setup.dataset.test, MOST_IMAGES),
        -(-_BATCH // devices) * devices,
        prepare=setup.dataset.prepare,
        threads=config.data.threads,
        workers=config.data.workers,
    )


class _EvenlySpaced:
    """At most so many examples of a split, evenly spaced from its start to its end."""

    def __init__(self, source: Source, most: int) -> None:
        self._source, self._length = source, min(len(source), most)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        return self._source[index * len(self._source) // self._length]


def _steps(setup: Setup) -> tuple[Callable[..., list[Sums]], Callable[..., list[MembraneStats]]]:
    """Makes the jitted functions of a batch: the sums of each layer, and the mean and variance that bins go by."""
    config, model = setup.config, setup.model

    def potentials_of(variables: dict[str, Any], image: Array) -> list[Array]:
        return jax.tree.leaves(model.apply(variables, setup.prepare(image), mutable=['potentials'])[1])

    @jax.jit
    def sums(variables: dict[str, Any], image: Array, frame: list[MembraneStats]) -> list[Sums]:
        potentials, betas = potentials_of(variables, image), jax.tree.leaves(variables['surrogate'])
        return [
            count(u, where, config.neuron.v_th, domain_radius(beta, config.neuron.surrogate, config.cpng.interval))
            for u, beta, where in zip(potentials, betas, frame, strict=True)
        ]

    @jax.jit
    def frame(variables: dict[str, Any], image: Array) -> list[MembraneStats]:
        return [membrane_stats(u) for u in potentials_of(variables, image)]

    return sums, frame


def count(u: Array, frame: MembraneStats, v_th: float, radius: Array) -> Sums:
    """Sums and counts the potentials of a layer.

    Args:
      u: membrane potentials before the reset, `[T, B, ...]`.
      frame: mean and variance, those of the first batch, by which potentials are standardised and bins laid out.
      v_th: threshold.
      radius: half the width of the effective domain.

    Returns:
      The `Sums`.
    """
    z = (u - frame.mean) / _scale(frame.variance)
    neurons = tuple(range(2, u.ndim))
    powers = jnp.stack([jnp.sum(z**power, neurons) for power in (1, 2, 3)])
    inside = jnp.sum(jnp.abs(u - v_th) < radius, neurons, dtype=jnp.int32)
    bin_of = 1 + jnp.clip(jnp.floor((z + _REACH) * (BINS / (2 * _REACH))), -1, BINS).astype(jnp.int32)
    by_example = jnp.moveaxis(bin_of, 1, 0).reshape(u.shape[1], -1)
    return Sums(powers, inside, jax.vmap(lambda bins: jnp.bincount(bins, length=BINS + 2))(by_example))


def _scale(variance: Any) -> Any:
    """Standard deviation, or 1 where there is none."""
    return jnp.where(variance > 0, jnp.sqrt(variance), 1.0)


def _without_filling(sums: Sums, keep: np.ndarray) -> tuple[np.ndarray, int, np.ndarray, int]:
    """Sums over the examples to keep, in float64, and, last, the number of their potentials."""
    powers, inside, bins = (np.asarray(array) for array in sums)
    bins = bins[keep].sum(axis=0, dtype=np.int64)
    powers = powers[..., keep].sum(axis=(1, 2), dtype=np.float64)
    return powers, int(inside[:, keep].sum(dtype=np.int64)), bins, int(bins.sum())


def _layer(
    name: str,
    beta: np.ndarray,
    frame: MembraneStats,
    total: tuple[np.ndarray, int, np.ndarray, int],
    domain: dict[str, Any],
) -> Layer:
    """Makes the moments, chi and histogram of a layer from its sums."""
    powers, inside, bins, potentials = total
    first, second, third = powers / potentials
    variance = max(second - first**2, 0.0)
    skewness = (third - 3 * first * second + 2 * first**3) / variance**1.5 if variance else float('nan')
    scale = float(_scale(frame.variance))
    mean, std = float(frame.mean) + scale * first, scale * variance**0.5
    return Layer(
        name=name,
        beta=float(np.mean(beta)),
        count=potentials,
        mean=mean,
        std=std,
        skewness=skewness,
        # The mean, since a layer may have a beta for each channel.
        chi_gaussian=float(jnp.mean(chi(MembraneStats(jnp.asarray(mean), jnp.asarray(std**2)), beta, **domain))),
        chi_counted=inside / potentials,
        edges=float(frame.mean) + scale * np.linspace(-_REACH, _REACH, BINS + 1),
        bins=bins[1:-1],
    )
