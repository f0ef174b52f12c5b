"""How training sets the surrogate gradients: it shows the controller what that needs, and takes what comes back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from cpng_jax.control.controller import MEASURED, Controller, FirstLayer, Observed, Report, Settings, Surrogates
from cpng_jax.control.effective_domain import chi_by_layer
from cpng_jax.control.gain import gradients_of, signals_of
from cpng_jax.control.gradient_gain import gain_by_layer
from cpng_jax.control.layer_tree import by_layer, layer_paths, like_beta
from cpng_jax.models.summary import summarise
from cpng_jax.nn.surrogate import Array, ArrayLike
from cpng_jax.runtime.sharding import over_batch, replicated
from cpng_jax.training.state import TrainState
from cpng_jax.training.step import Batch, Loss, Prepare, batch_loss, compiler_options, measurements, micro_batches

Row = dict[str, Any]

EndOfEpoch = Callable[[TrainState, Batch], tuple[TrainState, Row]]
"""Maps the state at the end of an epoch, and a batch of training data, to the state with the new surrogate gradients
and to a part of the epoch's row in the metrics: beta, scale, chi, gain, firing rate, what the rule tells, by layer, and
the layers it skipped; nothing of an ANN."""

Start = Callable[[TrainState, Batch], TrainState]
"""Maps the state before the first step, and a batch of training data, to the state with the surrogate gradients that
the controller starts with."""


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
    """Sets the surrogate gradients once. Pure, and jittable.

    Args:
      controller: what sets beta.
      state: with at least one step since the epoch began.
      updates: which update this is, from 1.
      first_layer: of the network, where the controller needs it.

    Returns:
      The state with the new surrogate gradients, and the report.
    """
    observed = _observed(controller.needs, state, state.epoch.observed, updates)._replace(first_layer=first_layer)
    surrogates, control, report = controller.update(observed, _surrogates(state), state.control)
    return _with(state, surrogates, control), report


def after_step(controller: Controller, state: TrainState) -> TrainState:
    """Sets the surrogate gradients at the end of a training step, as part of it.

    Args:
      controller: what sets them.
      state: after the update of the weights.

    Returns:
      The state with the new surrogate gradients.
    """
    return update(controller, state, state.step)[0]


def _surrogates(state: TrainState) -> Surrogates:
    """The surrogate gradients of a state, both laid out like beta."""
    return Surrogates(state.surrogate, like_beta(state.scale, state.surrogate))


def _with(state: TrainState, surrogates: Surrogates, control: Any) -> TrainState:
    """The state with other surrogate gradients, laid out as the collections are."""
    scale = like_beta(surrogates.scale, state.scale)
    return state.replace(surrogate=surrogates.beta, scale=scale, control=control)


def _observed(needs: Sequence[str], state: TrainState, measured: Mapping[str, Any], updates: ArrayLike) -> Observed:
    fields: dict[str, Any] = {**measured, 'params': state.params}
    return Observed(updates=updates, **{name: fields[name] for name in needs if name in fields})


def make_start(controller: Controller, model: nn.Module, mesh: Mesh, prepare: Prepare, accumulate: int = 1) -> Start:
    """Makes what lets the controller set the surrogate gradients before the first step.

    Args:
      controller: what sets them; where it starts by what layers measure, a batch goes through the network once.
      model: the network.
      mesh: devices that share the batch.
      prepare: brings the images of a batch into the form that the network takes.
      accumulate: micro-batches of a training step; one goes through the network, so that no more memory is needed.

    Returns:
      See `Start`; each leaf of the state stays where it was.
    """
    if controller.start is None:
        return lambda state, batch: state
    begin, measured = controller.start, [name for name in MEASURED if name in controller.start_needs]

    def start(state: TrainState, batch: Batch) -> tuple[Any, ...]:
        images = _one_micro_batch(prepare(batch['image']), accumulate)
        seen = measurements(model, state.variables, images, measured) if measured else {}
        changed = _with(
            state, *begin(_observed(controller.start_needs, state, seen, 0), _surrogates(state), state.control)
        )
        return changed.surrogate, changed.scale, changed.control

    # The state is taken from where it lives.
    jitted = jax.jit(start, in_shardings=(None, over_batch(mesh)), out_shardings=replicated(mesh))

    def started(state: TrainState, batch: Batch) -> TrainState:
        surrogate, scale, control = jitted(state, batch)
        return state.replace(surrogate=surrogate, scale=scale, control=control)

    return started


def _one_micro_batch(images: Array, accumulate: int) -> Array:
    return micro_batches(images, accumulate, images.ndim - 4)[0]  # events have T before the batch


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
    """Makes what sets the surrogate gradients between epochs, and says what became of them.

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
        if not jax.tree.leaves(state.surrogate):
            return state, {}
        chi = chi_by_layer(
            state.epoch.observed[settings.statistics],
            state.surrogate,
            v_th=settings.v_th,
            surrogate=settings.surrogate,
            interval=settings.interval,
        )
        gain = _gain(state, settings)
        updates = int(state.step) // steps_per_update
        updated, report = update(controller, state, updates) if look is None else look(state, batch, updates)
        if settings.every == 'epoch':
            state = updated
        row = {
            'beta': by_layer(state.surrogate),
            'scale': by_layer(like_beta(state.scale, state.surrogate)),
            'chi': by_layer(chi),
            'gain': dict.fromkeys(layer_paths(state.surrogate)) if gain is None else by_layer(gain),
            'chi_min': dict.fromkeys(layer_paths(state.surrogate)),  # of rules that aim at none
            'firing_rate': by_layer(state.epoch.firing_rate),
            'skipped': report.skipped_layers(),
        }
        return state, row | {name: by_layer(tree) for name, tree in controller.numbers(state.control).items()}

    return end_of_epoch


def _gain(state: TrainState, settings: Settings) -> Any:
    """The gain of each layer at what it has measured, laid out like beta; None where that does not tell it."""
    if not settings.fixed_threshold or 'currents' not in state.epoch.observed:
        return None
    needs = (settings.statistics, 'currents', 'firing_rate', 'params')
    signals = signals_of(_observed(needs, state, state.epoch.observed, 0), state.surrogate, settings)
    beta, scale = _surrogates(state)
    return gain_by_layer(signals, beta, scale, gradients_of(settings))


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
        images = _one_micro_batch(prepare(batch['image']), accumulate)
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
