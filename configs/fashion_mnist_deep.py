"""Fashion-MNIST on a narrow spiking VGG of seventeen convolutions, T = 4, deep enough for width to matter.

Not in the paper. A convolution on the whole image, then eight of 14 x 14 and eight of 7 x 7 pixels, so that an epoch
stays affordable without an accelerator: `--config.data.per_class=100` learns from 1,000 images.

First: `apt-get install dataset-fashion-mnist`; or, with a network, `python -m cpng_jax.data.prepare fashion_mnist`.
"""

from cpng_jax.configs import fashion_mnist_mlp
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the fashion_mnist_deep experiment."""
    config = fashion_mnist_mlp.get_config()
    config.epochs = 20
    config.data.crop_padding = 2
    config.model.time_steps = 4
    config.model.stages = ((8,), (16,) * 8, (32,) * 8)
    config.model.head = ()
    config.model.head_norm = False
    config.optim.weight_decay = 5e-4
    return config
