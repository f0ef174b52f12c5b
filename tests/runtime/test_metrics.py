import io
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from cpng_jax.runtime import metrics
from cpng_jax.runtime.errors import UserError


def write(workdir, steps, first_step=0):
    with metrics.MetricsWriter(workdir, first_step=first_step) as writer:
        for step in steps:
            writer.write('epoch', step, {'loss': step / 10, 'beta': {'conv01': 1.0 + step}})


def test_rows_come_back_as_they_were_written(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(
            'epoch', 3, {'a': np.float32(0.5), 'b': jnp.int32(2), 'c': {'x': 1.5}, 'd': ['conv01'], 'e': 'text'}
        )
    expected = {'event': 'epoch', 'step': 3, 'a': 0.5, 'b': 2, 'c': {'x': 1.5}, 'd': ['conv01'], 'e': 'text'}
    assert metrics.read(tmp_path) == [expected]


def test_what_is_not_finite_is_null_and_the_file_is_json(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write('epoch', 1, {'a': float('nan'), 'b': {'x': np.float32('inf')}, 'c': jnp.nan})
    line = (tmp_path / 'metrics.jsonl').read_text()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
    assert row == {'event': 'epoch', 'step': 1, 'a': None, 'b': {'x': None}, 'c': None}


def test_rows_of_lost_work_are_dropped_on_going_on(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3], first_step=2)
    assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2, 3]


def test_a_line_that_was_cut_off_is_left_out_and_then_dropped(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / 'metrics.jsonl'
    path.write_text(path.read_text()[:-9])
    assert [row['step'] for row in metrics.read(tmp_path)] == [1]
    write(tmp_path, [2], first_step=1)
    assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2]


def test_a_line_that_lacks_only_its_end_stays(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / 'metrics.jsonl'
    path.write_text(path.read_text()[:-1])
    write(tmp_path, [3], first_step=2)
    assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2, 3]


def test_a_whole_file_is_not_written_again(tmp_path):
    write(tmp_path, [1, 2])
    inode = (tmp_path / 'metrics.jsonl').stat().st_ino
    write(tmp_path, [], first_step=2)
    assert (tmp_path / 'metrics.jsonl').stat().st_ino == inode


def test_a_damaged_line_is_named(tmp_path):
    write(tmp_path, [1, 2, 3])
    path = tmp_path / 'metrics.jsonl'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([lines[0], 'oops', lines[2]]) + '\n')
    with pytest.raises(UserError, match=r'metrics.jsonl, line 2 is not a row'):
        metrics.read(tmp_path)


@pytest.mark.parametrize('damage', [b'\xff\xfe\x00', b'5', b'{"event": "x"}', b'[1, 2]'])
def test_damage_is_named_in_the_middle_and_dropped_at_the_end(tmp_path, damage):
    write(tmp_path, [1, 2])
    path = tmp_path / 'metrics.jsonl'
    whole = path.read_bytes()
    path.write_bytes(whole + damage)
    assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2]
    write(tmp_path, [3], first_step=2)
    assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2, 3]
    path.write_bytes(damage + b'\n' + whole)
    for use in (metrics.read, metrics.MetricsWriter):
        with pytest.raises(UserError, match=r'metrics.jsonl, line 1 is not a row'):
            use(tmp_path)


def test_without_tensorboardx_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    with pytest.raises(UserError, match='pip install tensorboardX'):
        metrics.MetricsWriter(tmp_path)
    assert not (tmp_path / 'metrics.jsonl').exists()


def test_without_a_file_there_are_no_rows(tmp_path):
    assert metrics.read(tmp_path) == []


