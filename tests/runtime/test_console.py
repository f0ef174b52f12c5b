import io
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from cpng_jax.control import layer_tree
from cpng_jax.runtime.console import Display, duration, end_message, epoch_line, gain_warning, start_message

ROW = {
    'epoch': 3,
    'train_accuracy': 0.5,
    'train_loss': 1.25,
    'test_accuracy': 0.456,
    'test_loss': 1.5,
    'beta': {'a': 1.0, 'b': 1.2, 'c': 2.0},
    'scale': {'a': 1.0, 'b': 1.0, 'c': 1.0},
    'chi': {'a': 0.4, 'b': 0.3, 'c': 0.2},
    'gain': {'a': None, 'b': None, 'c': None},
    'firing_rate': {'a': 0.1, 'b': 0.2, 'c': 0.3},
    'images_per_second': 812.4,
    'data_wait': 0.07,
    'skipped': [],
}


def test_an_epoch_is_one_line():
    assert epoch_line(ROW, {'best_accuracy': 0.47}, 40) == (
        'epoch   3/40  train 50.0% loss 1.250  test 45.6% loss 1.500 (best 47.0%)  '
        'beta 1.00 1.20 2.00  chi 0.200 0.300 0.400  firing 20.0%  812 images/s, 7% waiting for data'
    )


def test_heights_are_told_where_they_are_set_and_gains_where_there_are_some():
    of = lambda **changes: epoch_line(ROW | changes, {'best_accuracy': 0.47}, 40)
    line = of(scale={'a': 0.5, 'b': 0.25, 'c': 1.0}, gain={'a': 0.9, 'b': None, 'c': 1.2})
    assert 'beta 1.00 1.20 2.00  scale 0.25 0.50 1.00  chi 0.200 0.300 0.400  gain 0.90 1.05 1.20  firing 20.0%' in line
    assert 'scale 0.50 0.50 0.50  chi' in of(scale=dict.fromkeys('abc', 0.5))
    assert 'chi 0.200 0.300 0.400  gain 1.50 1.50 1.50  firing' in of(gain={'a': np.nan, 'b': 0.0, 'c': 1.5})


@pytest.mark.parametrize(
    ('gains', 'sentence'),
    [
        ([None, None, None], None),
        ([np.nan, None, 0.0], None),
        ([1.0, 1.0, 1.0], None),
        ([2.0, 2.0, 2.0], None),  # just at the thresholds
        ([8.0, 0.5, 0.5], None),
        ([0.125, 2.0, 4.0], None),
        ([4.0, 4.0, 4.0], 'gradients grow 2-fold a layer, 8-fold over 3 layers (gain 4, expected 1)'),
        ([4.0, None, 4.0], 'gradients grow 2-fold a layer, 4-fold over 2 layers (gain 4, expected 1)'),
        ([0.25, 0.0625, 0.0625], 'gradients shrink 3.2-fold a layer, 32-fold over 3 layers (gain 0.099, expected 1)'),
        ([1e-3, 2.0, 1e3], 'the gain of a is 0.001, expected about 1'),
        ([1.0, 0.5, 8.1], 'the gain of c is 8.1, expected about 1'),
    ],
)
def test_a_gain_that_is_off_is_said(gains, sentence):
    warning = gain_warning(ROW | {'gain': dict(zip('abc', gains, strict=True))}, 'do this')
    assert warning == (None if sentence is None else f'  {sentence}: do this')


def by_validation(row):
    """The row of a run with a validation split."""
    renamed = {f'validation_{what}': row[f'test_{what}'] for what in ('accuracy', 'loss')}
    return {key: value for key, value in row.items() if not key.startswith('test_')} | renamed


def test_an_epoch_says_which_split_it_is_rated_by():
    line = epoch_line(by_validation(ROW), {'best_accuracy': 0.47}, 40)
    assert 'loss 1.250  validation 45.6% loss 1.500 (best 47.0%)  beta' in line
    assert 'test' not in line


def test_the_end_says_what_the_best_was_chosen_on(tmp_path):
    results = {'best_accuracy': 0.47, 'best_epoch': 3}
    first, _ = end_message(results | {'test_accuracy': 0.456}, tmp_path, []).splitlines()
    assert first == 'test accuracy: last 45.60%, best 47.00% (epoch 3, chosen on test)'
    results |= {'validation_accuracy': 0.456, 'test_accuracy': 0.44, 'best_test_accuracy': 0.45}
    first, second, _ = end_message(results, tmp_path, []).splitlines()
    assert first == 'validation accuracy: last 45.60%, best 47.00% (epoch 3)'
    assert second == 'test accuracy: last 44.00%, of epoch 3, chosen on validation, 45.00%'


@pytest.mark.parametrize(('step', 'how'), [(0, 'starts'), (7, 'goes on from step 7'), (20, 'is finished: step')])
def test_the_first_lines_say_what_is_trained_and_from_where(tmp_path, step, how):
    counts = {'layers': 3, 'parameters': 12345, 'step': step, 'steps': 20, 'epochs': 2}
    first, second = start_message('vgg on digits', tmp_path, **counts).splitlines()
    assert first.startswith(f'vgg on digits: 3 spiking layers, 12,345 parameters, {jax.device_count()} x ')
    assert second.startswith(f'{tmp_path} {how} of 20 steps in 2 epochs; ')


def test_layers_that_cpng_left_out_are_named():
    line = epoch_line(ROW | {'skipped': ['conv01/lif', 'conv07/lif']}, {'best_accuracy': 0.5}, 40)
    said = 'left as they were: conv01/lif, conv07/lif: silent, saturated, constant or not finite'
    assert line.splitlines()[1] == f'  {said}'


def test_layers_are_named_by_their_path_in_order():
    tree = {'conv02': {'lif': {'beta': jnp.float32(2)}}, 'conv01': {'lif': {'beta': jnp.array([1.0, 3.0])}}}
    assert list(layer_tree.by_layer(tree).items()) == [('conv01/lif', 2.0), ('conv02/lif', 2.0)]


def show(monkeypatch, terminal, seconds_between_lines=10.0):
    """Twenty updates, four seconds apart, and what they left on the screen."""
    clock = iter(np.arange(0.0, 1000.0, 4.0))
    monkeypatch.setattr(time, 'monotonic', lambda: float(next(clock)))
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=60 if not terminal else 120, _environ={})
    options = {'first_step': 0, 'batch_size': 50, 'epochs': 3, 'seconds_between_lines': seconds_between_lines}
    with Display(300, console=console, **options) as display:
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
    monkeypatch.setattr(time, 'monotonic', lambda: next(clock))
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=False, _environ={})
    options = {'first_step': 100, 'batch_size': 8, 'epochs': 1, 'seconds_between_lines': 0.0}
    with Display(200, console=console, **options) as display:
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
    with Display(10, console=console, **options) as display:
        display.update(1, epoch=1, loss=1.0, accuracy=0.5)
    assert screen.getvalue() == 'step 1/10  epoch 1/1  10%  loss 1.000  accuracy 50.0%\n'


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    # The bar redraws in a thread of its own, which keeps the real clock.
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, _environ={})
    with Display(300, first_step=0, batch_size=50, epochs=3, console=console) as display:
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
    assert duration(seconds) == text
