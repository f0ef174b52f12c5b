"""An ANN for conversion by calibration: VGG16 on CIFAR100 (Li et al., ICML 2021; Table 4).

    python -m cpng_jax.data.prepare cifar100
    python train.py --config=configs/cifar100_vgg16_ann.py --workdir=runs/ann
    python -m cpng_jax.convert --workdir=runs/ann --method=calibration_advanced --time_steps=32,64,128

Theirs reach 77.98 % as an ANN, and 73.55 % at T = 32. As in their code: five average pools and a linear layer, and all
that `cifar10_resnet20_ann.py` has of it, AutoAugment's policy for CIFAR10 included.

The best epoch is chosen on the test split, as those papers do; `--config.data.validation=0.1` keeps a tenth of the
training examples to choose by.
"""

from cpng_jax.configs import base, cifar10_resnet20_ann
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the ANN."""
    config = cifar10_resnet20_ann.get_config()
    config.data.name = 'cifar100'
    config.model.name = 'vgg16'
    config.model.head = 'single'
    config.model.pool_last = True
    config.norm.alpha_residual = base.get_config().norm.alpha_residual  # of networks with branches
    return config
