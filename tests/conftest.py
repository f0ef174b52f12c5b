"""Shared by the tests of the program: a configuration small enough to train in seconds."""

import pytest
from ml_collections import ConfigDict

from configs import digits


@pytest.fixture
def tiny_config() -> ConfigDict:
    """Two spiking convolutions on digits, three epochs of eleven steps."""
    config = digits.get_config()
    config.epochs = 3
    config.batch_size = 128
    config.model.time_steps = 2
    config.model.stages = ((4,), (8,))
    config.eval.batch_size = 100  # does not divide the 360 test digits
    return config
