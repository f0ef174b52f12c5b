"""What a data set is to the rest of the program."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from cpng_jax.runtime.errors import UserError

Example = dict[str, Any]
"""`image`: uint8 `[H, W, C]`, event counts `[T, H, W, C]`, or as raw as a source has it; `label`: int32 scalar."""

# Of the examples of each class, where a data set comes without a test split of its own.
_TEST_SHARE = 0.2

Augmentation = Callable[[Example, np.random.Generator], Example]


def as_it_is(example: Example) -> Example:
    """Returns an example whose source has it ready for the network."""
    return example


class Source(Protocol):
    """Random access to the examples of a split, as Grain asks for it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class ArraySource:
    """A split held in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Wraps images, uint8 `[N, H, W, C]`, and their labels, integer `[N]`."""
        if len(images) != len(labels):
            raise ValueError(f'{len(images)} images need as many labels, got {len(labels)}.')
        self.images = images
        self.labels = labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return {'image': self.images[index], 'label': self.labels[index]}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A training and a test split with what is needed to feed them to a network.

    Attributes:
      train: examples to learn from.
      test: examples to measure on.
      augment: applied to each training example with a generator that depends only on seed, epoch and position.
      class_names: the names of the classes, in the order of their labels.
      image_shape: `(H, W, C)` of an image, `(T, H, W, C)` of events, as they reach the network.
      mean: of each channel over the training images, in units of 0 to 1, float32 `[C]`.
      std: standard deviation of each channel, in the same units, float32 `[C]`.
      prepare: applied to each test example.
    """

    train: Source
    test: Source
    augment: Augmentation
    class_names: Sequence[str]
    image_shape: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray
    prepare: Callable[[Example], Example] = as_it_is


def split_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    augment: Augmentation,
    statistics: tuple[np.ndarray, np.ndarray] | None = None,
) -> Dataset:
    """Makes a data set of arrays in which nobody has split training from test: a fifth of each class is for the test.

    Args:
      images: uint8 `[N, H, W, C]`, or `[N, T, H, W, C]` of events.
      labels: integer `[N]`, from 0 on; a class is named after its label.
      augment: applied to each training example.
      statistics: mean and standard deviation of each channel to normalise by; None measures those of the training
        images.

    Returns:
      The `Dataset`, split the same way each time that the labels are the same.

    Raises:
      UserError: scikit-learn is not installed.
    """
    train, test = stratified_split(labels, _TEST_SHARE)
    mean, std = channel_statistics(images[train]) if statistics is None else statistics
    return Dataset(
        train=ArraySource(images[train], labels[train]),
        test=ArraySource(images[test], labels[test]),
        augment=augment,
        class_names=[str(label) for label in range(labels.max() + 1)],
        image_shape=images.shape[1:],
        mean=mean,
        std=std,
    )


def few_of_each(source: Source, per_class: int) -> ArraySource:
    """Picks the first examples of each class of a split, for training on few labels.

    Args:
      source: the split, held in memory.
      per_class: examples of each class.

    Returns:
      They alone, in their order.

    Raises:
      UserError: the split is not held in memory, or a class has not so many.
    """
    if not isinstance(source, ArraySource):
        raise UserError('config.data.per_class is for data sets held in memory, such as digits and mnist5k: take 0.')
    counts = np.bincount(source.labels)
    if counts.min() < per_class:
        raise UserError(
            f'config.data.per_class is {per_class}, but class {counts.argmin()} has {counts.min()} training examples.'
        )
    firsts = [np.flatnonzero(source.labels == label)[:per_class] for label in range(len(counts))]
    chosen = np.sort(np.concatenate(firsts))
    return ArraySource(source.images[chosen], source.labels[chosen])


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measures what a network's input is normalised by.

    Args:
      images: uint8 `[N, ..., C]`.

    Returns:
      Mean and standard deviation of each channel in units of 0 to 1, float32 `[C]`.
    """
    # By the 256 values that a byte can have, so that a large data set needs no floating copy of itself.
    counts = np.stack([np.bincount(images[..., c].reshape(-1), minlength=256) for c in range(images.shape[-1])])
    values, shares = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = np.sum(shares * np.square(values - mean[:, None]), axis=1)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def stratified_split(labels: np.ndarray, test_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws a test split with the share of each class that the whole has, the same each time.

    Args:
      labels: integer `[N]`.
      test_share: of the examples, 0 to 1.

    Returns:
      Indices of the training and of the test examples.

    Raises:
      UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UserError('The split is drawn by scikit-learn: pip install scikit-learn') from error
    train, test = train_test_split(np.arange(len(labels)), test_size=test_share, stratify=labels, random_state=0)
    return np.asarray(train), np.asarray(test)
