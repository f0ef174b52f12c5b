"""An ANN for conversion by calibration: ResNet20 on CIFAR10 (Li et al., ICML 2021; Table 4).

    python -m cpng_jax.data.prepare cifar10
    python train.py --config=configs/cifar10_resnet20_ann.py --workdir=runs/ann
    python -m cpng_jax.convert --workdir=runs/ann --method=calibration_advanced --time_steps=32,64,128

Theirs reach 95.68 % as an ANN, and 94.78 % at T = 32. As in their code: batches of 128, 300 epochs, SGD, a cosine,
crops, flips, AutoAugment, cutout of 16, [3, 3, 3] blocks of 64, 128 and 256 channels. Ours: the cosine goes by step,
where theirs goes by epoch, and the first layers are those of our ResNet20.

The best epoch is chosen on the test split, as those papers do; `--config.data.validation=0.1` keeps a tenth of the
training examples to choose by.
"""

from cpng_jax.configs import base
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the ANN."""
    config = base.get_config()
    config.epochs = 300
    config.batch_size = 128
    config.data.name = 'cifar10'
    config.data.crop_padding = 4
    config.data.flip = True
    config.data.policy = 'autoaugment'
    config.data.cutout = 16
    config.model.name = 'resnet20'
    config.model.time_steps = 1
    config.neuron.kind = 'relu'
    config.norm.alpha_residual = 1.0  # that of an ordinary batch norm
    config.optim.learning_rate = 0.1
    config.optim.weight_decay = 5e-4
    config.optim.warmup_fraction = 0.0
    return config
