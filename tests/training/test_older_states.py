"""Checkpoints as older versions wrote them: they are read, and the run goes on as it would have."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpng_jax.control.cpng import CPNGState
from cpng_jax.runtime.checkpoint import Checkpoints
from cpng_jax.runtime.workdir import write_json
from cpng_jax.training import older_states
from cpng_jax.training.setup import build
from cpng_jax.training.state import TrainState
from tests.runs import assert_bitwise_equal, epoch_rows, final_state, run_shared


def as_v1(state: TrainState) -> older_states.TrainState:
    """What version 0.1 would have saved: it had a recorder in every run, infinite where another rule set beta."""
    recorder = state.control
    if not isinstance(recorder, CPNGState):
        recorder = CPNGState(jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.inf), state.surrogate))
    return older_states.before(state).replace(cpng=recorder)


def rewrite(config, workdir, copy, layout):
    """A copy of a run whose latest checkpoint has the old layout."""
    checkpoints = Checkpoints(workdir)
    restored = checkpoints.restore(build(config).initial_state())
    checkpoints.close()
    assert restored is not None
    state, progress = restored
    copy.mkdir()
    write_json(copy / 'config.json', config.to_dict())
    (copy / 'metrics.jsonl').write_bytes((workdir / 'metrics.jsonl').read_bytes())
    old = Checkpoints(copy)
    old.save(int(state.step), layout(state), progress, {'test_accuracy': progress['test_accuracy']})
    old.close()


@pytest.mark.trains
@pytest.mark.parametrize(
    ('changes', 'layout'),
    [
        ({}, as_v1),
        ({'cpng.chi': 'counted'}, as_v1),
        ({'cpng.rule': 'mpd_agl', 'cpng.every': 'batch'}, as_v1),
        ({}, older_states.without_height),
    ],
    ids=['cpng', 'counted', 'mpd_agl', 'without heights'],
)
def test_a_run_of_an_older_version_goes_on_bit_for_bit(tmp_path, tiny_config, changes, layout):
    tiny_config.update_from_flattened_dict(changes)
    tiny_config.epochs, tiny_config.checkpoint.keep = 2, 3
    whole, copy = tmp_path / 'whole', tmp_path / 'copy'
    run_shared(tiny_config, whole)
    state, rows = final_state(tiny_config, whole), epoch_rows(whole)
    latest = max(int(path.name) for path in (whole / 'checkpoints').iterdir() if path.name.isdigit())
    (whole / 'checkpoints' / str(latest)).rename(tmp_path / 'last')
    rewrite(tiny_config, whole, copy, layout)
    assert run_shared(tiny_config, copy, 'eval')['step'] == latest // 2
    run_shared(tiny_config, copy)
    assert_bitwise_equal(final_state(tiny_config, copy), state)
    assert epoch_rows(copy) == rows


@pytest.mark.parametrize('layout', older_states.LAYOUTS, ids=['without heights', '0.1'])
def test_heights_are_1_and_what_was_not_measured_is_0(tiny_config, layout):
    tiny_config.cpng.scale_init = 0.5
    state = build(tiny_config).initial_state()
    state = state.replace(epoch=jax.tree.map(lambda leaf: leaf + 1, state.epoch))
    upgraded = layout.upgrade(layout.before(state), state)
    chex.assert_trees_all_equal_shapes_and_dtypes(upgraded, state)
    assert jax.tree.map(lambda leaf: leaf.sharding, upgraded.scale) == jax.tree.map(
        lambda leaf: leaf.sharding, state.scale
    )
    assert set(map(float, jax.tree.leaves(upgraded.scale))) == {1.0}
    new = {name: upgraded.epoch.observed[name] for name in ('currents', 'firing_rate')}
    assert set(map(float, jax.tree.leaves(new))) == {0.0}
    chex.assert_trees_all_equal(upgraded.epoch.observed['membrane'], state.epoch.observed['membrane'])


def test_the_recorder_is_kept_where_the_rule_has_one_and_dropped_elsewhere(tiny_config):
    cpng = build(tiny_config).initial_state()
    recorder = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.3), cpng.surrogate)
    old = as_v1(cpng).replace(cpng=CPNGState(recorder))
    chex.assert_trees_all_equal(older_states.upgrade(old, cpng).control, CPNGState(recorder))
    tiny_config.cpng.enabled = False
    fixed = build(tiny_config).initial_state()
    upgraded = older_states.upgrade(old, fixed)
    assert upgraded.control == ()
    chex.assert_trees_all_equal_structs(upgraded, fixed)
    np.testing.assert_array_equal(upgraded.step, 0)
