"""The configuration that the experiments start from: the paper's setting where it has one.

An experiment's file calls `get_config()` and changes what is its own. `cpng_jax/training/keys.py` has every key, with
its default, its range and its meaning; `python train.py --mode=keys` and docs/keys.md list them.
"""

from cpng_jax.runtime.config import Config, defaults
from cpng_jax.training import keys


def get_config() -> Config:
    """Returns the defaults that the experiments start from, with every key there is.

    `data.time_steps` follows `model.time_steps`, and `loss.tet_target` follows `neuron.v_th`: setting one sets both.
    """
    return defaults(keys.table())
