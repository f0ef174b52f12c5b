"""Setups that runs of many seeds share."""

import chex
import jax
import numpy as np
import pytest

from cpng_jax.training.setup import build, build_for_seeds

pytestmark = pytest.mark.trains


def _changed(config, changes):
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(changes)
    return changed


def _first_batch(setup):
    with setup.train_batches(first_step=0) as batches:
        return next(iter(batches))


def test_seeds_share_programs_and_nothing_else(tiny_config):
    """What a seed gets from the shared setup is what it gets from its own."""
    shared = build_for_seeds()
    one, other = (shared(_changed(tiny_config, {'seed': seed})) for seed in (0, 1))
    assert other.train_step is one.train_step
    assert other.eval_step is one.eval_step
    assert (one.config.seed, other.config.seed) == (0, 1)
    for seed, setup in enumerate((one, other)):
        own = build(_changed(tiny_config, {'seed': seed}))
        chex.assert_trees_all_equal(setup.initial_state(), own.initial_state())
        chex.assert_trees_all_equal(_first_batch(setup), _first_batch(own))
    weights = [jax.tree.leaves(setup.initial_state().params)[0] for setup in (one, other)]
    assert not np.array_equal(*weights)


@pytest.mark.parametrize(
    ('key', 'drawn'),
    [('epochs', {}), ('seed', {'data.mixup_alpha': 0.2}), ('seed', {'model.dropout': 0.2})],
)
def test_what_compiles_otherwise_is_built_anew(tiny_config, key, drawn):
    """Mixing and dropout draw from the seed within the step."""
    tiny_config.model.dropout = 0.0
    shared, config = build_for_seeds(), _changed(tiny_config, drawn)
    other = _changed(config, {key: config[key] + 1})
    assert shared(other).train_step is not shared(config).train_step


def test_those_used_last_are_kept(tiny_config):
    shared = build_for_seeds(most=2)
    steps = {epochs: shared(_changed(tiny_config, {'epochs': epochs})).train_step for epochs in (1, 2, 1, 3)}
    assert shared(_changed(tiny_config, {'epochs': 1})).train_step is steps[1]
    assert shared(_changed(tiny_config, {'epochs': 2})).train_step is not steps[2]
