"""One image on its way through a network: the spikes of some neurons of each layer, their potentials and currents.

The network is run as in the evaluation, normalised by its running statistics. Spikes are those that it computes.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from cpng_jax.analysis import raster_picture
from cpng_jax.analysis.compared import check_options
from cpng_jax.analysis.raster_picture import Drawn, Layer, Passage
from cpng_jax.analysis.run import Run
from cpng_jax.control.effective_domain import domain_radius
from cpng_jax.control.layer_tree import layer_paths
from cpng_jax.nn.neuron_layer import DECAY, LIF
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime import plots, tables
from cpng_jax.runtime.errors import UserError, nearest
from cpng_jax.training.setup import Setup

# Layers that are drawn where none are named.
_MOST_LAYERS = 8
_CHOICES = {'random': 'at random', 'active': 'with the most spikes'}


def analyse(
    run: Run, *, image: int = 0, neurons: int = 32, choose: str = 'random', layers: str = 'some', seed: int = 0
) -> list[pathlib.Path]:
    """Draws what an image of the test split does to the neurons of each layer.

    Args:
      run: with a checkpoint, and its data at hand.
      image: which one of the test split, from 0.
      neurons: of each layer; all, if they are fewer.
      choose: 'random', or 'active' for those with the most spikes.
      layers: names with commas between; 'some' for at most eight from the first to the last, 'all' for all.
      seed: of the random choice.

    Returns:
      `raster.png`, `raster.csv` and `raster.md`; the table is of all neurons of all layers.

    Raises:
      UserError: there is no run or no checkpoint, the data or matplotlib are missing, or an option is out of range.
    """
    plots.new_figure(1, 1)  # Raises without matplotlib, before the network is run.
    dataset = run.setup.dataset
    check_options(image=(image, 0), neurons=(neurons, 1), seed=(seed, 0))
    if image >= len(dataset.test):
        raise UserError(f'image is {image}, expected one of 0 to {len(dataset.test) - 1}, the test images.')
    if choose not in _CHOICES:
        raise UserError(f'choose is {choose!r}, expected one of {", ".join(_CHOICES)}.')
    names = [_plain(name) for name in layer_paths(run.state.surrogate)]
    shown = choose_layers(names, layers)
    example = dataset.prepare(dataset.test[image])
    found, outputs = measure(run.setup, run.state.variables, example['image'])
    drawn = [Drawn(found[index], *choose_neurons(found[index], neurons, choose, seed)) for index in shown]
    passage = Passage(example['image'], int(example['label']), outputs, list(dataset.class_names))
    which = f'up to {neurons} neurons {_CHOICES[choose]} in {len(shown)} of {len(names)} layers'
    caption = (
        f'{run.title()}, {run.checkpoint} checkpoint: test image {image}, {passage.in_words()}. Drawn are {which}, and '
        'the potentials before the reset and the currents of three of them: with the most spikes, with the fewest but '
        'not none (a middle one where all spike, or none), and with the lowest potential of those with the fewest. In '
        'the table are all neurons: their firing rate, also by time step, and the share without a spike.'
    )
    figure = raster_picture.draw(passage, drawn, f'Test image {image}, {run.title()}: {which}')
    return [
        plots.save(figure, run.folder / 'raster.png'),
        *tables.write(run.folder / 'raster', rates(found), title='One image through the network', note=caption),
    ]


def measure(setup: Setup, variables: Mapping[str, Any], image: np.ndarray) -> tuple[list[Layer], np.ndarray]:
    """Runs one image and keeps what all neurons do.

    Args:
      setup: from `build`.
      variables: of the network.
      image: uint8 `[H, W, C]`, or events `[T, H, W, C]`.

    Returns:
      `(layers, outputs)`: a `Layer` for each, in the order of their paths, and the outputs `[T, classes]`.
    """

    def spikes_of(module: nn.Module, method: str) -> bool:
        return isinstance(module, LIF) and method == '__call__'

    @jax.jit
    def look(variables: Mapping[str, Any], image: Array) -> Any:
        x = setup.prepare(image[None])
        kept = ['intermediates', 'potentials', 'widening']
        return setup.model.apply(variables, x, capture_intermediates=spikes_of, mutable=kept)

    outputs, seen = jax.device_get(look(variables, jnp.asarray(image)))
    neuron, interval = setup.config.neuron, setup.config.cpng.interval
    batch_stats, widened = variables.get('batch_stats', {}), seen.get('widening', {})
    collections = (seen['intermediates'], seen['potentials'], variables['params'], batch_stats, widened)
    spikes, potentials, params, running, widened = (cast(dict[Any, Any], flatten_dict(each)) for each in collections)
    layers = []
    for name, beta in zip(
        layer_paths(variables['surrogate']), jax.tree.leaves(jax.device_get(variables['surrogate'])), strict=True
    ):
        path = tuple(name.split('/'))
        s = np.asarray(spikes[*path, '__call__'][0], bool)
        s, u = (np.reshape(array, (len(array), -1)) for array in (s, potentials[*path, 'potentials']))
        moving = running.get((*path, 'threshold')), widened.get((*path, 'widening'))
        u, threshold, widening = _as_they_are(u, neuron.v_th, *moving)
        learnt = params.get((*path, DECAY))
        tau = neuron.tau if learnt is None else float(nn.sigmoid(learnt))
        radius = domain_radius(np.reshape(beta, (1, -1)) / widening[:, None], neuron.surrogate, interval)
        before = np.concatenate([np.zeros_like(u[:1]), np.where(s, 0, u)[:-1]])
        layers.append(Layer(_plain(name), s, u, u - tau * before, threshold, np.asarray(radius)))
    return layers, np.asarray(outputs[:, 0], np.float64)


def _as_they_are(u: np.ndarray, v_th: float, running: Any, widening: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Potentials, and threshold and widening of the surrogate gradient at each step.

    `AdaptedLIF`, whose threshold is `running` in evaluation, has potentials as they would be at the threshold `v_th`
    and the width of beta; `DeviationLIF`, which tells its widening, at that width.
    """
    threshold = np.full(len(u), v_th, np.float64) if running is None else np.asarray(running, np.float64)
    if running is None and widening is None:
        return u, threshold, np.ones(len(u))
    widening = 1 + np.tanh(threshold - v_th) if widening is None else np.asarray(widening, np.float64)
    return threshold[:, None] + (u - v_th) * widening[:, None], threshold, widening


