"""Two small runs that the analyses look at, one with CPNG and one without."""

import shutil

import pytest

from configs import digits
from cpng_jax.analysis.run import Run
from tests.runs import run_with_pictures


@pytest.fixture(scope='session')
def workdir(tmp_path_factory, undisturbed):
    """Folder of a finished run with CPNG."""
    return shutil.copytree(undisturbed[0], tmp_path_factory.mktemp('runs') / 'cpng')


@pytest.fixture(scope='session')
def fixed_workdir(tmp_path_factory, shrink):
    """Folder of the same run without."""
    config, workdir = shrink(digits.get_config()), tmp_path_factory.mktemp('runs') / 'fixed'
    config.cpng.enabled = False
    run_with_pictures(config, workdir)
    return workdir


@pytest.fixture
def run(workdir, fixed_workdir):
    return Run(workdir, versus=Run(fixed_workdir))
