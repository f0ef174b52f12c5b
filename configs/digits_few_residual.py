"""What digits_few learns, by a residual network of thirteen layers in its two widths.

Not in the paper. For docs/results.md: how deep plain and residual networks train, and by which surrogate gradient.
"""

from cpng_jax.configs import digits_few
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the digits_few_residual experiment."""
    config = digits_few.get_config()
    del config.model.stages, config.model.head
    config.model.name = 'resnet20'
    config.model.stem_width = 8
    config.model.widths = (8, 24)
    config.model.blocks = (2, 4)
    return config
