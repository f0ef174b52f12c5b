"""A run as the analyses open it."""

import shutil

import pytest

from cpng_jax.analysis.run import Run
from cpng_jax.runtime.workdir import acquire
from cpng_jax.training import keys, loop


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [({}, True), ({'cpng.enabled': False}, False), ({'cpng.rule': 'fixed'}, False), ({'cpng.rule': 'mpd_agl'}, True)],
    ids=str,
)
def test_nothing_sets_beta_where_it_is_off_or_fixed(tmp_path, tiny_config, changes, expected):
    tiny_config.update_from_flattened_dict(changes)
    acquire(tmp_path / 'run', tiny_config, keys.table())
    assert Run(tmp_path / 'run').sets_beta == expected


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
