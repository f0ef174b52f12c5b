"""CIFAR100 on ResNet20: T = 6; the paper reaches 76.09 % (Table 6).

The paper gives neither batch nor epochs for this row; those of its other CIFAR100 experiment are taken, 256 and 300.
First: `python -m cpng_jax.data.prepare cifar100`.

The best epoch is chosen on the test split, as in the paper; `--config.data.validation=0.1` keeps a tenth of the
training examples to choose by.
"""

from cpng_jax.configs import cifar100_vgg16
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of Table 5, column CIFAR100."""
    config = cifar100_vgg16.get_config()
    del config.model.head
    config.model.name = 'resnet20'
    config.model.time_steps = 6
    return config
