"""Data sets and the pipeline that feeds them to the training loop."""

import dataclasses

from cpng_jax.data import cifar, cifar10_dvs, digits, digits_events, fake, idx, imagenet, mnist5k
from cpng_jax.data.dataset import ArraySource, Dataset, few_of_each, with_validation
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError

__all__ = ['DATASETS', 'ArraySource', 'Dataset', 'load']

# name -> function that takes config.data and returns the data set
DATASETS = {
    'digits': digits.load,
    'digits_events': digits_events.load,
    'mnist5k': mnist5k.load,
    **dict.fromkeys(idx.DATASETS, idx.load),
    'cifar10': cifar.load10,
    'cifar100': cifar.load100,
    'cifar10_dvs': cifar10_dvs.load,
    'imagenet2012': imagenet.load,
}


def load(config: Config) -> Dataset:
    """Opens the data set that a configuration names, or random images in its shape.

    Args:
      config: the section `data` of a configuration.

    Returns:
      The `Dataset`.

    Raises:
      UserError: no data set has that name, it cannot be read, or not so many examples of a class can be picked.
    """
    if config.name not in DATASETS:
        raise UserError(f'config.data.name is {config.name!r}, expected one of {", ".join(DATASETS)}.')
    dataset = fake.load(config) if config.fake else DATASETS[config.name](config)
    edge = max(dataset.image_shape[-3:-1])
    if config.crop_padding > edge:
        raise UserError(f'config.data.crop_padding is {config.crop_padding}, expected at most the {edge} of an image.')
    if config.validation:
        dataset = with_validation(dataset, config.validation)
    if config.fake or not config.per_class:
        return dataset
    return dataclasses.replace(dataset, train=few_of_each(dataset.train, config.per_class))
