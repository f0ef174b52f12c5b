"""A run as the analyses open it."""

import shutil

import pytest

from cpng_jax.analysis.run import Run
from cpng_jax.training import loop


@pytest.mark.trains
@pytest.mark.parametrize('rule', ['from_run', 'cpng'])
def test_a_run_that_took_the_beta_of_another_needs_it_no_more(tmp_path, tiny_config, rule):
    tiny_config.epochs = 1
    loop.run(tiny_config, tmp_path / 'first')
    tiny_config.cpng.rule, tiny_config.cpng.beta_from = rule, str(tmp_path / 'first')
    loop.run(tiny_config, tmp_path / 'second')
    shutil.rmtree(tmp_path / 'first')
    run = Run(tmp_path / 'second')
    assert int(run.state.step) == run.setup.steps