def test_tensorboard_gets_the_numbers_by_path(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    write(tmp_path, [7])
    (path,) = (tmp_path / 'tensorboard').iterdir()
    content, seen, position = path.read_bytes(), {}, 0
    while position < len(content):  # TFRecord: length, checksum, event, checksum
        length = int.from_bytes(content[position : position + 8], 'little')
        event = Event.FromString(content[position + 12 : position + 12 + length])
        seen |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        position += 16 + length
    assert seen == {'epoch/loss': (7, pytest.approx(0.7)), 'epoch/beta/conv01': (7, 8.0)}


def show(monkeypatch, terminal, seconds_between_lines=10.0):
    """Twenty updates, four seconds apart, and what they left on the screen."""
    clock = iter(np.arange(0.0, 1000.0, 4.0))
    monkeypatch.setattr(metrics.time, 'monotonic', lambda: float(next(clock)))
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=60 if not terminal else 120, _environ={})
    options = {'first_step': 0, 'batch_size': 50, 'epochs': 3, 'seconds_between_lines': seconds_between_lines}
    with metrics.Display(300, console=console, **options) as display:
        display.print('begin [not markup] ' + 'x' * 100)
        for step in range(10, 210, 10):
            display.update(step, epoch=1 + step // 100, loss=2.5 / step, accuracy=step / 300)
    return screen.getvalue()


def test_without_a_terminal_there_is_a_plain_line_now_and_then(monkeypatch):
    text = show(monkeypatch, terminal=False)
    lines = text.splitlines()
    assert lines[0] == 'begin [not markup] ' + 'x' * 100, 'neither wrapped nor taken for markup'
    # Twenty updates in 80 seconds, at least ten seconds apart.
    assert len(lines) == 7
    # Ten steps of 50 images in 4 seconds, 210 steps to go.
    assert lines[3] == 'step 90/300  epoch 1/3  30%  loss 0.028  accuracy 30.0%  125 images/s  1:24 left'
    assert '\x1b' not in text


def test_every_update_is_shown_when_asked(monkeypatch):
    assert len(show(monkeypatch, terminal=False, seconds_between_lines=0.0).splitlines()) == 21


def test_speed_is_of_the_last_updates_and_time_left_of_all(monkeypatch):
    # The first step compiles for 1000 s: it counts for nothing. Then 20 slow updates, and 20 of double speed.
    times = [0.0, 1000.0, *(1000 + 4.0 * i for i in range(1, 21)), *(1080 + 2.0 * i for i in range(1, 21))]
    clock = iter(times)
    monkeypatch.setattr(metrics.time, 'monotonic', lambda: next(clock))
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=False, _environ={})
    options = {'first_step': 100, 'batch_size': 8, 'epochs': 1, 'seconds_between_lines': 0.0}
    with metrics.Display(200, console=console, **options) as display:
        for step in range(101, 142):
            display.update(step, epoch=1, loss=1.0, accuracy=0.5)
    lines = screen.getvalue().splitlines()
    assert lines[0] == 'step 101/200  epoch 1/1  50%  loss 1.000  accuracy 50.0%'
    assert lines[20].endswith('2 images/s  5:16 left')  # 79 steps of 4 s
    assert lines[40].endswith('4 images/s  2:57 left')  # 59 steps of 120 s / 40


def test_a_terminal_that_cannot_redraw_gets_plain_lines():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, _environ={'TERM': 'dumb'})
    options = {'first_step': 0, 'batch_size': 1, 'epochs': 1, 'seconds_between_lines': 0.0}
    with metrics.Display(10, console=console, **options) as display:
        display.update(1, epoch=1, loss=1.0, accuracy=0.5)
    assert screen.getvalue() == 'step 1/10  epoch 1/1  10%  loss 1.000  accuracy 50.0%\n'


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    # The bar redraws in a thread of its own, which keeps the real clock.
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, _environ={})
    with metrics.Display(300, first_step=0, batch_size=50, epochs=3, console=console) as display:
        display.update(10, epoch=1, loss=2.0, accuracy=0.125)
        display.update(20, epoch=1, loss=1.0, accuracy=0.25)
        display.print('a line that stays')
    text = screen.getvalue()
    assert 'epoch 1/3' in text
    assert '7%  loss 1.000  accuracy 25.0%' in text
    assert 'images/s' in text
    assert 'a line that stays' in text


@pytest.mark.parametrize(('seconds', 'text'), [(0.4, '0:00'), (59.6, '1:00'), (3599, '59:59'), (3661, '1:01:01')])
def test_durations(seconds, text):
    assert metrics.duration(seconds) == text
