"""What the neurons of each layer make of a signal and of its gradient, measured by probes, beside what is predicted."""

import functools
from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cpng_jax.analysis.compared import Compared, check_fixed_threshold, spread_examples
from cpng_jax.control.controller import Observed
from cpng_jax.control.gain import gradients_of, signals_of
from cpng_jax.control.gradient_gain import gain, in_vectors
from cpng_jax.control.layer_tree import PyTree, like_beta, stats_vector, vector
from cpng_jax.models.network import SpikingNetwork
from cpng_jax.models.vgg import VGG
from cpng_jax.nn.statistics import MembraneStats
from cpng_jax.nn.surrogate import Array, at_least_float32
from cpng_jax.training import objective
from cpng_jax.training.setup import Setup
from cpng_jax.training.state import TrainState

# The widths and heights that a run has, where they are not one for all.
AS_RUN = 'as the run has it'


class Layers(NamedTuple):
    """What is known of the layers of a network at given widths, `[L]` each, in their order.

    Of a layer with a width for each channel, means over the channels; of the gains, weighted by Q, which makes the
    measured one the S of the layer over its Q. NaN is what is not defined: the gain of a silent layer, the correlation
    of one time step.

    Attributes:
      beta: width parameter.
      scale: height.
      u_mean: of the potentials before the reset.
      u_variance: of these.
      currents: variance of the currents.
      firing_rate: share of neurons and time steps that spike.
      correlation: of the gradients by a neuron's spikes at two time steps, in the mean over pairs of steps.
      predicted: gain with the correlation that controllers take.
      informed: gain with the correlation that was measured.
      measured: S / Q.
      between: Q of the layer over S of the next; NaN of the last, and everywhere where the network is not a chain.
    """

    beta: np.ndarray
    scale: np.ndarray
    u_mean: np.ndarray
    u_variance: np.ndarray
    currents: np.ndarray
    firing_rate: np.ndarray
    correlation: np.ndarray
    predicted: np.ndarray
    informed: np.ndarray
    measured: np.ndarray
    between: np.ndarray


class _Passed(NamedTuple):
    """What a batch gives, an element for each beta: `[N]` each, in at least float32."""

    beta: Array
    scale: Array
    u_mean: Array
    u_variance: Array
    currents: Array
    firing_rate: Array
    correlation: Array
    predicted: Array
    informed: Array
    d_currents: Array  # norms of gradients
    d_spikes: Array


def gains(run: Compared, state: TrainState, settings: Sequence[tuple[PyTree, PyTree]], images: int) -> list[Layers]:
    """Predicts and measures the gain of each layer, for several widths and heights of the surrogate gradient.

    Args:
      run: network and data.
      state: with the weights to measure at.
      settings: beta and scale of the layers, each laid out like `state.surrogate`.
      images: of the training split, at even distances; all of them, if they are fewer.

    Returns:
      What is known of the layers, for each setting.

    Raises:
      UserError: the neurons have no fixed threshold.
    """
    setup = run.setup
    check_fixed_threshold(run)
    examples = spread_examples(setup.dataset, 'train', images)
    batch, labels = setup.prepare(jnp.asarray(examples.images)), jnp.asarray(examples.labels)
    measure = jax.jit(functools.partial(_measure, setup))
    chain = isinstance(setup.model, VGG)
    found = []
    for beta, scale in settings:
        # The state and the batch are arguments: XLA would fold large constants while it compiles.
        variables = state.variables | {'surrogate': beta, 'scale': like_beta(scale, state.scale)}
        found.append(_layers(jax.device_get(measure(variables, batch, labels)), beta, chain))
    return found


