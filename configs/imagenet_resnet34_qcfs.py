"""An ANN for conversion by QCFS: ResNet34 on ImageNet (Bu et al., ICLR 2022; Table 4).

    python -m cpng_jax.data.prepare imagenet2012
    python train.py --config=configs/imagenet_resnet34_qcfs.py --workdir=runs/ann
    python -m cpng_jax.convert --workdir=runs/ann --method=qcfs --time_steps=16,32,64

Theirs reach 59.35, 69.37 and 72.35 % at these T, with eight levels. Their learning rate, weight decay and epochs are
not known to us: those of `imagenet_resnet34_ann.py` are taken, and its network.

The best epoch is chosen on the test split, as those papers do; `--config.data.validation=0.1` keeps a tenth of the
training examples to choose by.
"""

from cpng_jax.configs import imagenet_resnet34_ann
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the ANN."""
    config = imagenet_resnet34_ann.get_config()
    config.neuron.kind = 'qcfs'
    config.neuron.levels = 8
    return config
