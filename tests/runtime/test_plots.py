import sys

import numpy as np
import pytest
from matplotlib.image import imread

from cpng_jax.runtime import plots
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.metrics import MetricsWriter


def make_rows(layers=14, epochs=40, chi_limit=0.2):
    names = [f'conv{depth:02d}/lif' for depth in range(1, layers + 1)]
    rng = np.random.default_rng(0)
    rows = []
    for epoch in range(1, epochs + 1):
        learned = 1 - np.exp(-epoch / 10)
        rows.append(
            {
                'event': 'epoch',
                'step': 22 * epoch,
                'epoch': epoch,
                'train_loss': 2.3 * (1 - learned),
                'train_accuracy': learned,
                'test_loss': 2.3 * (1 - 0.9 * learned),
                'test_accuracy': 0.9 * learned,
                'chi_limit': chi_limit,
                'beta_init': 1.0,
                'beta': {name: 1 + 0.1 * learned * rng.uniform() for name in names},
                'chi': {name: 0.3 + 0.2 * rng.uniform() for name in names},
                'firing_rate': dict.fromkeys(names, 0.2),
            }
        )
    return rows


@pytest.mark.parametrize(('layers', 'epochs'), [(1, 1), (14, 40), (150, 3)])
def test_three_pictures_of_a_size_to_read(tmp_path, layers, epochs):
    with MetricsWriter(tmp_path) as writer:
        writer.write('step', 1, {'train_loss': 2.0})
        for row in make_rows(layers, epochs):
            writer.write('epoch', row['step'], {k: v for k, v in row.items() if k not in ('event', 'step')})
    pictures = plots.plot_run(tmp_path)
    assert [path.name for path in pictures] == ['accuracy_and_loss.png', 'chi.png', 'beta.png']
    for path in pictures:
        height, width, _ = imread(path).shape
        assert 500 < height < 800
        assert 700 < width < 2200
        assert np.std(imread(path)) > 0.02, 'an empty picture'
    assert sorted(path.name for path in (tmp_path / 'plots').iterdir()) == [
        'accuracy_and_loss.png',
        'beta.png',
        'chi.png',
    ]


def test_before_the_first_epoch_there_is_nothing_to_draw(tmp_path):
    assert plots.plot_run(tmp_path) == []
    assert not (tmp_path / 'plots').exists()


def test_accuracy_and_loss_show_the_rows():
    rows = make_rows(epochs=9)
    rows[4]['test_accuracy'] = 0.95
    rows[2]['test_loss'] = None
    left, right = plots.accuracy_and_loss(rows).axes
    train, test, best = left.get_lines()
    np.testing.assert_allclose(train.get_ydata(), [100 * row['train_accuracy'] for row in rows])
    np.testing.assert_allclose(test.get_ydata(), [100 * row['test_accuracy'] for row in rows])
    assert (best.get_xdata(), best.get_ydata()) == ([5], [95])
    assert left.get_title() == f'Test accuracy: last {rows[-1]["test_accuracy"]:.2%}, best 95.00% (epoch 5)'
    losses = right.get_lines()[1].get_ydata()
    assert np.isnan(losses[2])
    np.testing.assert_allclose(np.delete(losses, 2), [row['test_loss'] for row in rows if row['test_loss'] is not None])


def test_accuracy_and_loss_show_the_split_that_the_best_is_chosen_on():
    rows = make_rows(epochs=3)
    for row in rows:
        row |= {f'validation_{what}': row.pop(f'test_{what}') for what in ('accuracy', 'loss')}
    test = {'test_accuracy': 0.5, 'best_test_accuracy': 0.625}
    left, right = plots.accuracy_and_loss(rows, test=test).axes
    np.testing.assert_allclose(left.get_lines()[1].get_ydata(), [100 * row['validation_accuracy'] for row in rows])
    assert left.get_lines()[1].get_label() == 'validation'
    first, second = left.get_title().splitlines()
    assert first.startswith('Validation accuracy: last')
    assert second == 'test: last 50.00%, best by validation 62.50%'
    assert right.get_title().startswith('Validation loss')


def test_a_loss_of_zero_is_not_taken_for_missing():
    rows = make_rows(epochs=2)
    rows[-1]['test_loss'] = 0.0
    assert plots.accuracy_and_loss(rows).axes[1].get_title() == 'Test loss: last 0.000'


@pytest.mark.parametrize('draw', [plots.accuracy_and_loss, plots.chi_per_layer, plots.gain_per_layer])
def test_a_single_epoch_is_marked_and_has_no_fractional_ticks(draw):
    figure = draw(with_gain(make_rows(layers=2, epochs=1), 0.5, 1.5))
    figure.canvas.draw()
    axes = figure.axes[0]
    assert axes.get_lines()[0].get_marker() == 'o'
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_chi_that_was_never_finite_is_said():
    rows = make_rows(layers=3, epochs=10)
    for row in rows:
        row['chi'] = dict.fromkeys(row['chi'])
    axes = plots.chi_per_layer(rows).axes[0]
    assert 'χ was not finite in any layer' in [text.get_text() for text in axes.texts]
    assert axes.get_xlim() == (0.5, 10.5)
    assert axes.get_ylim() == (0, 1)


