"""CIFAR100 on VGG16: T = 5, batches of 256, 300 epochs; the paper reaches 71.32 +- 0.20 % (Tables 4 and 6; Sec. 5.3).

Without CPNG (`--config.cpng.enabled=False`) 69.08 %. First: `python -m cpng_jax.data.prepare cifar100`.

The best epoch is chosen on the test split, as in the paper; `--config.data.validation=0.1` keeps a tenth of the
training examples to choose by.
"""

from cpng_jax.configs import base
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of Table 5, column CIFAR100."""
    config = base.get_config()
    config.epochs = 300
    config.batch_size = 256
    config.data.name = 'cifar100'
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = 'vgg16'
    config.model.head = 'fc4096'  # two spiking layers of 4096 before the last, or single: none
    config.model.time_steps = 5
    config.optim.learning_rate = 0.1
    config.optim.weight_decay = 1e-4
    return config
