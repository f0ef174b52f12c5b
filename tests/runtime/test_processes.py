"""Several processes on this machine that form one run: the same numbers, and nothing lost whatever ends them."""

import random
import signal
import time

import numpy as np
import pytest

from configs import digits
from cpng_jax.runtime import arrays, metrics
from tests.runs import (
    assert_bitwise_equal,
    epoch_rows,
    final_state,
    finish,
    latest,
    start_together,
    wait_for_checkpoint,
)

pytestmark = pytest.mark.processes


def run_together(workdir, config, processes=2, devices=2, mode='train'):
    codes, texts = finish(start_together(workdir, config, processes, devices, mode))
    assert codes == [0] * processes, texts
    return texts


def by_step(config):
    """Two epochs, rated by a validation split; after each step a look at the loss, and CPNG with the gain held."""
    config.epochs = 2
    config.data.validation = 0.02  # and there are eleven steps in an epoch, as without
    config.cpng.every, config.cpng.rule = 'batch', 'cpng_gain'
    config.log.every_steps = 1
    config.checkpoint.every_steps = 20
    config.checkpoint.keep = 3
    config.cluster.heartbeat_timeout = 20
    return config


@pytest.fixture(scope='module')
def alone(tmp_path_factory, shrink):
    """The numbers of one process with one device."""
    config, workdir = by_step(shrink(digits.get_config())), tmp_path_factory.mktemp('alone')
    run_together(workdir, config, 1, 1)
    return workdir


@pytest.fixture(scope='module')
def together(tmp_path_factory, shrink):
    """A run of two processes that nothing disturbs, and what they said."""
    workdir = tmp_path_factory.mktemp('together')
    return workdir, run_together(workdir, by_step(shrink(digits.get_config())))


