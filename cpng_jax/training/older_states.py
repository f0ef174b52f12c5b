"""States as older versions saved them, for their checkpoints, from the latest of them to the first."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from cpng_jax.control.cpng import CPNGState
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime.checkpoint_reader import Layout
from cpng_jax.training import state as today

PyTree = Any

# What layers have measured since surrogate gradients have a height.
_MEASURED_SINCE = ('currents', 'firing_rate')


class WithoutHeight(struct.PyTreeNode):
    """The whole state of a run while the area of the surrogate gradients was 1: there is no `scale`."""

    step: Array
    params: PyTree
    batch_stats: PyTree
    surrogate: PyTree
    opt_state: PyTree
    control: PyTree
    epoch: today.EpochTotals


def without_height(state: today.TrainState) -> WithoutHeight:
    """Lays a state of today out as it was saved before surrogate gradients had a height.

    Args:
      state: arrays, or their shapes.

    Returns:
      The leaves that there were.
    """
    observed = {name: tree for name, tree in state.epoch.observed.items() if name not in _MEASURED_SINCE}
    return WithoutHeight(
        state.step,
        state.params,
        state.batch_stats,
        state.surrogate,
        state.opt_state,
        state.control,
        state.epoch.replace(observed=observed),
    )


def with_height(old: WithoutHeight, target: today.TrainState) -> today.TrainState:
    """Makes a state of today of one without heights.

    Args:
      old: what was read.
      target: a state of today, of the same run: arrays, or their shapes and shardings.

    Returns:
      The state: heights are 1, and what was not measured is 0 until the next step.
    """

    def full(value: float) -> Any:
        return lambda leaf: jax.device_put(jnp.full(leaf.shape, value, leaf.dtype), leaf.sharding)

    since = {
        name: jax.tree.map(full(0), tree) for name, tree in target.epoch.observed.items() if name in _MEASURED_SINCE
    }
    return today.TrainState(
        old.step,
        old.params,
        old.batch_stats,
        old.surrogate,
        jax.tree.map(full(1), target.scale),
        old.opt_state,
        old.control,
        old.epoch.replace(observed=old.epoch.observed | since),
    )


class EpochTotals(struct.PyTreeNode):
    """Sums over the steps of the running epoch of version 0.1; `membrane` is the one collection of statistics."""

    steps: Array
    loss: Array
    correct: Array
    firing_rate: PyTree
    membrane: PyTree


class TrainState(struct.PyTreeNode):
    """The whole state of a run of 0.1; `cpng` is what Algorithm 1 remembers, whether or not it set beta."""

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
      state: arrays, or their shapes; one collection of statistics is measured for chi, as there was.

    Returns:
      The same leaves; beta, which has the shapes of the recorder, in its place.
    """
    epoch = state.epoch
    ((_, membrane),) = _of_chi(epoch)
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
    ((collection, _),) = _of_chi(target.epoch)
    epoch = old.epoch
    control = old.cpng if isinstance(target.control, CPNGState) else target.control
    totals = today.EpochTotals(epoch.steps, epoch.loss, epoch.correct, epoch.firing_rate, {collection: epoch.membrane})
    state = WithoutHeight(old.step, old.params, old.batch_stats, old.surrogate, old.opt_state, control, totals)
    return with_height(state, target)


def _of_chi(epoch: today.EpochTotals) -> list[tuple[str, PyTree]]:
    """The one collection that chi is taken from, by its name, of a rule that needs no other."""
    return [(name, tree) for name, tree in epoch.observed.items() if name not in _MEASURED_SINCE][:1]


LAYOUTS = (Layout(without_height, with_height), Layout(before, upgrade))
