"""Shared by the tests of the program: a configuration small enough to train in seconds."""

import pytest

from configs import digits
from cpng_jax.config import Config


@pytest.fixture
def tiny_config() -> Config:
    """Two spiking convolutions on digits, three epochs of eleven steps."""
    config = digits.get_config()
    config.epochs = 3
    config.batch_size = 128
    config.model.time_steps = 2
    config.model.stages = ((4,), (8,))
    config.eval.batch_size = 100  # does not divide the 360 test digits
    return config
