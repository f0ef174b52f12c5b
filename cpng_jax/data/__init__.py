"""Data sets and the pipeline that feeds them to the training loop.

What a function of the user's needs for a data set of its own (docs/data.md) is here: `Dataset`, `ArraySource`,
`from_arrays` and `from_recordings`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from cpng_jax.data import (
    cifar,
    cifar10_dvs,
    digits,
    digits_events,
    fake,
    folder,
    idx,
    imagenet,
    mnist5k,
    own,
    tfds_sets,
)
from cpng_jax.data.arrays import from_arrays
from cpng_jax.data.dataset import ArraySource, Dataset, few_of_each, with_validation
from cpng_jax.data.entry import Entry, Kind
from cpng_jax.data.recordings import from_recordings
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError, nearest

__all__ = [
    'DATASETS',
    'ArraySource',
    'Dataset',
    'Entry',
    'Kind',
    'find',
    'from_arrays',
    'from_recordings',
    'is_name',
    'kind_of',
    'load',
    'names',
]

# Each line is all that the package knows of a data set. A function from config.data to a Dataset does, too.
DATASETS: dict[str, Entry | Callable[[Config], Dataset]] = {
    'digits': digits.ENTRY,
    'digits_events': digits_events.ENTRY,
    'mnist5k': mnist5k.ENTRY,
    **idx.ENTRIES,
    'cifar10': cifar.CIFAR10,
    'cifar100': cifar.CIFAR100,
    'cifar10_dvs': cifar10_dvs.ENTRY,
    'imagenet2012': imagenet.ENTRY,
    'folder': folder.ENTRY,
}


def names() -> str:
    """Says in words what `config.data.name` may be."""
    return f'one of {", ".join(DATASETS)}, {tfds_sets.ANY}, or package.module:function'


def is_name(name: Any) -> bool:
    """Says whether `config.data.name` may be so: whether the data set is there is not looked at."""
    return isinstance(name, str) and (name in DATASETS or tfds_sets.is_name(name) or own.is_name(name))


def find(name: str) -> Entry:
    """Looks a data set up.

    Args:
      name: `config.data.name`.

    Returns:
      Its line of the table, or what would be the line of one that comes from outside.

    Raises:
      UserError: no data set can have that name.
    """
    if name in DATASETS:
        line = DATASETS[name]
        return line if isinstance(line, Entry) else Entry(line)
    if name.startswith(tfds_sets.PREFIX):
        return tfds_sets.entry(name)
    if own.is_name(name):
        return own.entry(name)
    raise UserError(f'config.data.name is {name!r}, expected {names()}; the nearest is {nearest(name, DATASETS)!r}.')


def kind_of(config: Config) -> Kind:
    """Says what a data set is to a network; those that the package does not know are opened for it.

    Args:
      config: the section `data` of a configuration.

    Returns:
      Shape of an image and number of classes.

    Raises:
      UserError: no data set has that name, or it has to be there and is not.
    """
    entry = find(config.name)
    if entry.kind is not None:
        return entry.kind(config)
    dataset = entry.load(config)
    return Kind(tuple(dataset.image_shape), len(dataset.class_names))


def load(config: Config) -> Dataset:
    """Opens the data set that a configuration names, or random images in its shape.

    Args:
      config: the section `data` of a configuration.

    Returns:
      The `Dataset`.

    Raises:
      UserError: no data set has that name, it cannot be read, or not so many examples of a class can be picked.
    """
    dataset = fake.load(config, kind_of(config)) if config.fake else find(config.name).load(config)
    edge = max(dataset.image_shape[-3:-1])
    if config.crop_padding > edge:
        raise UserError(f'config.data.crop_padding is {config.crop_padding}, expected at most the {edge} of an image.')
    if config.validation:
        dataset = with_validation(dataset, config.validation)
    if config.fake or not config.per_class:
        return dataset
    return dataclasses.replace(dataset, train=few_of_each(dataset.train, config.per_class))
