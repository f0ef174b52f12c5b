"""The ANN of Diet-SNN (Rathi and Roy, TNNLS 2021): VGG16 without norms and without biases, for CIFAR100.

It becomes a spiking network with the thresholds of `--method=diet` of `python -m cpng_jax.convert`, which
`cifar100_diet_snn.py` then trains on. First: `python -m cpng_jax.data.prepare cifar100`.

As in their code: dropout after each activation that no pool follows, SGD, batches of 64, 300 epochs, the learning rate
a tenth at 45, 70 and 90 % of them. That is their schedule of 2020; that of 2021, whose neurons the spiking network has,
is `--config.optim.schedule=cosine --config.optim.cosine_epochs=64`, and ends on its way up.

Ours are the initial weights: those of our layers in the place of normal ones, of variance 2 / (9 * outputs) for
convolutions and 1e-4 for the rest. Theirs often fail to start on CIFAR100: the authors start all layers but the last
from an ANN of CIFAR10, `--config.init_from=RUN --config.init_skip=output`.
"""

from cpng_jax.configs import base
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the ANN."""
    config = base.get_config()
    config.epochs = 300
    config.batch_size = 64
    config.data.name = 'cifar100'
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = 'vgg16'
    config.model.time_steps = 1
    config.model.bias = False
    config.model.dropout = 0.2
    config.model.head_dropout = 0.5
    config.neuron.kind = 'relu'
    config.norm.kind = 'none'
    config.optim.learning_rate = 0.01
    config.optim.weight_decay = 5e-4
    config.optim.warmup_fraction = 0.0
    config.optim.schedule = 'steps'
    return config
