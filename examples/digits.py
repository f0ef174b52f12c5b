"""The data of the examples: the 1,797 digits of scikit-learn, 8 x 8 pixels, in the form that two dense layers take."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

PIXELS, CLASSES = 64, 10
_TRAIN, _BATCH = 1437, 64

Split = tuple[np.ndarray, np.ndarray]


def load() -> tuple[Split, Split]:
    """Loads images `[N, PIXELS]`, of zero mean and unit variance, and labels `[N]`: of training and test."""
    data = load_digits()
    images = (data.data - data.data.mean()) / data.data.std()
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order].astype(np.float32), data.target[order].astype(np.int32)
    return (images[:_TRAIN], labels[:_TRAIN]), (images[_TRAIN:], labels[_TRAIN:])


def batches(images: np.ndarray, labels: np.ndarray, seed: int) -> Iterator[Split]:
    """Goes through the examples once, in an order by the seed, in batches of one size."""
    order = np.random.default_rng(seed).permutation(len(images))
    for start in range(0, len(order) - _BATCH + 1, _BATCH):
        rows = order[start : start + _BATCH]
        yield images[rows], labels[rows]


def accuracy(logits: jax.Array, labels: np.ndarray) -> float:
    """The share of examples whose outputs `[T, B, CLASSES]`, averaged over time, are highest for their label."""
    return float(jnp.mean(jnp.argmax(jnp.mean(logits, axis=0), axis=-1) == labels))
