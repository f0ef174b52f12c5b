"""What a data set is to the rest of the program."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from cpng_jax.runtime.errors import UserError

Example = dict[str, Any]
"""`image`: uint8 `[H, W, C]`, event counts `[T, H, W, C]`, or as raw as a source has it; `label`: int32 scalar."""

# What a split for validation is drawn by, the same in every run, whatever its seed.
_VALIDATION_SEED = 1

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


class Subset:
    """Some examples of a split, in an order of their own."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        """Selects the examples at `indices`, integer `[N]`."""
        self.source, self.indices = source, indices

    @property
    def labels(self) -> np.ndarray:
        """Of the examples, integer `[N]`."""
        return labels_of(self.source)[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.indices[index])]


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
      prepare: applied to each example of test and validation.
      validation: examples to choose by, which are not learnt from; None where there are none.
    """

    train: Source
    test: Source
    augment: Augmentation
    class_names: Sequence[str]
    image_shape: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray
    prepare: Callable[[Example], Example] = as_it_is
    validation: Source | None = None


def labels_of(source: Source) -> np.ndarray:
    """The labels of a split, without its images.

    Args:
      source: the split; one that knows them has them as `labels`.

    Returns:
      Integer `[N]`.

    Raises:
      UserError: it does not know them.
    """
    labels = getattr(source, 'labels', None)
    if labels is None:
        raise UserError(
            'This data set tells no labels without its images: take 0 for config.data.validation and '
            'config.data.per_class.'
        )
    return np.asarray(labels)


def with_validation(dataset: Dataset, share: float) -> Dataset:
    """Keeps a share of the training split for validation: of each class the same share, always the same examples.

    Args:
      dataset: the data set.
      share: of the training examples, between 0 and 1.

    Returns:
      The data set with a validation split, and without its examples in training.

    Raises:
      UserError: the data set tells no labels, scikit-learn is not installed, or the share is too small or too large
        for each class to be in both splits.
    """
    labels = labels_of(dataset.train)
    classes, counts = np.unique(labels, return_counts=True)
    for_validation = round(share * len(labels))
    if counts.min() < 2 or not len(classes) <= for_validation <= len(labels) - len(classes):
        raise UserError(
            f'config.data.validation is {share}, {for_validation} of {len(labels)} training examples, expected a share '
            f'that leaves each of {len(classes)} classes in both splits; the smallest has {counts.min()}.'
        )
    train, validation = stratified_split(labels, for_validation, seed=_VALIDATION_SEED)
    train, validation = np.sort(train), np.sort(validation)
    return dataclasses.replace(
        dataset, train=Subset(dataset.train, train), validation=Subset(dataset.train, validation)
    )


def few_of_each(source: Source, per_class: int) -> Subset:
    """Picks the first examples of each class of a split, for training on few labels.

    Args:
      source: the split.
      per_class: examples of each class.

    Returns:
      They alone, in their order.

    Raises:
      UserError: the split tells no labels, or a class has not so many examples.
    """
    labels = labels_of(source)
    counts = np.bincount(labels)
    if counts.min() < per_class:
        raise UserError(
            f'config.data.per_class is {per_class}, but class {counts.argmin()} has {counts.min()} training examples.'
        )
    firsts = [np.flatnonzero(labels == label)[:per_class] for label in range(len(counts))]
    return Subset(source, np.sort(np.concatenate(firsts)))


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


def stratified_split(labels: np.ndarray, held_out: float | int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws a split with the share of each class that the whole has, the same each time.

    Args:
      labels: integer `[N]`.
      held_out: share of the examples, 0 to 1, or their number, for the second part.
      seed: of the draw.

    Returns:
      Indices of the examples in the first part and in the second.

    Raises:
      UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UserError('The split is drawn by scikit-learn: pip install scikit-learn') from error
    train, test = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=seed)
    return np.asarray(train), np.asarray(test)
