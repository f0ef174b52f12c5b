import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from cpng_jax.runtime import sharding
from cpng_jax.runtime.checkpoint import Checkpoints
from cpng_jax.runtime.checkpoint_reader import Layout
from cpng_jax.runtime.errors import UserError


class State(struct.PyTreeNode):
    """What a checkpoint may hold: dictionaries, and the tuples of an optimiser."""

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any


def make_state(seed=0, width=3, layers=1):
    rng, names = np.random.default_rng(seed), [f'conv{index:02}' for index in range(1, layers + 1)]
    params = {name: {'conv': {'kernel': jnp.asarray(rng.normal(size=(3, 3, 1, width)), jnp.float32)}} for name in names}
    batch_stats = {name: {'norm': {'norm': {'mean': jnp.zeros(width), 'var': jnp.ones(width)}}} for name in names}
    return State(jnp.int32(0), params, batch_stats, optax.sgd(0.1, momentum=0.9).init(params))


def at_step(state, step):
    return state.replace(step=jnp.int32(step), params=jax.tree.map(lambda leaf: leaf + step / 7, state.params))


def rated(accuracy):
    """What a checkpoint is rated by; None within an epoch."""
    return None if accuracy is None else {'test_accuracy': accuracy}


def save_all(workdir, accuracies, keep=2):
    checkpoints = Checkpoints(workdir, keep=keep)
    state = make_state()
    for step, accuracy in enumerate(accuracies, start=1):
        checkpoints.save(step, at_step(state, step), {'test_accuracy': accuracy, 'note': step}, rated(accuracy))
    checkpoints.wait()
    return checkpoints


def damage(workdir, step, item):
    """Cuts the files of a part of a checkpoint in half, as a full disk or a lost node would; '.' is all of it."""
    for path in pathlib.Path(workdir, 'checkpoints', str(step), item).rglob('*'):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def same(first, second):
    return jax.tree.structure(first) == jax.tree.structure(second) and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


def test_an_empty_workdir_has_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(make_state()) is None
    assert checkpoints.best_step() is None
    checkpoints.close()


def test_a_checkpoint_is_restored_bit_for_bit(tmp_path):
    save_all(tmp_path, [0.5, 0.4]).close()
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(make_state(seed=1))
    checkpoints.close()
    assert restored is not None
    state, progress = restored
    assert same(state, at_step(make_state(), 2))
    assert type(state) is State
    assert progress == {'test_accuracy': 0.4, 'note': 2}


def test_latest_and_best_are_kept(tmp_path):
    checkpoints = save_all(tmp_path, [0.1, 0.9, 0.3, 0.9, 0.2, None, 0.4, 0.1])
    # Of equals the later is the best, as the training log says too.
    assert checkpoints.steps() == [4, 7, 8]
    assert checkpoints.best_step() == 4
    restored = checkpoints.restore(make_state(), 'best')
    checkpoints.close()
    assert restored is not None
    assert int(restored[0].step) == 4


def test_best_is_the_latest_while_none_is_rated(tmp_path):
    checkpoints = save_all(tmp_path, [None, None])
    restored = checkpoints.restore(make_state(), 'best')
    checkpoints.close()
    assert restored is not None
    assert int(restored[0].step) == 2


def test_a_step_is_saved_once(tmp_path):
    checkpoints = save_all(tmp_path, [0.5])
    checkpoints.save(1, at_step(make_state(), 1), {'note': 'again'}, {'test_accuracy': 0.6})
    checkpoints.wait()
    restored = checkpoints.restore(make_state())
    checkpoints.close()
    assert restored is not None
    assert restored[1]['note'] == 1


@pytest.mark.parametrize('item', ['.', 'state', 'metrics', 'progress'])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, item):
    save_all(tmp_path, [0.5, 0.6]).close()
    damage(tmp_path, 2, item)
    with pytest.warns(UserWarning, match=r'checkpoint of step 2 cannot be read .*broken/2'):
        checkpoints = Checkpoints(tmp_path)
        restored = checkpoints.restore(make_state())
    assert restored is not None
    assert int(restored[0].step) == 1
    assert (tmp_path / 'checkpoints' / 'broken' / '2').is_dir()
    # Its step can be saved again, and then counts.
    checkpoints.save(2, at_step(make_state(), 2), {'note': 'new'}, {'test_accuracy': 0.7})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()


