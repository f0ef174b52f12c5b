"""A run that is given more epochs: what it computes from there, what it keeps, and what it says."""

import itertools
import json
import shutil

import pytest

from configs import digits
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.signals import Stopped
from cpng_jax.training import optim
from tests.runs import assert_bitwise_equal, epoch_rows, final_state, run_shared, stopped_at

pytestmark = pytest.mark.trains


@pytest.fixture(scope='module')
def finished(tmp_path_factory, shrink):
    """A finished run of two epochs, and its result."""
    config, workdir = shrink(digits.get_config()), tmp_path_factory.mktemp('finished')
    config.epochs = 2
    return workdir, run_shared(config, workdir)


@pytest.fixture(scope='module')
def lengthened(finished, tmp_path_factory, shrink):
    """The same run, given two more epochs."""
    config, workdir = shrink(digits.get_config()), tmp_path_factory.mktemp('lengthened') / 'run'
    config.epochs = 4
    shutil.copytree(finished[0], workdir)
    return workdir, run_shared(config, workdir)


def test_it_goes_on_by_the_schedule_of_the_new_length(finished, lengthened, tiny_config):
    workdir, result = lengthened
    rows = epoch_rows(workdir)
    assert rows[:2] == epoch_rows(finished[0])
    assert [(row['epoch'], row['step']) for row in rows] == [(1, 11), (2, 22), (3, 33), (4, 44)]
    for row, steps in zip(rows, (22, 22, 44, 44), strict=True):
        rate = optim.learning_rate(tiny_config.optim, steps)(row['step'] - 1)
        assert row['learning_rate'] == pytest.approx(float(rate), rel=1e-6), row['epoch']
    accuracies = [row['test_accuracy'] for row in rows]
    assert result['step'] == 44
    assert result['test_accuracy'] == accuracies[-1]
    assert result['best_accuracy'] == max(accuracies)
    assert result['best_epoch'] == max(range(1, 5), key=lambda epoch: (accuracies[epoch - 1], epoch))
    for before, after in itertools.pairwise(rows):  # Algorithm 1 remembers what it has recorded
        assert all(after['chi_min'][layer] <= max(chi, 0.2) + 1e-6 for layer, chi in before['chi_min'].items())


def test_the_workdir_keeps_what_the_epochs_were(lengthened, tiny_config):
    workdir, _ = lengthened
    tiny_config.epochs = 4
    assert json.loads((workdir / 'config.json').read_text()) == json.loads(tiny_config.to_json())
    assert json.loads((workdir / 'config_history.json').read_text()) == [{'step': 22, 'epochs': 2}]


def test_a_stop_in_between_changes_no_bit(finished, lengthened, tiny_config, tmp_path, capsys):
    workdir = tmp_path / 'run'
    shutil.copytree(finished[0], workdir)
    tiny_config.epochs = 4
    with stopped_at(6), pytest.raises(Stopped, match='SIGTERM: saved at step 27'):
        run_shared(tiny_config, workdir)
    said = 'raised epochs from 2 to 4: from step 22 on the learning rate is that of 44 steps in all, '
    assert said in capsys.readouterr().out
    run_shared(tiny_config, workdir)
    assert said not in capsys.readouterr().out
    assert_bitwise_equal(final_state(tiny_config, workdir), final_state(tiny_config, lengthened[0]))
    assert epoch_rows(workdir) == epoch_rows(lengthened[0])


def test_it_is_what_the_longer_run_makes_of_that_checkpoint(finished, lengthened, tiny_config, tmp_path):
    """What was configured before leaves no trace but the state itself."""
    shutil.copytree(finished[0] / 'checkpoints', tmp_path / 'run' / 'checkpoints')
    tiny_config.epochs = 4
    run_shared(tiny_config, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'config_history.json').exists()
    assert_bitwise_equal(final_state(tiny_config, tmp_path / 'run'), final_state(tiny_config, lengthened[0]))
    assert epoch_rows(tmp_path / 'run') == epoch_rows(lengthened[0])[2:]


def test_fewer_epochs_are_refused(lengthened, tiny_config):
    before = epoch_rows(lengthened[0])
    with pytest.raises(
        UserError, match=r'epochs: 4 -> 3 \(epochs may be raised, not lowered\)\. Choose another --workd'
    ):
        run_shared(tiny_config, lengthened[0])
    assert epoch_rows(lengthened[0]) == before
