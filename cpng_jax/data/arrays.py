"""Data sets of arrays: images, or frames of events."""

from collections.abc import Sequence

import numpy as np

from cpng_jax.data.augment import standard
from cpng_jax.data.dataset import ArraySource, Dataset, channel_statistics, stratified_split
from cpng_jax.data.events import random_shift
from cpng_jax.runtime.config import Config

# Of the examples of each class, where a data set comes without a test split of its own.
_TEST_SHARE = 0.2

Arrays = tuple[np.ndarray, np.ndarray]
"""Images, uint8 `[N, H, W, C]`, or frames of events, uint8 `[N, T, H, W, C]`; and labels, integer `[N]`."""


def from_arrays(
    config: Config, train: Arrays, test: Arrays | None = None, *, class_names: Sequence[str] | None = None
) -> Dataset:
    """Makes a data set of arrays.

    Training images are augmented as `config.data` says, and images normalised by mean and standard deviation of those
    for training. Frames of events get flip and roll, and the network sees their counts as they are.

    Args:
      config: `config.data`.
      train: images, uint8 `[N, H, W, C]`, or frames of events, uint8 `[N, T, H, W, C]`, and labels from 0 on, integer
        `[N]`.
      test: the same; None tests on a fifth of each class, which the training does without. It is drawn the same way
        each time that the labels are the same.
      class_names: in the order of the labels; None names a class after its label.

    Returns:
      The `Dataset`.

    Raises:
      ValueError: shapes, types or labels are other ones.
      UserError: scikit-learn, which draws the test, is not installed, or an augmentation cannot be had for the images.
    """
    given = {'train': train} if test is None else {'train': train, 'test': test}
    splits = {name: _checked(name, *split) for name, split in given.items()}
    classes = max(int(labels.max()) for _, labels in splits.values()) + 1
    names = [str(label) for label in range(classes)] if class_names is None else list(class_names)
    if classes > len(names):
        raise ValueError(f'labels go up to {classes - 1}, expected below {len(names)}, the number of class_names.')
    shapes = {images.shape[1:] for images, _ in splits.values()}
    if len(shapes) > 1:
        raise ValueError(f'images of train and test have the shapes {" and ".join(map(str, shapes))}, expected one.')
    (shape,) = shapes
    if test is None:
        images, labels = splits['train']
        parts = zip(('train', 'test'), stratified_split(labels, _TEST_SHARE), strict=True)
        splits = {name: (images[indices], labels[indices]) for name, indices in parts}
    if len(shape) == 4:
        augment = random_shift(config)
        mean, std = np.zeros(shape[-1], np.float32), np.full(shape[-1], 1 / 255, np.float32)
    else:
        augment = standard(config, channels=shape[-1])
        mean, std = channel_statistics(splits['train'][0])
    return Dataset(
        train=ArraySource(*splits['train']),
        test=ArraySource(*splits['test']),
        augment=augment,
        class_names=names,
        image_shape=shape,
        mean=mean,
        std=std,
    )


def _checked(split: str, images: np.ndarray, labels: np.ndarray) -> Arrays:
    """The arrays of a split, whose labels may have been a list."""
    labels = np.asarray(labels)
    if getattr(images, 'dtype', None) != np.uint8 or images.ndim not in (4, 5):
        what = f'{images.dtype} {list(images.shape)}' if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(
            f'images of {split} are {what}, expected uint8 [N, H, W, C], or frames of events [N, T, H, W, C]; grey '
            'images have C = 1.'
        )
    if labels.dtype.kind not in 'iu' or labels.shape != images.shape[:1] or not len(labels) or labels.min() < 0:
        lowest = f' from {labels.min()} on' if labels.dtype.kind in 'iu' and labels.size else ''
        raise ValueError(
            f'labels of {split} are {labels.dtype} {list(labels.shape)}{lowest}, expected integers [{len(images)}] '
            'from 0 on, one for each of at least one image.'
        )
    return images, labels
