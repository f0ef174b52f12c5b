"""ImageNet on SEW-ResNet34: T = 4, batches of 544, 160 epochs; the paper reaches 69.09 % (Table 4; Sec. 5.3: 69.04 %).

Integrate-and-fire neurons with the reset detached, as the authors of SEW-ResNet. First:
`python -m cpng_jax.data.prepare imagenet2012`.

The best epoch is chosen on the test split, as in the paper; `--config.data.validation=0.1` keeps a tenth of the
training examples to choose by.
"""

from cpng_jax.configs import base
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of Table 5, column ImageNet."""
    config = base.get_config()
    config.epochs = 160
    config.batch_size = 544
    config.data.name = 'imagenet2012'
    config.data.flip = True
    config.data.image_size = 224
    config.data.threads = 16
    config.model.name = 'sew_resnet34'
    config.model.connect = 'ADD'
    config.model.time_steps = 4
    config.neuron.tau = 1.0
    config.neuron.detach_reset = True
    config.optim.learning_rate = 0.01
    config.optim.weight_decay = 4e-5
    config.optim.warmup_fraction = 0.0
    return config
