"""CIFAR10-DVS on ResNet18: T = 10, batches of 72, 200 epochs; the paper reaches 76.37 % (Tables 3, 4 and 6; Sec. 5.3).

Without CPNG (`--config.cpng.enabled=False`) 75.6 %; with TET as well (`--config.loss.name=tet`, and Adam as in
`cifar10_dvs_vgg11_tet.py`) 82.3 %. First: `python -m cpng_jax.data.prepare cifar10_dvs`.

The best epoch is chosen on the test split, as in the paper; `--config.data.validation=0.1` keeps a tenth of the
training examples to choose by.
"""

from cpng_jax.configs import base
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of Table 5, column CIFAR-DVS."""
    config = base.get_config()
    config.epochs = 200
    config.batch_size = 72
    config.data.name = 'cifar10_dvs'
    config.data.flip = True
    config.data.event_size = 48
    config.data.roll = 5
    config.model.name = 'resnet18'
    config.model.time_steps = 10
    config.optim.learning_rate = 0.01
    config.optim.weight_decay = 4e-5
    config.optim.warmup_fraction = 0.0
    return config
