"""Fashion-MNIST on two 5x5 convolutions and a fully connected layer, 32C5-P2-64C5-P2-1024, T = 5; not in the paper.

The published neighbours are TSSL-BP (Zhang and Li, NeurIPS 2020) with the same layers at T = 5, 92.69 +- 0.09 %, and
PLIF (Fang et al., ICCV 2021) with a larger network at T = 8, 93.85 % where a validation split chose the epoch. Here
all currents are normalised by tdBN, images mirrored and shifted by up to two pixels; a tenth of the training images
chooses the best epoch.

First: `apt-get install dataset-fashion-mnist`; or, with a network, `python -m cpng_jax.data.prepare fashion_mnist`.
"""

from cpng_jax.configs import fashion_mnist_mlp
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the fashion_mnist_cnn experiment."""
    config = fashion_mnist_mlp.get_config()
    config.epochs = 12
    config.data.crop_padding = 2
    config.model.kernel_size = 5
    config.model.stages = ((32,), (64,))
    config.model.pool_last = True
    config.model.head = (1024,)
    config.optim.weight_decay = 5e-4
    return config
