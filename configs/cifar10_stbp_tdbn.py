"""STBP-tdBN on ResNet19 and CIFAR10, without CPNG: T = 6; 93.16 % in Table 4, after Zheng et al. (AAAI 2021).

Known: the network with tdBN (1/sqrt(2) where two branches are summed), a rectangular surrogate gradient of width 1,
hard reset. Ours, since no code of its authors is known to us: v_th = 0.5; tau = 0.25, of 0.25 and 0.5 that are both
quoted; 128 channels in the stem; and batch, epochs, learning rate and weight decay, which are those of the CPNG paper's
run (Table 5). First: `python -m cpng_jax.data.prepare cifar10`.

The best epoch is chosen on the test split, as in the paper; `--config.data.validation=0.1` keeps a tenth of the
training examples to choose by.
"""

from cpng_jax.configs import cifar10_resnet19
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of Table 4, row STBP-tdBN."""
    config = cifar10_resnet19.get_config()
    config.neuron.surrogate = 'rectangular'
    config.neuron.tau = 0.25
    config.neuron.v_th = 0.5
    config.cpng.enabled = False
    return config
