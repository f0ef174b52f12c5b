"""Losses on the outputs of the last layer at each time step.

Each takes class indices or, for labels that were mixed or smoothed, a distribution over the classes.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Float, Int, Real

from cpng_jax.nn.surrogate import Array, ArrayLike, at_least_float32

Logits = Float[Array, 'T B classes']
Labels = Int[Array, ' B'] | Float[Array, 'B classes']


def mean_output_cross_entropy(logits: Logits, labels: Labels) -> Float[Array, ' B']:
    """Cross entropy of the outputs averaged over time (Eq. 5).

    Args:
      logits: outputs of the last layer, floating, `[T, B, classes]`.
      labels: class indices, integer, `[B]`, or a distribution, floating, `[B, classes]`.

    Returns:
      Loss of each example in nats, at least float32, `[B]`.

    Raises:
      ValueError: the shapes do not fit.
    """
    _check(logits, labels)
    return _cross_entropy(jnp.mean(logits.astype(at_least_float32(logits.dtype)), axis=0), labels)


def sum_output_cross_entropy(logits: Logits, labels: Labels) -> Float[Array, ' B']:
    """Cross entropy of the outputs summed over time, as a last layer that gathers them without leak has it.

    Args:
      logits: outputs of the last layer, floating, `[T, B, classes]`.
      labels: class indices, integer, `[B]`, or a distribution, floating, `[B, classes]`.

    Returns:
      Loss of each example in nats, at least float32, `[B]`.

    Raises:
      ValueError: the shapes do not fit.
    """
    _check(logits, labels)
    return _cross_entropy(jnp.sum(logits.astype(at_least_float32(logits.dtype)), axis=0), labels)


def temporal_efficient_training(
    logits: Logits, labels: Labels, *, weight: Real[ArrayLike, ''], target: Real[ArrayLike, '']
) -> Float[Array, ' B']:
    """TET: the cross entropy of each time step by itself, and a pull of all outputs to one value.

    `(1 - weight) * mean_t CE(out[t], label) + weight * mean_t MSE(out[t], target)` (Deng et al., 2022, Eq. 9 to
    13; Sec. 5.2). Every time step has to be right, and none by outputs that run away.

    Args:
      logits: outputs of the last layer, floating, `[T, B, classes]`.
      labels: class indices, integer, `[B]`, or a distribution, floating, `[B, classes]`.
      weight: lambda, the share of the pull, 0 to 1.
      target: what the outputs are pulled to; the threshold, as a rule.

    Returns:
      Loss of each example, at least float32, `[B]`.

    Raises:
      ValueError: the shapes do not fit, or `weight` lies outside 0 to 1.
    """
    _check(logits, labels)
    if isinstance(weight, int | float) and not 0 <= weight <= 1:
        raise ValueError(f'weight (lambda of TET) must lie in 0 to 1, got {weight}.')
    logits = logits.astype(at_least_float32(logits.dtype))
    cross_entropy = jnp.mean(_cross_entropy(logits, jnp.broadcast_to(labels, (len(logits), *labels.shape))), axis=0)
    pull = jnp.mean(jnp.square(logits - target), axis=(0, 2))
    return jnp.asarray((1 - weight) * cross_entropy + weight * pull)


def _cross_entropy(logits: Array, labels: Array) -> Array:
    if labels.ndim == logits.ndim:
        return optax.losses.softmax_cross_entropy(logits, labels.astype(logits.dtype))
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def _check(logits: Array, labels: Array) -> None:
    fits = labels.shape in (logits.shape[1:2], logits.shape[1:])
    if logits.ndim != 3 or not fits:
        raise ValueError(
            f'logits must be [T, B, classes] and labels [B] or [B, classes], got {logits.shape} and {labels.shape}.'
        )
