"""Data sets and the pipeline that feeds them to the training loop."""

from cpng_jax.config import Config
from cpng_jax.data import digits
from cpng_jax.data.dataset import ArraySource, Dataset
from cpng_jax.errors import UserError

__all__ = ['DATASETS', 'ArraySource', 'Dataset', 'load']

# name -> function that takes config.data and returns the data set
DATASETS = {'digits': digits.load}


def load(config: Config) -> Dataset:
    """Opens the data set that a configuration names.

    Args:
      config: the section `data` of a configuration.

    Returns:
      The `Dataset`.

    Raises:
      UserError: no data set has that name, or it cannot be read.
    """
    if config.name not in DATASETS:
        raise UserError(f'config.data.name is {config.name!r}, expected one of {", ".join(DATASETS)}.')
    return DATASETS[config.name](config)
