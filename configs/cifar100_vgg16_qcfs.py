"""An ANN for conversion by QCFS: VGG16 on CIFAR100 (Bu et al., ICLR 2022; Table 4).

    python -m cpng_jax.data.prepare cifar100
    python train.py --config=configs/cifar100_vgg16_qcfs.py --workdir=runs/ann
    python -m cpng_jax.convert --workdir=runs/ann --method=qcfs --time_steps=8,16,32

Theirs reach 73.96, 76.24 and 77.01 % at these T. As in their code: five average pools, two layers of 4096 with
activations, no dropout, and what `cifar10_resnet20_qcfs.py` has of it. Their learning rate is 0.02 by an author's word
and 0.05 in the newer README: the latter here.

The best epoch is chosen on the test split, as those papers do; `--config.data.validation=0.1` keeps a tenth of the
training examples to choose by.
"""

from cpng_jax.configs import cifar100_vgg16_ann
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the ANN."""
    config = cifar100_vgg16_ann.get_config()
    config.batch_size = 300
    config.model.head = 'fc4096'
    config.neuron.kind = 'qcfs'
    config.neuron.levels = 4
    config.optim.learning_rate = 0.05
    return config
