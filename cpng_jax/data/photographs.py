"""Encoded images of any size, as photographs are: how they reach the network, whatever they are stored in."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from cpng_jax.data.augment import standard
from cpng_jax.data.dataset import Augmentation, Dataset, Example, Source, channel_statistics
from cpng_jax.data.jpeg import decode_random_resized_crop, decode_resize, decode_resize_centre_crop
from cpng_jax.data.kept import kept
from cpng_jax.runtime.config import Config

RESIZES = ('crop', 'fixed')

Statistics = tuple[np.ndarray, np.ndarray]

# Images that mean and standard deviation are measured on.
_SAMPLE = 1000


def make_dataset(
    config: Config,
    train: Source,
    test: Source,
    class_names: Sequence[str],
    statistics: Statistics | pathlib.Path,
) -> Dataset:
    """Makes a data set of splits of encoded images.

    With `resize` 'crop' training images get a random crop of random size and aspect, test images are scaled to 256/224
    of the size and cropped in the centre (A.1). With 'fixed' both are scaled, as a whole, to a square.

    Args:
      config: `config.data`; `image_size` is the edge of the result, which the augmentation then applies to.
      train: examples whose `image` is encoded, with a `name` for messages.
      test: the same.
      class_names: in the order of the labels.
      statistics: mean and standard deviation of the channels; or where to keep those that are measured, on the first
        start, as the test would see them, on 1,000 training images that are drawn the same way each time.

    Returns:
      The `Dataset`, of RGB images.
    """
    prepare = _preparation(config)
    if isinstance(statistics, pathlib.Path):
        statistics = _measured(train, prepare, statistics / f'statistics-{config.resize}-{config.image_size}.npz')
    mean, std = statistics
    return Dataset(
        train=train,
        test=test,
        augment=_augmentation(config),
        class_names=class_names,
        image_shape=(config.image_size, config.image_size, 3),
        mean=mean,
        std=std,
        prepare=prepare,
    )


def _augmentation(config: Config) -> Augmentation:
    size, crop, change = config.image_size, config.resize == 'crop', standard(config, channels=3)

    def augment(example: Example, rng: np.random.Generator) -> Example:
        data, name = example['image'], _text(example['name'])
        image = decode_random_resized_crop(data, size, rng, name=name) if crop else decode_resize(data, size, name=name)
        return change({'image': image, 'label': example['label']}, rng)

    return augment


def _preparation(config: Config) -> Callable[[Example], Example]:
    size, crop, resize = config.image_size, config.resize == 'crop', round(config.image_size * 256 / 224)

    def prepare(example: Example) -> Example:
        data, name = example['image'], _text(example['name'])
        image = (
            decode_resize_centre_crop(data, resize, size, name=name) if crop else decode_resize(data, size, name=name)
        )
        return {'image': image, 'label': example['label']}

    return prepare


def _measured(train: Source, prepare: Callable[[Example], Example], path: pathlib.Path) -> Statistics:
    """Mean and standard deviation of the channels of a sample of the training images."""

    def measure() -> dict[str, np.ndarray]:
        chosen = np.random.default_rng(0).choice(len(train), min(_SAMPLE, len(train)), replace=False)
        mean, std = channel_statistics(np.stack([prepare(train[int(index)])['image'] for index in np.sort(chosen)]))
        # Images of one value alone would be divided by 0.
        return {'mean': mean, 'std': np.maximum(std, np.float32(1 / 255))}

    found = kept(path, measure)
    return found['mean'], found['std']


def _text(name: bytes | str) -> str:
    return name.decode(errors='replace') if isinstance(name, bytes) else str(name)
