"""Thirty labelled digits of each class on a narrow spiking VGG of twelve convolutions, for many short runs.

Not in the paper. What `python -m cpng_jax.experiments` is run on for docs/results.md.
"""

from cpng_jax.configs import digits
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the digits_few experiment."""
    config = digits.get_config()
    config.epochs = 50
    config.batch_size = 60
    config.data.per_class = 30
    config.model.stages = ((8,) * 3, (24,) * 9)
    config.checkpoint.keep = 1
    config.checkpoint.every_epochs = 10  # one costs as much as an epoch
    return config