def test_when_all_are_damaged_nothing_is_moved(tmp_path):
    save_all(tmp_path, [0.5, 0.6]).close()
    damage(tmp_path, 1, 'state')
    damage(tmp_path, 2, 'state')
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=r'None of the checkpoints .* can be read \(step 2: .*; step 1: '):
        checkpoints.restore(make_state())
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir() if path.is_dir()) == ['1', '2']


def test_another_network_does_not_fit_and_nothing_is_moved(tmp_path):
    save_all(tmp_path, [0.5]).close()
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(
        UserError, match=r'step 1 .* another network .*: batch_stats.conv01.norm.norm.mean is 3, expected 5\.'
    ):
        checkpoints.restore(make_state(width=5))
    with pytest.raises(UserError, match=r'conv02.* is missing, expected 3\.'):
        checkpoints.restore(make_state(layers=2))
    checkpoints.close()
    assert (tmp_path / 'checkpoints' / '1').is_dir()


def test_a_file_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / 'checkpoints').write_text('in the way')
    with pytest.raises(UserError, match='Cannot keep checkpoints in'):
        Checkpoints(tmp_path)


class OldState(struct.PyTreeNode):
    """As `State` was before it had an optimiser, with the numbers of a layer in one place."""

    step: Any
    layers: Any


def old_layout(target):
    layers = {name: {'conv': conv['conv'], **target.batch_stats[name]} for name, conv in target.params.items()}
    return OldState(target.step, layers)


def upgrade(old, target):
    params = {name: {'conv': layer['conv']} for name, layer in old.layers.items()}
    batch_stats = {name: {'norm': layer['norm']} for name, layer in old.layers.items()}
    return target.replace(step=old.step, params=params, batch_stats=batch_stats)


OLDER = [Layout(lambda target: {'number': target.step}, lambda old, target: target), Layout(old_layout, upgrade)]


def save_as_before(workdir, step):
    checkpoints = Checkpoints(workdir)
    checkpoints.save(step, old_layout(at_step(make_state(), step)), {'note': step}, {'test_accuracy': 0.5})
    checkpoints.close()


def test_a_checkpoint_of_an_older_layout_is_brought_up_to_date(tmp_path):
    save_as_before(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(make_state(seed=1), older=OLDER)
    assert restored is not None
    assert same(restored[0], at_step(make_state(), 1))
    assert restored[1] == {'note': 1}
    # What is saved from then on has today's layout, and both kinds may lie side by side.
    checkpoints.save(2, at_step(make_state(), 2), {'note': 2}, {'test_accuracy': 0.4})
    checkpoints.wait()
    for which, step in (('latest', 2), ('best', 1)):
        restored = checkpoints.restore(make_state(seed=1), which, OLDER)
        assert restored is not None
        assert same(restored[0], at_step(make_state(), step))
    checkpoints.close()


def test_an_older_layout_is_read_to_where_its_arrays_shall_live(tmp_path):
    save_as_before(tmp_path, 1)
    mesh = sharding.make_mesh(1)
    split, whole = NamedSharding(mesh, PartitionSpec('data')), sharding.replicated(mesh)
    target = jax.device_put(make_state(seed=1), whole)
    target = target.replace(params=jax.device_put(target.params, split))
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(target, older=OLDER)
    checkpoints.close()
    assert restored is not None
    shardings = jax.tree.map(lambda leaf: leaf.sharding, restored[0])
    assert shardings == jax.tree.map(lambda leaf: leaf.sharding, target)
    assert shardings.params['conv01']['conv']['kernel'] == split != whole


def test_a_checkpoint_of_no_known_layout_is_measured_by_that_of_today(tmp_path):
    save_as_before(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    for older in ((), OLDER):
        with pytest.raises(UserError, match=r'step 1 .*: batch_stats.conv01.norm.norm.mean is missing, expected 5\.'):
            checkpoints.restore(make_state(width=5), older=older)
    checkpoints.close()
    assert (tmp_path / 'checkpoints' / '1').is_dir()


def test_a_damaged_checkpoint_gives_way_to_one_of_an_older_layout(tmp_path):
    save_as_before(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, at_step(make_state(), 2), {'note': 2}, {'test_accuracy': 0.4})
    checkpoints.close()
    damage(tmp_path, 2, 'state')
    checkpoints = Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match=r'checkpoint of step 2 cannot be read .*broken/2'):
        restored = checkpoints.restore(make_state(seed=1), older=OLDER)
    checkpoints.close()
    assert restored is not None
    assert same(restored[0], at_step(make_state(), 1))
