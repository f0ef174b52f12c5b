"""Simulated event recordings of scikit-learn's digits, CPNG and TET: the event pipeline without a download.

Not in the paper; its CIFAR10-DVS row with CPNG and TET is the model (Table 5, column CPNG + TET). The recordings are
made at the first use and kept in `data.dir`.
"""

from cpng_jax.configs import base
from cpng_jax.runtime.config import Config


def get_config() -> Config:
    """Returns the configuration of the digits_events experiment."""
    config = base.get_config()
    config.epochs = 20
    config.batch_size = 64
    config.data.name = 'digits_events'
    config.data.event_size = 16
    config.data.roll = 1
    config.model.time_steps = 6
    config.model.stages = ((16,) * 2, (32,) * 2, (64,) * 2)
    config.model.head = ()
    config.loss.name = 'tet'
    config.loss.tet_weight = 1e-3
    config.optim.name = 'adam'
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 4e-5
    config.optim.warmup_fraction = 0.0
    return config
