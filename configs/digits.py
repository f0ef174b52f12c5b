"""Scikit-learn's handwritten digits on a deep spiking VGG: the default experiment, needs no download.

1,797 real scans of 8 x 8 pixels in ten classes. Fourteen spiking convolutions are deep enough for the paper's Fig. 1
to show: at beta = 1 the network learns, a beta fixed at 3 breaks it.
"""

from cpng_jax.configs import base
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the digits experiment."""
    config = base.get_config()
    config.epochs = 40
    config.batch_size = 64
    config.data.name = 'digits'
    config.data.crop_padding = 1
    config.optim.weight_decay = 5e-4
    config.model.time_steps = 4
    config.model.stages = ((16,) * 3, (48,) * 11)
    config.model.head = ()
    return config
