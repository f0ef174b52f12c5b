"""The rule of Dspike: between epochs, take the width whose gradient points most nearly where finite differences do.

Li et al., "Differentiable Spike: Rethinking Gradient-Descent for Training Spiking Neural Networks", NeurIPS 2021.
Spikes have no useful derivative, but the loss has finite differences. Those of the weights of the first layer, which
has few, tell which of three temperatures has the best gradient: the one so far, one a step lower, one a step higher.

Adapted: the temperature of their own shape, a scaled tanh, is here the beta of any shape of `surrogate`. The shift of a
weight is in units of the root mean square of the layer's weights, since behind a norm their scale is without effect.
Neither that shift nor the step of beta is theirs: their values are not known to us.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from cpng_jax.control import rules
from cpng_jax.models.summary import summarise
from cpng_jax.nn.losses import mean_output_cross_entropy
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime.sharding import over_batch, replicated
from cpng_jax.training import step as train_step
from cpng_jax.training.state import TrainState

PyTree = Any

Loss = Callable[[Array, PyTree], Array]
"""Maps weights of a layer, and beta of all layers, to a scalar."""


def finite_differences(loss: Callable[[Array], Array], weights: Array, shift: Array) -> Array:
    """Central differences of a loss by each weight, one weight after the other, so that they need no more memory.

    Args:
      loss: maps weights to a scalar.
      weights: any shape, N of them; the loss is computed 2 N times.
      shift: of a weight to either side, a scalar greater than 0.

    Returns:
      `(loss(w + shift) - loss(w - shift)) / (2 shift)` for each weight w, of the shape of `weights`.
    """
    flat = weights.ravel()

    def one(index: Array) -> Array:
        moved = lambda by: loss(flat.at[index].add(by).reshape(weights.shape))
        return (moved(shift) - moved(-shift)) / (2 * shift)

    return jax.lax.map(one, jnp.arange(flat.size)).reshape(weights.shape)


def cosine(a: Array, b: Array) -> Array:
    """Cosine of the angle between two arrays of one shape, taken as vectors; NaN where one is 0 or not finite."""
    return jnp.sum(a * b) / (jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel()))


def best_beta(loss: Loss, weights: Array, beta: PyTree, *, epsilon: float, step: float) -> PyTree:
    """Finds which of three widths has the surrogate gradient that is most like finite differences. Pure, and jittable.

    Args:
      loss: of the weights of the first layer and beta of all layers.
      weights: of the first layer.
      beta: pytree of floating arrays greater than 0.
      epsilon: shift of a weight for the differences, in units of the root mean square of `weights`.
      step: of beta, up or down, the same in all layers.

    Returns:
      beta as it is, lower by a step if that leaves it above 0, or higher by a step: the one with the greatest cosine,
      in the dtypes of `beta`. NaN where there is none to tell by: differences or gradients are 0 or not finite.
    """
    shift = epsilon * jnp.sqrt(jnp.mean(jnp.square(weights)))
    reference = finite_differences(lambda moved: loss(moved, beta), weights, shift)
    moves = jnp.array([0.0, -step, step])
    moved = lambda by: jax.tree.map(lambda leaf: (leaf + by).astype(leaf.dtype), beta)

    def likeness(by: Array) -> Array:
        candidate = moved(by)
        positive = jnp.all(ravel_pytree(candidate)[0] > 0)
        value = cosine(jax.grad(loss)(weights, candidate), reference)
        return jnp.where(positive & jnp.isfinite(value), value, -jnp.inf)

    likenesses = jax.lax.map(likeness, moves)
    best = moves[jnp.argmax(likenesses)]
    return moved(jnp.where(jnp.all(jnp.isinf(likenesses)), jnp.nan, best))


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


def make_rule_of_batch(
    model: nn.Module,
    example: Array,
    mesh: Mesh,
    *,
    mean: np.ndarray,
    std: np.ndarray,
    dtype: str = 'float32',
    loss: train_step.Loss = mean_output_cross_entropy,
    accumulate: int = 1,
    epsilon: float,
    step: float,
) -> Callable[[TrainState, train_step.Batch], rules.Rule]:
    """Compiles the search for the better width.

    Args:
      model: the network.
      example: an input of the network; only the shape counts.
      mesh: devices that share the batch.
      mean: of the training images by channel, in units of 0 to 1.
      std: likewise the standard deviation.
      dtype: that the network computes in.
      loss: of each example, from logits `[T, B, classes]` and labels.
      accumulate: parts that a training step works its batch off in: one of them is looked at.
      epsilon: see `best_beta`.
      step: see `best_beta`.

    Returns:
      Maps a state and a batch to the `rules.Rule` that gives all layers the beta found with them.
    """
    path = first_kernel(model, example)

    def search(params: PyTree, batch_stats: PyTree, beta: PyTree, batch: train_step.Batch) -> PyTree:
        images = train_step.network_input(batch['image'], mean, std, dtype)
        images = train_step.split(images, accumulate, images.ndim - 4)[0]  # events have T before the batch
        labels = train_step.split(batch['label'], accumulate)[0]
        others: Any = flatten_dict(params)

        def loss_of(weights: Array, beta: PyTree) -> Array:
            variables = {
                'params': unflatten_dict({**others, path: weights}),
                'batch_stats': batch_stats,
                'surrogate': beta,
            }
            return train_step.batch_loss(model, variables, images, labels, loss)

        return best_beta(loss_of, others[path], beta, epsilon=epsilon, step=step)

    # The variables are taken from where they live.
    jitted = jax.jit(
        search,
        in_shardings=(None, None, None, over_batch(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=train_step.compiler_options(mesh),
    )

    def rule_of(state: TrainState, batch: train_step.Batch) -> rules.Rule:
        wanted = jitted(state.params, state.batch_stats, state.surrogate, batch)
        return lambda *_: wanted

    return rule_of
