"""Shared by the tests of the program: a configuration small enough to train in seconds."""

from collections.abc import Callable

import pytest

from configs import digits
from cpng_jax.config import Config


def _shrink(config: Config) -> Config:
    """Two spiking convolutions, three epochs of eleven steps."""
    config.epochs = 3
    config.batch_size = 128
    config.model.time_steps = 2
    config.model.stages = ((4,), (8,))
    config.eval.batch_size = 100  # does not divide the 360 test digits
    return config


@pytest.fixture(scope='session')
def shrink() -> Callable[[Config], Config]:
    return _shrink


@pytest.fixture
def tiny_config() -> Config:
    return _shrink(digits.get_config())
