"""Two small runs that the analyses look at, one with CPNG and one without."""

import pytest

from configs import digits
from cpng_jax.analysis.run import Run
from cpng_jax.training import loop


def _train(tmp_path_factory, shrink, enabled):
    config = shrink(digits.get_config())
    config.cpng.enabled = enabled
    workdir = tmp_path_factory.mktemp('runs') / ('cpng' if enabled else 'fixed')
    loop.run(config, workdir)
    return workdir


@pytest.fixture(scope='session')
def workdir(tmp_path_factory, shrink):
    """Folder of a finished run with CPNG."""
    return _train(tmp_path_factory, shrink, True)


@pytest.fixture(scope='session')
def fixed_workdir(tmp_path_factory, shrink):
    """Folder of the same run without."""
    return _train(tmp_path_factory, shrink, False)


@pytest.fixture
def run(workdir, fixed_workdir):
    return Run(workdir, versus=Run(fixed_workdir))
