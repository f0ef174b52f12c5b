"""Runs with a validation split: what is chosen goes by it, and the test split is measured at the end alone."""

import signal
from unittest import mock

import pytest

from configs import digits
from cpng_jax.analysis import report
from cpng_jax.analysis.run import Run
from cpng_jax.data.pipeline import eval_batches
from cpng_jax.experiments import grid
from cpng_jax.runtime import checkpoint_reader, metrics
from cpng_jax.runtime.signals import Stopped
from cpng_jax.training import evaluate, loop
from tests.runs import epoch_rows, run_shared, stopped_at


def configuration(shrink):
    config = shrink(digits.get_config())
    config.data.validation = 0.25
    # A step that grows until it does harm: the first epoch is the best.
    config.optim.learning_rate, config.optim.warmup_fraction = 3.0, 0.95
    return config


@pytest.fixture(scope='module')
def run(tmp_path_factory, shrink):
    """A run whose last epoch is not the best: its folder, its result and the splits that were measured."""
    workdir, measured = tmp_path_factory.mktemp('by_validation'), []

    def measure(source, *arguments, **options):
        measured.append(len(source))
        return eval_batches(source, *arguments, **options)

    with mock.patch.object(evaluate, 'eval_batches', measure):
        result = run_shared(configuration(shrink), workdir)
    return workdir, result, measured


@pytest.mark.trains
def test_epochs_are_rated_by_validation_and_the_test_split_is_measured_at_the_end(run):
    workdir, result, measured = run
    rows = epoch_rows(workdir)
    assert len(rows) == 3
    assert not any('test_accuracy' in row for row in rows)
    best = max(rows, key=lambda row: (row['validation_accuracy'], row['epoch']))
    assert (result['best_accuracy'], result['best_epoch']) == (best['validation_accuracy'], best['epoch'])
    assert result['validation_accuracy'] == rows[-1]['validation_accuracy']
    assert best is not rows[-1]
    assert measured == [359] * 3 + [360] * 2
    test = metrics.read_test(workdir)
    assert test is not None
    assert (test['step'], test['epoch'], test['best_epoch']) == (rows[-1]['step'], 3, best['epoch'])
    assert result['test_accuracy'] == test['test_accuracy']
    assert result['best_test_accuracy'] == test['best_test_accuracy']
    ratings, _ = checkpoint_reader.ratings_in(workdir / 'checkpoints')
    assert ratings[rows[-1]['step']] == rows[-1]['validation_accuracy']
    assert checkpoint_reader.best_step_in(workdir / 'checkpoints') == best['step']


@pytest.mark.trains
@pytest.mark.parametrize('which', ['latest', 'best'])
def test_evaluation_measures_both_splits_and_finds_what_the_run_found(run, shrink, which, capsys):
    workdir, result, _ = run
    config = configuration(shrink)
    config.eval.checkpoint = which
    found = run_shared(config, workdir, 'eval')
    assert found['test_accuracy'] == result['test_accuracy' if which == 'latest' else 'best_test_accuracy']
    assert found['validation_accuracy'] == result['validation_accuracy' if which == 'latest' else 'best_accuracy']
    text = capsys.readouterr().out
    assert 'test accuracy' in text and '; validation accuracy' in text and 'of 359)' in text


@pytest.mark.trains
def test_a_run_that_ended_before_the_test_makes_it_on_going_on(run, shrink, tmp_path):
    workdir, result, _ = run
    config = configuration(shrink)
    with mock.patch.object(loop, '_test', side_effect=Stopped(signal.SIGTERM, 24, tmp_path)), pytest.raises(Stopped):
        run_shared(config, tmp_path)
    assert metrics.read_test(tmp_path) is None
    with mock.patch.object(loop, 'evaluate_split', wraps=loop.evaluate_split) as measure:
        assert run_shared(config, tmp_path) == result
        assert {call.args[2:] for call in measure.call_args_list} == {()}
        measure.reset_mock()
        assert run_shared(config, tmp_path) == result, 'and once that is done, it is read'
        assert not measure.call_args_list
    assert metrics.read_test(tmp_path) == metrics.read_test(workdir)


@pytest.mark.trains
def test_a_run_that_was_stopped_chooses_as_one_that_was_not(run, shrink, tmp_path):
    workdir, result, _ = run
    config = configuration(shrink)
    with stopped_at(12), pytest.raises(Stopped):
        run_shared(config, tmp_path)
    assert run_shared(config, tmp_path) == result
    without_times = lambda rows: [
        {key: row[key] for key in ('step', 'validation_accuracy', 'validation_loss')} for row in rows
    ]
    assert without_times(epoch_rows(tmp_path)) == without_times(epoch_rows(workdir))


@pytest.mark.trains
def test_tables_and_report_say_which_split_is_which(run, shrink):
    workdir, result, _ = run
    row = grid.measured(workdir)
    assert row['test_accuracy'] == result['test_accuracy']
    assert row['best_accuracy'] == result['best_test_accuracy']
    assert row['validation_accuracy'] == result['best_accuracy']
    (page,) = report.analyse(Run(workdir))
    text = page.read_text('utf-8')
    for words in (
        'validation accuracy, last epoch',
        f'best on validation, epoch {result["best_epoch"]}',
        f'test accuracy, epoch {result["best_epoch"]}, chosen on validation',
        f'{result["best_test_accuracy"]:.2%}',
        'validation accuracy, %',
    ):
        assert words in text
    assert 'test loss' not in text


def test_an_epoch_that_was_not_tested_has_no_test_accuracy(tmp_path):
    """The run diverged before its end, say: nothing stands in for what was not measured."""
    beta = {'beta': {'a': 1.0}, 'chi': {'a': 0.4}, 'images_per_second': 1.0, 'train_loss': 1.0}
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write('epoch', 3, {'epoch': 1, 'validation_accuracy': 0.5, **beta})
    row = grid.measured(tmp_path)
    assert row['validation_accuracy'] == 0.5
    assert str(row['test_accuracy']) == str(row['best_accuracy']) == 'nan'
