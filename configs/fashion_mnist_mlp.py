"""Fashion-MNIST on two fully connected spiking layers of 400 neurons, T = 5; not in the paper.

The published neighbour is TSSL-BP (Zhang and Li, NeurIPS 2020), 400-400 at T = 5: 89.75 +- 0.03 %. Here currents are
normalised by tdBN, images mirrored and shifted by a pixel; schedule and weight decay were chosen on the validation
split, a tenth of the training images, which also chooses the best epoch.

First: `apt-get install dataset-fashion-mnist`; or, with a network, `python -m cpng_jax.data.prepare fashion_mnist`.
"""

from cpng_jax.configs import base
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the fashion_mnist_mlp experiment."""
    config = base.get_config()
    config.epochs = 40
    config.batch_size = 100
    config.data.name = 'fashion_mnist'
    config.data.validation = 0.1
    config.data.crop_padding = 1
    config.data.flip = True
    config.model.time_steps = 5
    config.model.stages = ()
    config.model.head = (400, 400)
    config.model.head_norm = True
    config.optim.weight_decay = 1e-4
    return config
