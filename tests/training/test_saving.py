"""When checkpoints are written: every so many epochs, at the end, at a stop, and of the best epoch in any case."""

import signal

import jax
import pytest

from configs import digits
from cpng_jax.runtime import checkpoint_reader
from cpng_jax.runtime.checkpoint import Checkpoints
from cpng_jax.runtime.errors import DivergedError
from cpng_jax.runtime.signals import Stopped
from cpng_jax.training import loop
from cpng_jax.training.saving import Saver
from cpng_jax.training.setup import build
from tests.runs import assert_bitwise_equal, epoch_rows, final_state, start, stopped_at, wait_for_checkpoint

PER_EPOCH = 11


@pytest.fixture(scope='module')
def setup_and_state(shrink):
    config = shrink(digits.get_config())
    config.epochs = 6
    setup = build(config)
    return setup, setup.initial_state()


def saved(setup_and_state, workdir, accuracies, *, every_epochs, every_steps=0, keep=9, stop_at=None):
    """Steps that are saved of a run whose epochs have these accuracies, and the step of the best."""
    setup, state = setup_and_state
    setup.config.checkpoint.update({'every_epochs': every_epochs, 'every_steps': every_steps})
    checkpoints = Checkpoints(workdir, keep=keep)
    saver, results = Saver(checkpoints, setup), {'best_accuracy': 0.0, 'best_epoch': 0}
    for step in range(1, (stop_at or setup.steps) + 1):
        if step % PER_EPOCH == 0:
            accuracy = accuracies[step // PER_EPOCH - 1]
            results = loop._rank(results, {'epoch': step // PER_EPOCH, 'test_accuracy': accuracy})
        saver.after(step, state, results, stopping=step == stop_at)
    checkpoints.wait()
    steps, best = checkpoints.steps(), checkpoints.best_step()
    checkpoints.close()
    return steps, best


def test_the_best_epoch_is_saved_with_the_next_that_is_due(setup_and_state, tmp_path):
    steps, best = saved(setup_and_state, tmp_path, [0.1, 0.5, 0.3, 0.6, 0.2, 0.4], every_epochs=3)
    assert (steps, best) == ([2 * PER_EPOCH, 3 * PER_EPOCH, 4 * PER_EPOCH, 6 * PER_EPOCH], 4 * PER_EPOCH)


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({'every_epochs': 1}, [11, 22, 33, 44, 55, 66]),
        ({'every_epochs': 2}, [22, 44, 66]),
        ({'every_epochs': 4}, [44, 66]),
        ({'every_epochs': 99}, [66]),
        ({'every_epochs': 99, 'every_steps': 20}, [11, 20, 33, 40, 55, 60, 66]),
        ({'every_epochs': 4, 'stop_at': 50}, [44, 50]),
        ({'every_epochs': 99, 'stop_at': 40}, [33, 40]),
        ({'every_epochs': 1, 'keep': 2}, [55, 66]),
    ],
    ids=str,
)
def test_what_is_due_is_saved_and_the_best_epoch_before_it(setup_and_state, tmp_path, options, expected):
    steps, best = saved(setup_and_state, tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], **options)
    assert steps == expected
    assert best == max(step for step in steps if step % PER_EPOCH == 0)


def test_nothing_that_is_not_finite_is_saved(setup_and_state, tmp_path):
    setup, state = setup_and_state
    setup.config.checkpoint.update({'every_epochs': 2, 'every_steps': 0})
    checkpoints = Checkpoints(tmp_path)
    saver, results = Saver(checkpoints, setup), {'test_accuracy': 0.5, 'best_accuracy': 0.5, 'best_epoch': 1}
    saver.after(PER_EPOCH, state, results, stopping=False)  # the best so far, kept for later
    assert checkpoints.steps() == []
    broken = state.replace(params=jax.tree.map(lambda leaf: leaf * float('nan'), state.params))
    with pytest.raises(DivergedError, match=r'a weight .* by step 0\. The checkpoint of step 11 is kept'):
        saver.after(2 * PER_EPOCH, broken, results, stopping=False)
    checkpoints.close()


@pytest.mark.trains
def test_a_run_that_saves_rarely_is_the_run_that_saves_often(undisturbed, tiny_config, tmp_path):
    """After a stop and a kill, too: what came after the last checkpoint is done again."""
    workdir, result = undisturbed
    tiny_config.checkpoint.every_epochs = 2
    with stopped_at(20), pytest.raises(Stopped, match='SIGTERM: saved at step 15'):
        loop.run(tiny_config, tmp_path)
    process = start(tmp_path, tiny_config)
    wait_for_checkpoint(process, tmp_path, 22)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert loop.run(tiny_config, tmp_path) == result
    assert_bitwise_equal(final_state(tiny_config, workdir), final_state(tiny_config, tmp_path))
    assert epoch_rows(workdir) == epoch_rows(tmp_path)
    best = result['best_epoch'] * PER_EPOCH
    assert checkpoint_reader.best_step_in(tmp_path / 'checkpoints') == best
    assert {*checkpoint_reader.steps_in(tmp_path / 'checkpoints')} <= {15, 22, 33, best}
