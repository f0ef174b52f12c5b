"""Losses on the outputs of the last layer at each time step."""

import jax.numpy as jnp
import optax

from cpng_jax.surrogate import Array


def mean_output_cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross entropy of the outputs averaged over time (Eq. 5).

    Args:
      logits: outputs of the last layer, floating, `[T, B, classes]`.
      labels: class indices, integer, `[B]`.

    Returns:
      Loss of each example in nats, float32, `[B]`.

    Raises:
      ValueError: the shapes do not fit.
    """
    if logits.ndim != 3 or labels.shape != logits.shape[1:2]:
        raise ValueError(f'logits must be [T, B, classes] and labels [B], got {logits.shape} and {labels.shape}.')
    out = jnp.mean(logits.astype(jnp.float32), axis=0)
    return optax.losses.softmax_cross_entropy_with_integer_labels(out, labels)
