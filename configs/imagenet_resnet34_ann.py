"""An ANN for conversion by calibration: ResNet34 on ImageNet (Li et al., ICML 2021; Table 4).

    python -m cpng_jax.data.prepare imagenet2012
    python train.py --config=configs/imagenet_resnet34_ann.py --workdir=runs/ann
    python -m cpng_jax.convert --workdir=runs/ann --method=calibration_advanced --time_steps=32,64,128

Theirs, a checkpoint whose training they do not tell, reaches 75.66 % as an ANN and 64.54 % at T = 32. As in their code:
three convolutions as the stem, and an average pool. Ours is the usual recipe: 120 epochs, batches of 256, SGD at 0.1, a
cosine, weight decay of 1e-4.

The best epoch is chosen on the test split, as those papers do; `--config.data.validation=0.1` keeps a tenth of the
training examples to choose by.
"""

from cpng_jax.configs import imagenet_sew_resnet34
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the ANN."""
    config = imagenet_sew_resnet34.get_config()
    del config.model.connect
    config.epochs = 120
    config.batch_size = 256
    config.model.name = 'resnet34'
    config.model.time_steps = 1
    config.neuron.kind = 'relu'
    config.neuron.tau = 0.5
    config.neuron.detach_reset = False
    config.norm.alpha_residual = 1.0  # that of an ordinary batch norm
    config.optim.learning_rate = 0.1
    config.optim.weight_decay = 1e-4
    config.optim.warmup_fraction = 0.05
    return config