def _plain(name: str) -> str:
    """The name of a layer without that of its neurons: conv01 for conv01/lif, fc01 for fc01_lif."""
    return name.removesuffix('/lif').removesuffix('_lif')


def choose_layers(names: Sequence[str], wanted: str) -> list[int]:
    """Chooses layers.

    Args:
      names: of all layers.
      wanted: some of them with commas between, or 'some' or 'all'.

    Returns:
      Their places in `names`, in that order.

    Raises:
      UserError: a layer has no such name.
    """
    if wanted in ('some', 'all'):
        count = len(names) if wanted == 'all' else min(len(names), _MOST_LAYERS)
        return [int(place) for place in np.round(np.linspace(0, len(names) - 1, count))]
    chosen = set()
    for name in (_plain(part.strip()) for part in wanted.split(',')):
        if name not in names:
            raise UserError(
                f'layers is {wanted!r}, expected some, all or names of layers; the nearest to {name!r} is '
                f'{nearest(name, names)!r} of {", ".join(names)}.'
            )
        chosen.add(names.index(name))
    return sorted(chosen)


def choose_neurons(layer: Layer, count: int, choose: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the neurons of a layer to be drawn.

    Args:
      layer: what its neurons did.
      count: how many; all, if they are fewer.
      choose: 'random' or 'active', see `analyse`.
      seed: of the random choice.

    Returns:
      `(neurons, traced)`: indices into the neurons, ascending; and of up to three of these, the one with the most
      spikes, the one with the fewest that has any, and the last of all; where all or none have any, a middle one.
    """
    size = layer.spikes.shape[1]
    # By spikes, and of those with as many by the potential.
    rank = np.lexsort((layer.potentials.mean(axis=0), layer.spikes.sum(axis=0)))[::-1]
    some = rank[:count] if choose == 'active' else np.random.default_rng(seed).permutation(size)[:count]
    order = [neuron for neuron in rank if neuron in set(some.tolist())]
    spiking = int(np.sum(layer.spikes[:, order].any(axis=0)))
    few = spiking - 1 if 1 < spiking < len(order) else len(order) // 2
    traced = [order[0], order[few], order[-1]] if len(order) > 2 else order
    return np.sort(some), np.array(traced)


def rates(layers: Sequence[Layer]) -> list[dict[str, tables.Value]]:
    """Lists how much the neurons of each layer fire.

    Args:
      layers: what their neurons did.

    Returns:
      Rows of a table.
    """
    return [
        {
            'layer': layer.name,
            'neurons': layer.spikes.shape[1],
            'firing rate': float(layer.spikes.mean()),
            **{f'at step {step}': float(rate) for step, rate in enumerate(layer.spikes.mean(axis=1), start=1)},
            'silent': layer.silent,
        }
        for layer in layers
    ]
