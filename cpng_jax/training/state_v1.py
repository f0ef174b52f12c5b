"""States as version 0.1 saved them, for its checkpoints: every run had the recorder of Algorithm 1."""

from typing import Any

from flax import struct

from cpng_jax.control.cpng import CPNGState
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime.checkpoint_reader import Layout
from cpng_jax.training import state as today

PyTree = Any


class EpochTotals(struct.PyTreeNode):
    """Sums over the steps of the running epoch; `membrane` is the one collection of statistics."""

    steps: Array
    loss: Array
    correct: Array
    firing_rate: PyTree
    membrane: PyTree


class TrainState(struct.PyTreeNode):
    """The whole state of a run; `cpng` is what Algorithm 1 remembers, whether or not it set beta."""

    step: Array
    params: PyTree
    batch_stats: PyTree
    surrogate: PyTree
    opt_state: PyTree
    cpng: CPNGState
    epoch: EpochTotals


def before(state: today.TrainState) -> TrainState:
    """Lays a state of today out as version 0.1 would have saved it.

    Args:
      state: arrays, or their shapes; one collection of statistics is measured, as there was.

    Returns:
      The same leaves; beta, which has the shapes of the recorder, in its place.
    """
    epoch, (membrane, *_) = state.epoch, state.epoch.observed.values()
    return TrainState(
        state.step,
        state.params,
        state.batch_stats,
        state.surrogate,
        state.opt_state,
        CPNGState(state.surrogate),
        EpochTotals(epoch.steps, epoch.loss, epoch.correct, epoch.firing_rate, membrane),
    )


def upgrade(old: TrainState, target: today.TrainState) -> today.TrainState:
    """Makes a state of today of one that version 0.1 saved.

    Args:
      old: what was read.
      target: a state of today, of the same run.

    Returns:
      The state; a recorder that the rule of the run does not use is dropped.
    """
    (collection, *_) = target.epoch.observed
    epoch = old.epoch
    return today.TrainState(
        old.step,
        old.params,
        old.batch_stats,
        old.surrogate,
        old.opt_state,
        old.cpng if isinstance(target.control, CPNGState) else target.control,
        today.EpochTotals(epoch.steps, epoch.loss, epoch.correct, epoch.firing_rate, {collection: epoch.membrane}),
    )


LAYOUT = Layout(before, upgrade)
