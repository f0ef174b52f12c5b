"""TET on VGG11 and CIFAR10-DVS by its authors' recipe, without CPNG: T = 10; 83.17 % in Table 4, after Deng et al.

Known, from their code (ICLR 2022): loss, network, neurons, Adam at 1e-3 with a cosine to 0 and no weight decay, batches
of 128, frames divided by their maximum and reduced to 48 x 48, flip and roll, the last 100 recordings of each class as
the test. The 300 epochs and lambda = 1e-3 are the paper's; their scripts have others. Ours: the polarities of a frame
are scaled down each by itself (docs/data.md), and events left over go to the last frame. The row that the CPNG paper
trains with TET has another recipe, `cifar10_dvs_vgg11_tet.py`. First: `python -m cpng_jax.data.prepare cifar10_dvs`.

The best epoch is chosen on the test split, as in the paper; `--config.data.validation=0.1` keeps a tenth of the
training examples to choose by.
"""

from cpng_jax.configs import cifar10_dvs_vgg11_tet
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of Table 4, row TET on CIFAR10-DVS."""
    config = cifar10_dvs_vgg11_tet.get_config()
    config.epochs = 300
    config.batch_size = 128
    config.data.frame_scale = 'max'
    config.optim.weight_decay = 0.0
    config.cpng.enabled = False
    return config
