"""What training carries from step to step and what a checkpoint holds."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from cpng_jax.control.controller import Controller
from cpng_jax.nn.statistics import nothing_measured
from cpng_jax.nn.surrogate import Array

PyTree = Any


class EpochTotals(struct.PyTreeNode):
    """Sums over the steps of the running epoch.

    They are kept on the device, so that reading them out now and then costs no step any time, and in the
    checkpoint, so that a run taken up within an epoch reports the whole epoch.

    Attributes:
      steps: number of steps, int32.
      loss: sum of the steps' mean losses, in nats.
      correct: number of examples classified correctly, int32.
      firing_rate: mean over the steps of each layer's share of spikes, a scalar in the place of each beta.
      observed: what the layers measure by the name of its collection, each laid out like beta: of the last batch or of
        the epoch so far.
    """

    steps: Array
    loss: Array
    correct: Array
    firing_rate: PyTree
    observed: dict[str, PyTree]

    @classmethod
    def zeros(cls, surrogate: PyTree, observe: Sequence[str] = ('membrane',)) -> 'EpochTotals':
        """Starts an epoch.

        Args:
          surrogate: beta of the layers.
          observe: collections of statistics that are measured.

        Returns:
          The sums, all 0.
        """
        # Each leaf is an array of its own: the training step donates its buffers, and one cannot be donated twice.
        observed = {collection: nothing_measured(collection, surrogate) for collection in observe}
        zero = lambda dtype=jnp.float32: jnp.zeros((), dtype)
        return cls(zero(jnp.int32), zero(), zero(jnp.int32), jax.tree.map(lambda _: zero(), surrogate), observed)


class TrainState(struct.PyTreeNode):
    """The whole state of a run; randomness needs none, since it depends on seed and step alone.

    Attributes:
      step: number of updates made, int32.
      params: weights.
      batch_stats: running statistics of the norms.
      surrogate: width parameter beta of the surrogate gradient of each layer, or of each channel of it.
      scale: its height, likewise.
      opt_state: state of the optimiser.
      control: state of the controller that sets beta.
      epoch: sums over the running epoch.
    """

    step: Array
    params: PyTree
    batch_stats: PyTree
    surrogate: PyTree
    scale: PyTree
    opt_state: optax.OptState
    control: PyTree
    epoch: EpochTotals

    @property
    def variables(self) -> dict[str, PyTree]:
        """The collections that the network is applied with."""
        return {name: getattr(self, name) for name in ('params', 'batch_stats', 'surrogate', 'scale')}


def create(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    controller: Controller,
    example: Array,
    seed: int,
    *,
    observe: Sequence[str] = ('membrane',),
) -> TrainState:
    """Initialises a run.

    Args:
      model: the network.
      optimizer: from optax.
      controller: what sets beta.
      example: a batch of images of the right shape; only the shape counts.
      seed: of the initial weights.
      observe: collections of statistics that are measured.

    Returns:
      The state at step 0.
    """
    # Jitted, so that only the weights are computed and not the outputs.
    return begin(jax.jit(model.init)(jax.random.key(seed), example), optimizer, controller, observe=observe)


def begin(
    variables: Mapping[str, PyTree],
    optimizer: optax.GradientTransformation,
    controller: Controller,
    *,
    observe: Sequence[str] = ('membrane',),
) -> TrainState:
    """Lays out a run that starts from given variables; all else is at its beginning.

    Args:
      variables: collections of the network: `params`, `batch_stats` where it has norms, `surrogate` and `scale` where
        it spikes.
      optimizer: from optax.
      controller: what sets beta.
      observe: collections of statistics that are measured.

    Returns:
      The state at step 0.
    """
    surrogate = variables.get('surrogate', {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables['params'],
        batch_stats=variables.get('batch_stats', {}),
        surrogate=surrogate,
        scale=variables.get('scale', {}),
        opt_state=optimizer.init(variables['params']),
        control=controller.init(surrogate),
        epoch=EpochTotals.zeros(surrogate, observe),
    )


@jax.jit
def all_finite(state: TrainState) -> Array:
    """Whether weights, running statistics, optimiser and loss hold neither NaN nor infinity; scalar, boolean.

    A spike is 0 or 1 even where the potential is NaN, so the loss alone may look sound in a network that has diverged.
    """
    leaves = jax.tree.leaves((state.params, state.batch_stats, state.opt_state, state.epoch.loss))
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
