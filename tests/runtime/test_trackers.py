import pathlib
import re
import sys
import types
from unittest import mock

import pytest

from configs import base
from cpng_jax.runtime import metrics, trackers
from cpng_jax.runtime.config import flatten, refuse_idle, validate
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import keys

ROOT = pathlib.Path(__file__).parents[2]


def configured(**log):
    config = base.get_config()
    config.log.update(log)
    validate(config, keys.table())
    return config


def opened(workdir, first_step=0, say=print, **log):
    return trackers.Writers(workdir, trackers.chosen(configured(**log)), first_step=first_step, say=say)


def write(workdir, steps, first_step=0, **log):
    """Rows as a run writes them, ten steps an epoch."""
    with opened(workdir, first_step, **log) as writers:
        writers.write('memory', first_step, {'peak': 5})
        for step in steps:
            event = 'step' if step % 10 else 'epoch'
            writers.write(event, step, {'loss': step / 10, 'beta': {'conv01': 1.0 + step}, 'skipped': ['conv02']})


def events(workdir):
    """Steps and values by tag, of all files of TensorBoard events."""
    from tensorboardX.proto.event_pb2 import Event

    seen = {}
    for path in sorted((workdir / 'tensorboard').iterdir()):
        content, position = path.read_bytes(), 0
        while position < len(content):  # TFRecord: length, checksum, event, checksum
            length = int.from_bytes(content[position : position + 8], 'little')
            event = Event.FromString(content[position + 12 : position + 12 + length])
            seen |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
            position += 16 + length
    return seen


def test_tensorboard_gets_the_numbers_by_path(tmp_path):
    write(tmp_path, [7])
    seen = events(tmp_path)
    assert seen.pop('memory/peak') == (0, 5)
    assert seen == {'step/loss': (7, pytest.approx(0.7)), 'step/beta/conv01': (7, 8.0)}
    assert [row['step'] for row in metrics.read(tmp_path)] == [0, 7]


def test_without_tensorboardx_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    with pytest.raises(UserError, match=r'pip install tensorboardX, or go without: config\.log\.tensorboard=False'):
        trackers.chosen(configured())
    write(tmp_path, [7], tensorboard=False)
    assert not (tmp_path / 'tensorboard').exists()
    assert [row['step'] for row in metrics.read(tmp_path)] == [0, 7]


def test_a_process_that_is_not_the_primary_one_writes_nothing(tmp_path):
    with trackers.Writers(tmp_path, None) as writers:
        writers.write('epoch', 1, {'loss': 0.5})
    assert not list(tmp_path.iterdir())