def assert_same_science(first, second, config):
    """Losses, statistics and betas of each step, and the weights at the end, to float32 tolerance."""
    rows = [[row for row in metrics.read(workdir) if row['event'] == 'step'] for workdir in (first, second)]
    assert [row['step'] for row in rows[0]] == [row['step'] for row in rows[1]]
    assert len(rows[0]) == 20
    for name in ('train_loss', 'train_accuracy'):
        np.testing.assert_allclose(*([row[name] for row in each] for each in rows), rtol=1e-4)
    for mine, theirs in zip(epoch_rows(first), epoch_rows(second), strict=True):
        for name in ('chi', 'beta', 'scale', 'gain', 'chi_min', 'firing_rate'):
            np.testing.assert_allclose(list(mine[name].values()), list(theirs[name].values()), rtol=1e-3)
        assert mine['validation_loss'] == pytest.approx(theirs['validation_loss'], rel=1e-3)
    tested = [metrics.read_test(workdir) for workdir in (first, second)]
    assert tested[0] and tested[1]
    for name in ('test_loss', 'best_test_loss'):
        assert tested[0][name] == pytest.approx(tested[1][name], rel=1e-3)
    states = [final_state(config, workdir) for workdir in (first, second)]
    for name, value in states[0].items():
        np.testing.assert_allclose(value, states[1][name], rtol=1e-2, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(('processes', 'devices'), [(1, 4), (2, 2)])
def test_any_layout_gives_the_same_science(alone, together, tmp_path, tiny_config, processes, devices):
    config = by_step(tiny_config)
    workdir, texts = together if processes == 2 else (tmp_path, run_together(tmp_path, config, processes, devices))
    assert f'{processes * devices} x cpu' in texts[0][0]
    assert all('epoch' not in out for out, _ in texts[1:])
    assert_same_science(alone, workdir, config)


def test_shared_out_weights_change_nothing(alone, tmp_path, tiny_config):
    config = by_step(tiny_config)
    config.mesh.fsdp = True
    config.data.workers = 1
    run_together(tmp_path, config)
    assert_same_science(alone, tmp_path, config)


def test_a_run_goes_on_and_is_evaluated_on_another_layout(alone, tmp_path, tiny_config):
    """SIGUSR1 to one of two processes saves on both at one step; one process with one device then ends the run."""
    config = by_step(tiny_config)
    config.checkpoint.every_steps = 2
    processes = start_together(tmp_path, config)
    wait_for_checkpoint(processes[0], tmp_path, 4)
    processes[1].send_signal(signal.SIGUSR1)  # JAX tells the others of SIGTERM alone
    codes, texts = finish(processes)
    assert codes == [138, 138], texts
    said = {error.strip().splitlines()[-1] for _, error in texts}
    assert len(said) == 1
    assert 'SIGUSR1: saved at step' in said.pop()
    assert metrics.read(tmp_path)[-1]['step'] < 22
    run_together(tmp_path, config, 1, 1)
    config.checkpoint.every_steps = 20
    assert_same_science(alone, tmp_path, config)
    (out, _), (other, _) = run_together(tmp_path, config, mode='eval')
    assert 'latest checkpoint, step 22: test accuracy' in out
    assert 'of 360)' in out
    assert 'test accuracy' not in other


def test_two_processes_start_from_the_weights_that_one_has_found(alone, tmp_path, tiny_config):
    config = by_step(tiny_config)
    config.epochs, config.init_from, config.mesh.fsdp = 1, str(alone), True
    config.optim.learning_rate, config.optim.weight_decay = 1e-9, 0.0
    (out, _), (other, _) = run_together(tmp_path, config)
    assert f'starts from {alone}, checkpoint of step 22: 16 arrays, with beta' in out
    assert 'starts' not in other
    source, state = arrays.read_checkpoint(alone, ['params']).arrays, final_state(config, tmp_path)
    found = {name: leaf for name, leaf in state.items() if name.startswith('.params')}
    assert len(found) == len(source) == 8
    for leaf, expected in zip(found.values(), source.values(), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=1e-6)


@pytest.mark.parametrize('victim', [0, 1])
def test_a_process_that_dies_ends_the_others(tmp_path, tiny_config, victim):
    config = by_step(tiny_config)
    config.epochs = 200
    config.checkpoint.every_steps = 1
    config.cluster.heartbeat_timeout = 6
    processes = start_together(tmp_path, config)
    wait_for_checkpoint(processes[0], tmp_path, 4)
    processes[victim].kill()
    died = time.monotonic()
    codes, texts = finish(processes, timeout=60)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 75
    assert time.monotonic() - died < 30
    error = texts[1 - victim][1].splitlines()
    # Before it may stand what JAX says; nothing comes after it.
    assert [line for line in error if line.startswith('train.py: ')] == error[-1:], error
    assert 'lost another, which has ended' in error[-1], error


def test_a_read_only_workdir_and_a_broken_configuration_end_all_processes(tmp_path, tiny_config):
    (tmp_path / 'file').write_text('')
    config = by_step(tiny_config)
    read_only = start_together(tmp_path / 'file', config)
    config.batch_size = 126
    broken = start_together(tmp_path / 'new', config)
    codes, texts = finish(read_only, timeout=120)
    assert codes == [2, 2]
    assert all('Cannot write to the workdir' in error and error.count('\n') == 1 for _, error in texts), texts
    codes, texts = finish(broken, timeout=120)
    assert codes == [2, 2]
    assert all('126, which 4 devices cannot share evenly' in error for _, error in texts)


def test_eight_kills_at_random_moments_change_nothing(together, tmp_path, tiny_config):
    """Of two processes one or both are killed, eight times, at moments drawn at random: the weights of a quiet run.

    Four moments lie between the start and the first step, the others after a step that was saved.
    """
    quiet, _ = together
    config = by_step(tiny_config)
    config.checkpoint.every_steps = 1
    config.cluster.heartbeat_timeout = 3
    config.cluster.start_timeout = 20
    moments = random.Random(0)
    for kill in range(8):
        processes = start_together(tmp_path, config)
        if kill % 4 < 2:
            wait_for_checkpoint(processes[0], tmp_path, latest(tmp_path) + 1)
            longest = 0.3
        else:
            longest = 3
        deadline = time.monotonic() + moments.uniform(0, longest)
        while time.monotonic() < deadline and processes[0].poll() is None:
            time.sleep(0.01)
        for process in processes if kill % 2 else [processes[moments.randrange(2)]]:
            process.kill()
        finish(processes, timeout=120)
    config.cluster.heartbeat_timeout = 20
    run_together(tmp_path, config)
    assert_bitwise_equal(final_state(config, quiet), final_state(config, tmp_path))
    assert epoch_rows(quiet) == epoch_rows(tmp_path)
