"""The jitted steps: one update of the weights, one batch of evaluation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from cpng_jax.control.layer_tree import like_beta
from cpng_jax.nn.losses import mean_output_cross_entropy
from cpng_jax.nn.scheduling import after
from cpng_jax.nn.statistics import join_layers
from cpng_jax.nn.surrogate import Array, ArrayLike
from cpng_jax.runtime.compiled import traced
from cpng_jax.runtime.sharding import over_batch, replicated
from cpng_jax.training.state import EpochTotals, TrainState

Batch = dict[str, Array]

# By default XLA:CPU starts everything as soon as it can, and so keeps ready from the forward pass on what the backward
# pass is to compute again: up to twice the memory of a step, and no less time. And it copies all weights for
# the update, since it does not look closely whether all that reads them comes before.
_CPU_OPTIONS: dict[str, str | bool] = {
    'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED',
    'xla_cpu_copy_insertion_use_region_analysis': True,
}


class EvalSums(NamedTuple):
    """Sums over the examples of a split.

    Attributes:
      loss: cross entropy, in nats.
      correct: number classified correctly.
      examples: number of examples.
    """

    loss: Array
    correct: Array
    examples: Array


class Gathered(NamedTuple):
    """What the examples of a step, or of a micro-batch of it, give: means, and the number classified correctly."""

    gradients: Any
    loss: Array
    correct: Array
    firing_rate: Any
    observed: Any


Loss = Callable[[Array, Array], Array]
Prepare = Callable[[Array], Array]
Mix = Callable[[Array, Array, Array], tuple[Array, Array]]
Noise = Callable[[Array, ArrayLike], dict[str, Array]]
EvalStep = Callable[[TrainState, Batch], EvalSums]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    prepare: Prepare,
    *,
    state_sharding: TrainState | None = None,
    loss: Loss = mean_output_cross_entropy,
    mix: Mix | None = None,
    noise: Noise | None = None,
    accumulate: int = 1,
    observe: Sequence[str] = ('membrane',),
    pool_statistics: bool = False,
    update_beta: Callable[[TrainState], TrainState] | None = None,
) -> jax.stages.Wrapped:
    """Compiles a training step.

    Args:
      model: the network.
      optimizer: from optax.
      mesh: devices that share the batch.
      prepare: brings images into the form that the network takes, see `models.inputs.network_input`.
      state_sharding: of the state, a state of shardings; replicated if not given.
      loss: of each example, from logits `[T, B, classes]` and labels.
      mix: changes images and labels of a batch, given the number of the step.
      noise: random numbers of the network, given the number of the step and of the micro-batch.
      accumulate: micro-batches of a batch that gradients are accumulated over, to need less memory. Gradients are those
        of the whole batch, but each micro-batch is normalised by itself.
      observe: collections of statistics that the layers measure.
      pool_statistics: keep the statistics of the epoch so far instead of those of the last batch.
      update_beta: sets beta after the update of the weights, for a rule that does so at every batch.

    Returns:
      Maps a `TrainState`, whose memory is reused, and a `Batch` to the next state.
    """

    @traced
    def step(state: TrainState, batch: Batch) -> TrainState:
        images, labels = batch['image'], batch['label']
        if mix is not None:
            images, labels = mix(images.astype(jnp.float32), labels, state.step)
        images = prepare(images)
        differentiate = functools.partial(_differentiate, model, loss, observe, noise, state)
        if accumulate == 1:
            batch_stats, whole = differentiate(state.batch_stats, 0, images, labels, batch['label'])
        else:
            examples = (images, images.ndim - 4), (labels, 0), (batch['label'], 0)  # events have T before the batch
            batches = jnp.arange(accumulate), *(micro_batches(array, accumulate, axis) for array, axis in examples)
            batch_stats, whole = _accumulate(differentiate, state.batch_stats, batches, accumulate)
        changes, opt_state = optimizer.update(whole.gradients, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, changes),
            batch_stats=batch_stats,
            opt_state=opt_state,
            epoch=_add_step(state.epoch, whole, pool_statistics),
        )
        if update_beta is None:
            return state
        # Last, or XLA puts the gradients of the weights off to the end as well.
        return update_beta(state.replace(epoch=after(state.epoch, state.params)))

    # One sharding stands for every leaf of its argument.
    home: Any = replicated(mesh) if state_sharding is None else state_sharding
    return jax.jit(
        step,
        in_shardings=(home, over_batch(mesh)),
        out_shardings=home,
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def _differentiate(
    model: nn.Module,
    loss: Loss,
    observe: Sequence[str],
    noise: Noise | None,
    state: TrainState,
    batch_stats: Any,
    micro_batch: ArrayLike,
    images: Array,
    labels: Array,
    true_labels: Array,
) -> tuple[Any, Gathered]:
    """Running statistics of the norms after some examples, normalised by themselves, and what these examples give."""

    def loss_of(params: Any) -> tuple[Array, tuple[Array, Any]]:
        variables = {**state.variables, 'params': params, 'batch_stats': batch_stats}
        mutable = ['batch_stats', 'firing_rate', *observe]
        rngs = None if noise is None else noise(state.step, micro_batch)
        logits, updates = model.apply(variables, images, train=True, mutable=mutable, rngs=rngs)
        return jnp.mean(loss(logits, labels)), (logits, updates)

    (value, (logits, updates)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    hits = jnp.sum(_hits(logits, true_labels), dtype=jnp.int32)
    # Laid out like beta, whatever the names that the layers measure under.
    found = lambda name: like_beta(updates.get(name, {}), state.surrogate)  # an ANN measures nothing
    measured, rates = {name: found(name) for name in observe}, jax.tree.map(jnp.mean, found('firing_rate'))
    return updates.get('batch_stats', {}), Gathered(gradients, value, hits, rates, measured)


def batch_loss(
    model: nn.Module, variables: dict[str, Any], images: Array, labels: Array, loss: Loss = mean_output_cross_entropy
) -> Array:
    """The mean loss of a batch as training sees it, normalised by itself; running statistics stay as they are.

    Args:
      model: the network.
      variables: its collections.
      images: in the form that the network takes, see `models.inputs.network_input`.
      labels: of the images.
      loss: of each example, from logits `[T, B, classes]` and labels.

    Returns:
      A scalar, in nats.
    """
    logits, _ = model.apply(variables, images, train=True, mutable=['batch_stats'])
    return jnp.mean(loss(logits, labels))


def measurements(model: nn.Module, variables: dict[str, Any], images: Array, names: Sequence[str]) -> dict[str, Any]:
    """What the layers measure of a batch as training sees it, normalised by itself; nothing is changed.

    Args:
      model: the network.
      variables: its collections.
      images: in the form that the network takes, see `models.inputs.network_input`.
      names: of the collections of measurements.

    Returns:
      Each of them by its name, laid out like beta.
    """
    _, found = model.apply(variables, images, train=True, mutable=['batch_stats', *names])
    return {name: like_beta(found[name], variables['surrogate']) for name in names}


def compiler_options(mesh: Mesh) -> dict[str, str | bool] | None:
    """Options with which XLA compiles a training step for the devices of a mesh; None for its defaults."""
    return _CPU_OPTIONS if mesh.devices.flat[0].platform == 'cpu' else None


def _hits(logits: Array, labels: Array) -> Array:
    """Which examples the outputs averaged over time classify correctly: int32, 0 or 1, `[B]`."""
    classes = jnp.argmax(jnp.mean(logits.astype(jnp.float32), axis=0), axis=-1)
    return (classes.astype(labels.dtype) == labels).astype(jnp.int32)


def micro_batches(array: Array, count: int, axis: int = 0) -> Array:
    """Splits the batch axis, so that every micro-batch has examples of every device.

    Args:
      array: `[..., B, ...]`.
      count: number of micro-batches.
      axis: of the batch.

    Returns:
      `[count, ..., B / count, ...]`.
    """
    # Rows next to each other, which a device holds, go to different micro-batches.
    batch = array.shape[axis]
    rows = array.reshape(*array.shape[:axis], batch // count, count, *array.shape[axis + 1 :])
    return jnp.moveaxis(rows, axis + 1, 0)


def _accumulate(
    differentiate: Callable[..., tuple[Any, Gathered]], batch_stats: Any, batches: tuple[Array, ...], count: int
) -> tuple[Any, Gathered]:
    """Gradient accumulation: micro-batches one after the other give the running statistics, and what a batch gives."""

    def step(carry: tuple[Any, Gathered, Array], examples: tuple[Array, ...]) -> tuple[Any, None]:
        batch_stats, so_far, done = carry
        batch_stats, new = differentiate(batch_stats, *examples)
        share = 1 / (done + 1)
        return (batch_stats, _join(so_far, new, share), done + 1), None

    first = jax.tree.map(lambda array: array[0], batches)
    _, shapes = jax.eval_shape(differentiate, batch_stats, *first)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (batch_stats, whole, _), _ = jax.lax.scan(
        step, (batch_stats, nothing, jnp.zeros((), jnp.float32)), batches, length=count
    )
    return batch_stats, whole


def _join(old: Gathered, new: Gathered, share: Array) -> Gathered:
    """Measurements of two sets of examples taken together, the second being `share` of the whole."""
    mean = lambda before, after: jax.tree.map(lambda a, b: a + (b - a) * share, before, after)
    return Gathered(
        gradients=mean(old.gradients, new.gradients),
        loss=mean(old.loss, new.loss),
        correct=old.correct + new.correct,
        firing_rate=mean(old.firing_rate, new.firing_rate),
        observed=join_layers(old.observed, new.observed, share),
    )


def _add_step(totals: EpochTotals, whole: Gathered, pool_statistics: bool) -> EpochTotals:
    """Adds a step to the epoch's sums."""
    steps = totals.steps + 1
    share = 1 / steps.astype(jnp.float32)
    observed = join_layers(totals.observed, whole.observed, share) if pool_statistics else whole.observed
    rates = jax.tree.map(lambda old, new: old + (new - old) * share, totals.firing_rate, whole.firing_rate)
    return EpochTotals(steps, totals.loss + whole.loss, totals.correct + whole.correct, rates, observed)


def make_eval_step(model: nn.Module, mesh: Mesh, prepare: Prepare) -> EvalStep:
    """Compiles an evaluation step.

    Args:
      model: the network.
      mesh: devices that share the batch.
      prepare: brings images into the form that the network takes, see `models.inputs.network_input`.

    Returns:
      Maps a state and a batch to the sums over the examples whose `weight` is 1.
    """

    @traced
    def step(variables: dict[str, Any], batch: Batch) -> EvalSums:
        logits: Any = model.apply(variables, prepare(batch['image']))
        losses, hits = mean_output_cross_entropy(logits, batch['label']), _hits(logits, batch['label'])
        weight = batch['weight']
        return EvalSums(jnp.sum(losses * weight), jnp.sum(hits.astype(weight.dtype) * weight), jnp.sum(weight))

    # The variables are taken from where they live.
    jitted = jax.jit(step, in_shardings=(None, over_batch(mesh)), out_shardings=replicated(mesh))

    def evaluate(state: TrainState, batch: Batch) -> EvalSums:
        return jitted(state.variables, batch)

    return evaluate