class Recorded:
    """A run of the stand-in: what it was made with, and what it was handed."""

    def __init__(self, steps_there, options):
        self.step, self.options = steps_there, options
        self.rows, self.summary, self.finished = [], {}, False

    def log(self, numbers, step):
        self.rows.append((step, numbers))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in that keeps its runs; the number of steps that its server has is `steps_there`."""
    module = types.ModuleType('wandb')
    module.runs, module.steps_there = [], 0

    def init(**options):
        module.runs.append(Recorded(module.steps_there, options))
        return module.runs[-1]

    module.init, module.Settings, module.teardown = init, dict, mock.Mock()
    monkeypatch.setitem(sys.modules, 'wandb', module)
    monkeypatch.setenv('WANDB_ERROR_REPORTING', '')
    monkeypatch.delenv('WANDB_ERROR_REPORTING')
    return module


def steps_of(run):
    return [(next(iter(numbers)).split('/')[0], step) for step, numbers in run.rows]


def test_weights_and_biases_gets_the_run_and_nothing_is_sent(tmp_path, wandb, monkeypatch):
    workdir = tmp_path / 'digits'
    workdir.mkdir()
    monkeypatch.chdir(workdir)
    write(workdir / '..' / 'digits', [5, 10], wandb='spikes')
    (run,) = wandb.runs
    assert run.finished
    assert run.rows == [
        (5, {'step/loss': 0.5, 'step/beta/conv01': 6.0}),
        (10, {'epoch/loss': 1, 'epoch/beta/conv01': 11}),
    ]
    assert run.summary == {'memory/peak': 5}
    options = run.options
    assert (options['entity'], options['project'], options['name']) == (None, 'spikes', 'digits')
    assert (options['mode'], options['resume'], options['settings']) == (
        'offline',
        None,
        {'console': 'off', 'silent': True},
    )
    assert options['config'] == flatten(configured(wandb='spikes'))
    assert trackers.os.environ['WANDB_ERROR_REPORTING'] == 'false'
    assert (workdir / 'wandb' / 'id').read_text() == options['id']
    assert (workdir / 'tensorboard').exists()


def test_offline_the_latest_files_are_the_whole_run_each_row_once(tmp_path, wandb):
    write(tmp_path, [5, 10, 15, 20, 25], wandb='spikes')  # then killed, the latest checkpoint that of step 10
    write(tmp_path, [15, 20, 25, 30], first_step=10, wandb='spikes')
    first, second = wandb.runs
    assert first.options['id'] == second.options['id']
    whole = [(('step', 'epoch')[step % 10 == 0], step) for step in range(5, 31, 5)]
    assert steps_of(second) == whole
    assert second.rows[:5] == first.rows


def test_online_a_run_gets_what_it_lacks(tmp_path, wandb):
    write(tmp_path, [5, 10, 15])  # rows of before it was asked for are handed over
    online = {'wandb': 'team/spikes', 'wandb_mode': 'online', 'tensorboard': False}
    write(tmp_path, [15, 20, 25], first_step=10, **online)
    wandb.steps_there = 26
    write(tmp_path, [25, 30], first_step=20, **online)  # killed, and gone on
    first, second = wandb.runs
    assert [step for step, _ in first.rows] == [5, 10, 15, 20, 25]
    assert [step for step, _ in second.rows] == [30]
    for run in wandb.runs:
        options = run.options
        assert (options['entity'], options['project'], options['resume']) == ('team', 'spikes', 'allow')
        assert options['settings'] == {'console': 'off', 'silent': False}
    assert 'WANDB_ERROR_REPORTING' not in trackers.os.environ


def test_what_comes_once_is_not_lost_where_its_step_is_there(tmp_path, wandb):
    wandb.steps_there = 31
    with opened(tmp_path, 30, wandb='spikes', wandb_mode='online') as writers:
        writers.write('test', 30, {'test_accuracy': 0.9})
    assert wandb.runs[0].summary == {'test/test_accuracy': 0.9}


@pytest.mark.parametrize('found', [None, types.ModuleType('wandb')], ids=['nothing', 'a folder of its name'])
def test_without_wandb_one_sentence_says_what_to_do(monkeypatch, found):
    monkeypatch.setitem(sys.modules, 'wandb', found)
    with pytest.raises(
        UserError, match=r"config\.log\.wandb is 'spikes', a project of Weights & Biases: pip install wandb"
    ):
        trackers.chosen(configured(wandb='spikes'))
    assert 'Weights & Biases' not in trackers.chosen(configured())


def test_a_tracker_that_cannot_be_opened_is_named_and_the_others_are_closed(tmp_path, wandb, monkeypatch):
    def refuse(workdir, first_step):
        raise ValueError('no such team')

    monkeypatch.setitem(trackers.TRACKERS, 'mine', lambda config: refuse)
    with pytest.raises(UserError, match=r'mine cannot be opened: ValueError: no such team\.'):
        opened(tmp_path, wandb='spikes')
    assert wandb.runs[0].finished


def test_a_tracker_that_fails_is_named_once_and_left(tmp_path, wandb):
    said = []
    with opened(tmp_path, say=said.append, wandb='spikes') as writers:
        writers.write('epoch', 10, {'loss': 1.0})
        wandb.runs[0].log = mock.Mock(side_effect=ConnectionResetError('Connection lost'))  # its process has died
        writers.write('epoch', 20, {'loss': 0.5})
        writers.write('epoch', 30, {'loss': 0.25})
    (line,) = said
    wandb.teardown.assert_called_once_with()
    assert line.startswith('Weights & Biases fails (ConnectionResetError: Connection lost) and gets no more rows;')
    assert [row['step'] for row in metrics.read(tmp_path)] == [10, 20, 30]
    assert events(tmp_path)['epoch/loss'] == (30, 0.25)


def test_a_tracker_of_ones_own(tmp_path, monkeypatch, caplog):
    page = (ROOT / 'docs' / 'training.md').read_text()
    (code,) = re.findall(r'<!-- example: tracker -->\n```python\n(.*?)```', page, flags=re.DOTALL)
    monkeypatch.setattr(trackers, 'TRACKERS', {})
    exec(code, {})
    monkeypatch.setitem(trackers.TRACKERS, 'of long runs', lambda config: pytest.fail if config.epochs > 300 else None)
    with opened(tmp_path) as writers:
        writers.write('epoch', 10, {'loss': 0.5, 'skipped': ['conv02']})
    (logged,) = caplog.records
    assert (logged.name, logged.message) == (tmp_path.name, "epoch 10: {'loss': 0.5, 'skipped': ['conv02']}")


def test_trackers_are_flushed_each_epoch_and_closed(tmp_path, monkeypatch):
    tracker = mock.Mock()
    monkeypatch.setattr(trackers, 'TRACKERS', {'mine': lambda config: tracker.open})
    write(tmp_path, [5, 10], first_step=3)
    calls = [call[0] for call in tracker.mock_calls]
    assert calls == ['open', *(f'open().{name}' for name in ('write', 'write', 'write', 'flush', 'close'))]
    assert tracker.open.call_args.args == (tmp_path, 3)


@pytest.mark.parametrize('project', ['a#b', 'team/', '/project', 'a/b/c', ' ', 'x' * 129, 'line\n'])
def test_what_can_be_no_project_is_refused(project):
    with pytest.raises(UserError, match=r'config\.log\.wandb is .*, expected .*TEAM/PROJECT'):
        configured(wandb=project)


def test_to_send_needs_a_project():
    with pytest.raises(
        UserError, match=r"config\.log\.wandb_mode is 'online', which has no effect with config\.log\.wandb ''"
    ):
        refuse_idle([configured(wandb_mode='online')], keys.table())
