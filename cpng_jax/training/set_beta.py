"""How training sets beta: it shows the controller what that needs, and puts what comes back into the state."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from cpng_jax.control.controller import MEASURED, Controller, FirstLayer, Observed, Report, Settings
from cpng_jax.control.effective_domain import chi_by_layer
from cpng_jax.control.layer_tree import by_layer, layer_paths
from cpng_jax.models.summary import summarise
from cpng_jax.nn.surrogate import Array, ArrayLike
from cpng_jax.runtime.sharding import over_batch, replicated
from cpng_jax.training.state import TrainState
from cpng_jax.training.step import Batch, Loss, Prepare, batch_loss, compiler_options, micro_batches

Row = dict[str, Any]

EndOfEpoch = Callable[[TrainState, Batch], tuple[TrainState, Row]]
"""Maps the state at the end of an epoch, and a batch of training data, to the state with the new beta and to a part
of the epoch's row in the metrics: beta, chi, firing rate, what the rule tells, by layer, and the layers it skipped."""


def collections(controller: Controller, *others: str) -> tuple[str, ...]:
    """Names the collections of statistics that the layers have to measure.

    Args:
      controller: what sets beta.
      *others: collections that are wanted besides.

    Returns:
      The names, each once.
    """
    return tuple(name for name in MEASURED if name in (*controller.needs, *others))


def update(
    controller: Controller, state: TrainState, updates: ArrayLike, first_layer: FirstLayer | None = None
) -> tuple[TrainState, Report]:
    """Sets beta once. Pure, and jittable.

    Args:
      controller: what sets beta.
      state: with at least one step since the epoch began.
      updates: which update this is, from 1.
      first_layer: of the network, where the controller needs it.

    Returns:
      The state with the new beta, and the report.
    """
    observed = _observed(controller, state, updates)._replace(first_layer=first_layer)
    beta, control, report = controller.update(observed, state.surrogate, state.control)
    return state.replace(surrogate=beta, control=control), report


def after_step(controller: Controller, state: TrainState) -> TrainState:
    """Sets beta at the end of a training step, as part of it.

    Args:
      controller: what sets beta.
      state: after the update of the weights.

    Returns:
      The state with the new beta.
    """
    return update(controller, state, state.step)[0]


def start(controller: Controller, state: TrainState) -> TrainState:
    """Lets the controller set beta before the first step.

    Args:
      controller: what sets beta.
      state: at step 0.

    Returns:
      The state, each leaf where it was.
    """
    if controller.start is None:
        return state
    observed = Observed(params=state.params if 'params' in controller.needs else None)
    changed = controller.start(observed, state.surrogate, state.control)
    before = (state.surrogate, state.control)
    beta, control = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), changed, before)
    return state.replace(surrogate=beta, control=control)


def _observed(controller: Controller, state: TrainState, updates: ArrayLike) -> Observed:
    fields: dict[str, Any] = {**state.epoch.observed, 'params': state.params}
    return Observed(updates=updates, **{name: fields[name] for name in controller.needs if name in fields})


def make_end_of_epoch(
    controller: Controller,
    settings: Settings,
    model: nn.Module,
    example: Array,
    mesh: Mesh,
    *,
    steps_per_epoch: int,
    prepare: Prepare,
    loss: Loss,
    accumulate: int = 1,
) -> EndOfEpoch:
    """Makes what sets beta between epochs, and says what became of it.

    Args:
      controller: what sets beta.
      settings: of the run: where the controller works at every batch, between epochs it only reports.
      model: the network.
      example: an input of the network; only the shape counts.
      mesh: devices that share the batch.
      steps_per_epoch: training steps in an epoch.
      prepare: brings the images of a batch into the form that the network takes.
      loss: of each example, from logits `[T, B, classes]` and labels.
      accumulate: micro-batches that a training step accumulates gradients over; of a batch that the controller looks
        at, one is taken, so that no more memory is needed.

    Returns:
      See `EndOfEpoch`.
    """
    steps_per_update = steps_per_epoch // settings.updates_per_epoch
    look = None
    if 'first_layer' in controller.needs:
        look = _with_first_layer(controller, model, example, mesh, prepare, loss, accumulate)

    def end_of_epoch(state: TrainState, batch: Batch) -> tuple[TrainState, Row]:
        chi = chi_by_layer(
            state.epoch.observed[settings.statistics],
            state.surrogate,
            v_th=settings.v_th,
            surrogate=settings.surrogate,
            interval=settings.interval,
        )
        updates = int(state.step) // steps_per_update
        updated, report = update(controller, state, updates) if look is None else look(state, batch, updates)
        if settings.every == 'epoch':
            state = updated
        row = {
            'beta': by_layer(state.surrogate),
            'chi': by_layer(chi),
            'chi_min': dict.fromkeys(layer_paths(state.surrogate)),  # of rules that aim at none
            'firing_rate': by_layer(state.epoch.firing_rate),
            'skipped': report.skipped_layers(),
        }
        return state, row | {name: by_layer(tree) for name, tree in controller.numbers(state.control).items()}

    return end_of_epoch


def _with_first_layer(
    controller: Controller,
    model: nn.Module,
    example: Array,
    mesh: Mesh,
    prepare: Prepare,
    loss: Loss,
    accumulate: int,
) -> Callable[[TrainState, Batch, int], tuple[TrainState, Report]]:
    """An update by a controller that tries the weights of the first layer on a batch."""
    path = first_kernel(model, example)

    def look(state: TrainState, batch: Batch, updates: Array) -> tuple[Any, Report]:
        images = prepare(batch['image'])
        images = micro_batches(images, accumulate, images.ndim - 4)[0]  # events have T before the batch
        labels = micro_batches(batch['label'], accumulate)[0]
        others: Any = flatten_dict(state.params)

        def loss_of(weights: Array, beta: Any) -> Array:
            params = unflatten_dict({**others, path: weights})
            return batch_loss(model, {**state.variables, 'params': params, 'surrogate': beta}, images, labels, loss)

        changed, report = update(controller, state, updates, FirstLayer(others[path], loss_of))
        return (changed.surrogate, changed.control), report

    # The state is taken from where it lives.
    jitted = jax.jit(
        look,
        in_shardings=(None, over_batch(mesh), None),
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(mesh),
    )

    def with_first_layer(state: TrainState, batch: Batch, updates: int) -> tuple[TrainState, Report]:
        (beta, control), report = jitted(state, batch, updates)
        return state.replace(surrogate=beta, control=control), report

    return with_first_layer


def first_kernel(model: nn.Module, example: Array) -> tuple[str, ...]:
    """Names the weights that the input of a network meets first, by their path among its parameters.

    Args:
      model: the network.
      example: an input; only the shape counts.

    Returns:
      The keys of the path.
    """
    layer = next(layer for layer in summarise(model, example).layers if layer.kind in ('conv', 'dense'))
    return (*layer.path.split('/'), layer.kind, 'kernel')
