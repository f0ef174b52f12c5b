"""Calibration of weights: each layer is trained to answer, in T steps, as that of the ANN does (advanced pipeline).

Li et al. (2021), Sec. 4.3. A layer is taken by itself: it is given the mean over time of what the layers before it
answer, these being calibrated already, and its own answer is rounded and clipped as T steps would.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from cpng_jax.convert.calibration import Said
from cpng_jax.convert.means import Measure
from cpng_jax.convert.network import Activation, Variables, parameter, with_params
from cpng_jax.convert.thresholds import clipped_and_floored
from cpng_jax.nn.convolution import convolve
from cpng_jax.nn.surrogate import Array


class Training(NamedTuple):
    """How the weights of a layer are trained; the defaults are those of the published code of 2021.

    Attributes:
      iterations: steps of SGD.
      batch_size: examples of each.
      learning_rate: at the start; a cosine brings it to 0.
      momentum: of SGD.
    """

    iterations: int = 5000
    batch_size: int = 32
    learning_rate: float = 1e-5
    momentum: float = 0.9


def linear(x: Array, kernel: Array, answers: tuple[int, ...]) -> Array:
    """A convolution as `layers.Conv` does it, or the product of a fully connected layer.

    Args:
      x: `[B, H, W, C]`, or `[B, features]`.
      kernel: of the layer.
      answers: shape of what comes out, which tells the stride.

    Returns:
      That shape.
    """
    if kernel.ndim == 2:
        return x @ kernel
    edge, stride = kernel.shape[0], -(-x.shape[1] // answers[1])
    padding = ((edge // 2, edge // 2),) * 2
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return convolve(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


def calibrate_weights(
    ann: Measure,
    snn: Measure,
    ann_variables: Variables,
    variables: Variables,
    images: Sequence[Array],
    layers: Sequence[Activation],
    time_steps: int,
    *,
    training: Training,
    key: Array,
    say: Said,
) -> Variables:
    """Trains the weights of each layer to answer as the ANN does; biases, thresholds and shifts stay.

    Args:
      ann: measures the ANN.
      snn: measures the network that spikes.
      ann_variables: collections of the ANN.
      variables: those of the network that spikes.
      images: batches of one size, in the form that networks take; the layer learns from all of them.
      layers: in the order that they run in.
      time_steps: T.
      training: how a layer is trained.
      key: of the order of the examples.
      say: told of each layer.

    Returns:
      The collections, with other weights.
    """
    targets: dict[str, list[Array]] = {layer.path: [] for layer in layers}
    for batch in images:
        found = ann(ann_variables, batch).answers
        for path, of_batch in targets.items():
            of_batch.append(found[path])
    for index, (layer, order) in enumerate(zip(layers, jax.random.split(key, len(layers)), strict=True)):
        wanted = jnp.concatenate(targets.pop(layer.path))
        means = [_of_layer(snn, variables, batch, layer) for batch in images]
        inputs, currents = (jnp.concatenate(parts) for parts in zip(*means, strict=True))
        name = f'{layer.weights}/kernel'
        kernel, threshold = parameter(variables, name), parameter(variables, f'{layer.path}/threshold')
        # Theirs has no shift inside. What else is added, biases and other branches, is in what was measured.
        rest = currents - parameter(variables, f'{layer.path}/shift')
        data = _Layer(inputs, rest, wanted, threshold)
        trained, before, after = _train(data, kernel, time_steps, training, order)
        say(f'weights of {layer.path}, {index + 1} of {len(layers)}: square error {before:.4g}, then {after:.4g}')
        variables = with_params(variables, {name: trained})
    return variables


class _Layer(NamedTuple):
    """What a layer is given and is to answer, example by example."""

    inputs: Array
    currents: Array
    wanted: Array
    threshold: Array


def _of_layer(snn: Measure, variables: Variables, images: Array, layer: Activation) -> tuple[Array, Array]:
    means = snn(variables, images)
    return means.inputs[layer.weights], means.currents[layer.path]


def _train(data: _Layer, kernel: Array, time_steps: int, training: Training, key: Array) -> tuple[Array, float, float]:
    """The trained kernel, and the error of all examples before and after; the better of both kernels is taken."""
    optimizer = optax.sgd(
        optax.schedules.cosine_decay_schedule(training.learning_rate, training.iterations), training.momentum
    )

    def loss(change: Array, batch: _Layer) -> Array:
        # The measured currents are those of the kernel as it was: what a change adds to them is linear in it.
        x = batch.currents + linear(batch.inputs, change, batch.wanted.shape)
        return jnp.mean(
            jnp.sum(jnp.square(clipped_and_floored(x, batch.threshold, time_steps) - batch.wanted), axis=-1)
        )

    @jax.jit
    def run(data: _Layer, change: Array, key: Array) -> Array:
        def step(carry: tuple[Array, optax.OptState], chosen: Array) -> tuple[tuple[Array, optax.OptState], None]:
            change, state = carry
            batch = _Layer(data.inputs[chosen], data.currents[chosen], data.wanted[chosen], data.threshold)
            updates, state = optimizer.update(jax.grad(loss)(change, batch), state)
            return (optax.apply_updates(change, updates), state), None  # pyright: ignore[reportReturnType]

        size = min(training.batch_size, len(data.inputs))
        draw = lambda key: jax.random.choice(key, len(data.inputs), (size,), replace=False)
        orders = jax.lax.map(draw, jax.random.split(key, training.iterations))
        return jax.lax.scan(step, (change, optimizer.init(change)), orders)[0][0]

    none = jnp.zeros_like(kernel)
    change = run(data, none, key)
    error = jax.jit(loss)
    before, after = (float(error(each, data)) for each in (none, change))
    # Steps too long for a layer would leave it worse than it was.
    return (kernel + change, before, after) if after < before else (kernel, before, before)
