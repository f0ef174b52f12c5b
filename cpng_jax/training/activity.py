"""What a trained network costs on test images: spikes, and the additions that they make."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from cpng_jax.data.pipeline import eval_batches
from cpng_jax.models.summary import Summary, input_density, summarise
from cpng_jax.training.setup import Setup
from cpng_jax.training.state import TrainState

# Test images that are looked at.
_MEASURED = 64


class Activity(NamedTuple):
    """What a network does for one image.

    Attributes:
      firing_rate: share of neurons and time steps that spike; None of an ANN.
      operations: additions that spikes make, inputs of zero costing nothing; None of an ANN.
      multiply_adds: of dense arithmetic, over all time steps.
    """

    firing_rate: float | None
    operations: float | None
    multiply_adds: int


def activity(setup: Setup, state: TrainState, images: int = _MEASURED) -> Activity:
    """Measures what a network does for a test image, on average over some.

    Args:
      setup: from `build`.
      state: of the trained network.
      images: how many are looked at, the first of the test split.

    Returns:
      The `Activity`.
    """
    frames = _frames(setup, images)
    counted = summarise(setup.model, setup.example, input_density(setup.model, state.variables, frames))
    if not counted.beta_layers:
        return Activity(None, None, counted.multiply_adds)
    _, found = jax.jit(lambda variables, x: setup.model.apply(variables, x, mutable=['firing_rate']))(
        state.variables, frames
    )
    rates: dict[Any, Any] = flatten_dict(found['firing_rate'])
    by_path = {'/'.join(path[:-1]): float(jnp.mean(rate)) for path, rate in rates.items()}
    return Activity(_over_neurons(counted, by_path), counted.operations, counted.multiply_adds)


def _over_neurons(counted: Summary, rates: dict[str, float]) -> float:
    """The mean over all neurons of rates by layer."""
    neurons = {layer.path: math.prod(layer.shape[1:]) for layer in counted.layers if layer.kind == 'lif'}
    return sum(rates[path] * count for path, count in neurons.items()) / sum(neurons.values())


def _frames(setup: Setup, images: int) -> Any:
    """The first test images, in the form that the network takes."""
    dataset = setup.dataset
    batch = next(eval_batches(dataset.test, min(images, len(dataset.test)), prepare=dataset.prepare))
    return setup.prepare(jnp.asarray(batch['image']))