def test_without_matplotlib_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(UserError, match='pip install matplotlib'):
        plots.final_beta(make_rows(epochs=1))


def test_chi_has_a_line_for_each_layer_and_the_limit_where_it_is_near():
    rows = make_rows(layers=5, epochs=8, chi_limit=0.28)
    axes, bar = plots.chi_per_layer(rows).axes
    *layers, limit = axes.get_lines()
    assert [line.get_label() for line in layers] == list(rows[0]['chi'])
    np.testing.assert_allclose(layers[3].get_ydata(), [row['chi']['conv04/lif'] for row in rows])
    assert set(limit.get_ydata()) == {0.28}
    assert bar.get_ylabel() == 'depth of the layer'
    assert bar.get_ylim() == (1, 5)
    far = plots.chi_per_layer(make_rows(layers=5, epochs=8, chi_limit=0.01)).axes[0]
    assert len(far.get_lines()) == 5
    assert far.texts[0].get_text() == 'chi_limit 0.01 lies below'


def test_runs_side_by_side_share_the_axis_of_chi():
    first, second = make_rows(layers=5, epochs=8), make_rows(layers=5, epochs=12)
    for row in second:
        row['chi'] = {layer: value + 0.3 for layer, value in row['chi'].items()}
    left, right, bar = plots.chi_per_layer(first, second, titles=['without CPNG', 'with CPNG']).axes
    assert (left.get_title(), right.get_title()) == ('without CPNG', 'with CPNG')
    assert left.get_ylim() == right.get_ylim()
    np.testing.assert_allclose(left.get_lines()[2].get_ydata(), [row['chi']['conv03/lif'] for row in first])
    np.testing.assert_allclose(right.get_lines()[2].get_ydata(), [row['chi']['conv03/lif'] for row in second])
    assert bar.get_ylim() == (1, 5)


def with_gain(rows, *gains):
    for row in rows:
        row['gain'] = dict(zip(row['chi'], gains, strict=True))
    return rows


@pytest.mark.parametrize('gains', [(1.02, 0.9, None, 40.0, 0.01), (1.1,)], ids=['several', 'one'])
def test_a_picture_of_the_gain_is_drawn_where_there_is_one(tmp_path, gains):
    rows = make_rows(layers=len(gains), epochs=6)
    with_gain(rows[2:], *gains)  # an older version began the run
    with MetricsWriter(tmp_path) as writer:
        for row in rows:
            writer.write('epoch', row['step'], {k: v for k, v in row.items() if k not in ('event', 'step')})
    assert [path.name for path in plots.plot_run(tmp_path)][-1] == 'gain.png'
    axes, bar = plots.gain_per_layer(rows).axes
    *layers, one = axes.get_lines()
    for line, value in zip(layers, gains, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), [np.nan] * 2 + [np.nan if value is None else value] * 4)
    assert set(one.get_ydata()) == {1}
    assert axes.get_yscale() == 'log'
    low, high = axes.get_ylim()
    assert low <= min(0.45, *filter(None, gains))
    assert high >= max(2.2, *filter(None, gains))
    assert bar.get_ylabel() == 'depth of the layer'


def test_without_a_gain_there_is_no_picture_of_it():
    old, adaptive = make_rows(layers=3, epochs=1)[0], with_gain(make_rows(layers=3, epochs=1), None, None, None)[0]
    assert not plots.has_gain(old)
    assert not plots.has_gain(adaptive)


def test_gains_of_two_runs_share_an_axis():
    first, second = with_gain(make_rows(2, 4), 1.0, 3.0), with_gain(make_rows(2, 6), 0.2, 1.0)
    left, right, _ = plots.gain_per_layer(first, second, titles=['a', 'b']).axes
    assert left.get_ylim() == right.get_ylim()
    assert [panel.get_title() for panel in (left, right)] == ['a', 'b']


def test_bars_of_two_runs_stand_in_pairs():
    first, second = make_rows(layers=3), make_rows(layers=3)
    for row in second:
        row['beta'] = dict.fromkeys(row['beta'], 2.0)
        row['beta_init'] = 2.0
    axes = plots.final_beta(first, second, names=['a', 'b']).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ['a', 'b']
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(tops, [*first[-1]['beta'].values(), 2, 2, 2])
    centres = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    np.testing.assert_allclose(np.add(centres[:3], centres[3:]) / 2, [1, 2, 3])
    assert min(centres[3:]) - centres[0] == pytest.approx(0.35)
    assert 'dashed: beta_init 1 and 2' in axes.get_title()


def test_curves_may_be_stacked():
    above, below = plots.accuracy_and_loss(make_rows(epochs=9), stacked=True).axes
    assert above.get_subplotspec().rowspan.start < below.get_subplotspec().rowspan.start


def test_bars_reach_from_the_first_beta_to_the_last():
    rows = make_rows(layers=6)
    rows[-1]['beta']['conv02/lif'] = 0.8
    axes = plots.final_beta(rows).axes[0]
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(tops, list(rows[-1]['beta'].values()))
    assert {bar.get_y() for bar in axes.patches} == {1.0}
    low, high = axes.get_ylim()
    assert low < 0.8
    assert high > max(tops)
    assert [label.get_text() for label in axes.get_xticklabels()] == [f'conv{depth:02d}' for depth in range(1, 7)]
