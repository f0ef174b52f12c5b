"""An ANN for conversion by QCFS: ResNet20 on CIFAR10 (Bu et al., ICLR 2022; Table 4).

    python -m cpng_jax.data.prepare cifar10
    python train.py --config=configs/cifar10_resnet20_qcfs.py --workdir=runs/ann
    python -m cpng_jax.convert --workdir=runs/ann --method=qcfs --time_steps=8,16,32

Theirs reach 89.55, 91.62 and 92.24 % at these T. As in their code: 16, 32 and 64 channels, SGD at 0.1, weight decay of
5e-4 on thresholds, too, a cosine, 300 epochs, batches of 300, crops, flips, AutoAugment, cutout of 16, thresholds of 8
at first. Ours: four levels, of 4 and 8 that are both quoted, and cutout before normalising.

The best epoch is chosen on the test split, as those papers do; `--config.data.validation=0.1` keeps a tenth of the
training examples to choose by.
"""

from cpng_jax.configs import cifar10_resnet20_ann
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the ANN."""
    config = cifar10_resnet20_ann.get_config()
    config.batch_size = 300
    config.model.widths = (16, 32, 64)
    config.model.stem_width = 16
    config.neuron.kind = 'qcfs'
    config.neuron.levels = 4
    return config
