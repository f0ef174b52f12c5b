"""Mixup and CutMix: batches mixed with themselves on the device, inside the training step."""

import jax
import jax.numpy as jnp


def mixup(images: jax.Array, labels: jax.Array, key: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mixes each image, and its label, with the one at the mirrored place of the batch (Zhang et al., 2018).

    A batch is in random order already, so mirrored places are random pairs.

    Args:
      images: floating, `[B, ...]`.
      labels: distribution over the classes, float32, `[B, classes]`.
      key: random key.
      alpha: the share of an image's own is drawn from Beta(alpha, alpha), once for the batch.

    Returns:
      Mixed images and labels, in the shapes and dtypes given.
    """
    share = jax.random.beta(key, alpha, alpha, dtype=jnp.float32)
    return _blend(images, share), _blend(labels, share)


def cutmix(images: jax.Array, labels: jax.Array, key: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Pastes into each image a rectangle of the one at the mirrored place of the batch (Yun et al., 2019).

    Args:
      images: `[B, ..., H, W, C]`; all time steps of events get the same rectangle.
      labels: distribution over the classes, float32, `[B, classes]`.
      key: random key.
      alpha: the share of an image's own area is drawn from Beta(alpha, alpha), once for the batch.

    Returns:
      Mixed images, and labels mixed by the areas, in the shapes and dtypes given.
    """
    height, width = images.shape[-3:-1]
    share_key, row_key, column_key = jax.random.split(key, 3)
    edge = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32))
    rows = _inside(jax.random.uniform(row_key, dtype=jnp.float32), edge, height)
    columns = _inside(jax.random.uniform(column_key, dtype=jnp.float32), edge, width)
    pasted = (rows[:, None] & columns[None]).reshape((1,) * (images.ndim - 3) + (height, width, 1))
    # The rectangle may reach over the border: the labels follow what was really pasted.
    share = 1 - jnp.mean(pasted, dtype=jnp.float32)
    return jnp.where(pasted, images[::-1], images), _blend(labels, share)


def mix(
    images: jax.Array, labels: jax.Array, key: jax.Array, *, mixup_alpha: float, cutmix_alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Applies mixup, CutMix or, if both alphas are above 0, one of them by the toss of a coin for each batch.

    Args:
      images: floating, `[B, ..., H, W, C]`.
      labels: distribution over the classes, float32, `[B, classes]`.
      key: random key.
      mixup_alpha: see `mixup`; 0 turns it off.
      cutmix_alpha: see `cutmix`; 0 turns it off.

    Returns:
      Mixed images and labels, in the shapes and dtypes given.
    """
    coin, key = jax.random.split(key)
    if mixup_alpha and cutmix_alpha:
        return jax.lax.cond(
            jax.random.bernoulli(coin),
            lambda: mixup(images, labels, key, mixup_alpha),
            lambda: cutmix(images, labels, key, cutmix_alpha),
        )
    if mixup_alpha:
        return mixup(images, labels, key, mixup_alpha)
    if cutmix_alpha:
        return cutmix(images, labels, key, cutmix_alpha)
    return images, labels


def _blend(values: jax.Array, share: jax.Array) -> jax.Array:
    return (share * values + (1 - share) * values[::-1]).astype(values.dtype)


def _inside(centre: jax.Array, edge: jax.Array, size: int) -> jax.Array:
    """Which pixels lie within an edge, a share of the size, about a centre, from 0 to 1."""
    places = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    return jnp.abs(places - centre) < edge / 2