def _measure(setup: Setup, variables: dict[str, PyTree], batch: Array, labels: Array) -> _Passed:
    """Passes a batch forth and back and measures in every layer what arrives there."""
    settings, model = setup.settings, cast(SpikingNetwork, setup.model)
    # A static image at each step, as spikes are, or the first layer would get one gradient for all of them.
    frames = batch if batch.ndim == 5 else jnp.broadcast_to(batch, (model.time_steps, *batch.shape))
    loss = objective.make_loss(setup.config.loss, len(setup.dataset.class_names))
    mutable = ['batch_stats', *{'membrane', 'currents', 'firing_rate', settings.statistics}]

    def loss_of(probes: PyTree) -> tuple[Array, PyTree]:
        logits, updates = model.apply({**variables, 'probes': probes}, frames, train=True, mutable=mutable)
        return jnp.sum(loss(logits, labels)), updates

    shapes = jax.eval_shape(lambda: model.apply(variables, frames, train=True, mutable=['probes', 'batch_stats'])[1])
    probes = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes['probes'])
    gradients, measured = jax.grad(loss_of, has_aux=True)(probes)

    beta, steps = variables['surrogate'], len(frames)
    of_probe = lambda name: like_beta(_named(gradients, name), beta)
    norms = lambda tree: vector('norms', jax.tree.map(_norms, tree, beta), beta)
    d_currents, d_spikes = of_probe('probe_currents'), of_probe('probe_spikes')
    summed = norms(jax.tree.map(lambda leaf: jnp.sum(leaf, 0, keepdims=True), d_spikes))
    # Mean over the pairs of different steps, from the sum over all pairs.
    correlation = (jnp.square(summed / norms(d_spikes)) - 1) / max(steps - 1, 1)

    seen_by_rules = {name: measured[name] for name in (settings.statistics, 'currents', 'firing_rate')}
    signals = signals_of(Observed(params=variables['params'], **seen_by_rules), beta, settings)
    membrane = cast(MembraneStats, stats_vector(measured['membrane'], beta))
    seen, rest = in_vectors(signals, beta, gradients_of(settings))
    width, height = vector('beta', beta, beta), vector('scale', like_beta(variables['scale'], beta), beta)
    predict = lambda **fields: gain(seen, width, height, **(rest | fields))
    return _Passed(
        width,
        height,
        membrane.mean,
        membrane.variance,
        rest['currents'],
        rest['firing_rate'],
        correlation if steps > 1 else jnp.full_like(correlation, jnp.nan),
        predict(),
        predict(correlation=correlation),
        norms(d_currents),
        norms(d_spikes),
    )


def _norms(gradient: Array, beta: Array) -> Array:
    """Norm of a gradient, or of each channel of it, of the shape of beta; also where its squares would underflow."""
    gradient = gradient.astype(at_least_float32(gradient.dtype))
    largest = jnp.max(jnp.abs(gradient))
    largest = jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(jnp.sum(jnp.square(gradient / largest), tuple(range(gradient.ndim - beta.ndim))))


def _layers(passed: _Passed, beta: PyTree, chain: bool) -> Layers:
    """Makes numbers for each layer of those for each beta."""
    ends = np.cumsum([np.size(leaf) for leaf in jax.tree.leaves(beta)])[:-1]
    layers = [_Passed(*each) for each in zip(*(np.split(np.float64(values), ends) for values in passed), strict=True)]
    backward = [np.square(layer.d_currents) * layer.currents for layer in layers]
    forward = [np.square(layer.d_spikes) * layer.firing_rate * (1 - layer.firing_rate) for layer in layers]

    def gains_of(layer: _Passed, backward: np.ndarray, forward: np.ndarray) -> tuple[float, ...]:
        defined = np.isfinite(layer.predicted) & (forward > 0)
        weight = forward[defined] / np.sum(forward[defined])
        values = layer.predicted[defined], layer.informed[defined], backward[defined] / forward[defined]
        return tuple(float(np.sum(weight * value)) if defined.any() else np.nan for value in values)

    means = [[float(np.mean(values)) for values in layer[:7]] for layer in layers]
    gains = [gains_of(*each) for each in zip(layers, backward, forward, strict=True)]
    out, into = np.array([values.sum() for values in forward]), np.array([values.sum() for values in backward])
    between = np.full(len(layers), np.nan)
    if chain:
        np.divide(out[:-1], into[1:], out=between[:-1], where=into[1:] > 0)
    return Layers(*[*np.transpose(means), *np.transpose(gains), between])


def _named(tree: PyTree, name: str) -> PyTree:
    """The leaves of a name, of a collection that has several in a layer."""
    return unflatten_dict({path: leaf for path, leaf in flatten_dict(tree).items() if path[-1] == name})


def settings_of(state: TrainState, betas: Sequence[float]) -> dict[str, tuple[PyTree, PyTree]]:
    """Lists widths and heights to look at: one beta for all layers at height 1, and the run's own where it has others.

    Args:
      state: of the network.
      betas: width parameters, each for all layers.

    Returns:
      Beta and scale, each laid out like `state.surrogate`, by a name: 'beta 0.25', or `AS_RUN`.
    """
    own = state.surrogate
    scale = like_beta(state.scale, own)
    filled = lambda value: jax.tree.map(lambda leaf: jnp.full_like(leaf, value), own)
    settings = {f'beta {beta:g}': (filled(beta), filled(1)) for beta in betas}
    values = [{float(value) for leaf in jax.tree.leaves(tree) for value in np.ravel(leaf)} for tree in (own, scale)]
    if not any(values == [{float(np.float32(beta))}, {1.0}] for beta in betas):
        settings[AS_RUN] = own, scale
    return settings


def errors(layers: Sequence[Layers]) -> np.ndarray:
    """How far predicted growth factors are from the measured ones, as shares of these, where both are defined.

    Args:
      layers: of any settings.

    Returns:
      |predicted / measured - 1| of each layer at each setting.
    """
    ratio = np.concatenate([np.sqrt(each.predicted / each.measured) for each in layers])
    return np.abs(ratio[np.isfinite(ratio)] - 1)
