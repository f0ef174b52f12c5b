"""SEW-ResNet34 on ImageNet by its authors' recipe, without CPNG: T = 4; 67.04 % in Table 4, after Fang et al.

Known, from their code and logs (NeurIPS 2021): ADD, integrate-and-fire with the reset detached, arctan, 320 epochs on 8
GPUs with 32 images each, SGD at 0.1 with a cosine to 0, without weight decay and warm-up. Each GPU normalises by its
own images: here 8 micro-batches do, whose running averages move as far together as theirs in a step. Ours: bfloat16 for
their float16, and weights drawn by the number of inputs, not outputs. The CPNG paper's recipe is another one,
`imagenet_sew_resnet34.py`. First: `python -m cpng_jax.data.prepare imagenet2012`.

The best epoch is chosen on the test split, as in the paper; `--config.data.validation=0.1` keeps a tenth of the
training examples to choose by.
"""

from cpng_jax.configs import imagenet_sew_resnet34
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of Table 4, row SEW-ResNet."""
    config = imagenet_sew_resnet34.get_config()
    config.epochs = 320
    config.batch_size = 256
    config.dtype = 'bfloat16'
    config.neuron.surrogate = 'arctan'
    config.norm.momentum = 0.9 ** (1 / 8)
    config.optim.accumulate = 8
    config.optim.learning_rate = 0.1
    config.optim.weight_decay = 0.0
    config.cpng.enabled = False
    return config
