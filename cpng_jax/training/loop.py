"""The training loop, readable from top to bottom: `run` is what train.py calls."""

import contextlib
import functools
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from cpng_jax.runtime import distributed, paths, trackers
from cpng_jax.runtime.checkpoint import Checkpoints
from cpng_jax.runtime.checkpoint_reader import FOLDER, steps_in
from cpng_jax.runtime.config import Config, validate
from cpng_jax.runtime.console import Display, end_message, epoch_line, gain_warning, memory_line, start_message
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.metrics import rated_by, read_test
from cpng_jax.runtime.plots import plot_run
from cpng_jax.runtime.prefetch import Prefetcher, Timer
from cpng_jax.runtime.profile import Profile, memory_usage
from cpng_jax.runtime.sharding import replicated
from cpng_jax.runtime.signals import Stopped, StopRequest
from cpng_jax.runtime.workdir import Raised, acquire, check_effects
from cpng_jax.training import keys, older_states, weights
from cpng_jax.training.evaluate import evaluate, evaluate_split
from cpng_jax.training.saving import Results, Saver
from cpng_jax.training.setup import Build, Setup, build
from cpng_jax.training.state import EpochTotals, TrainState
from cpng_jax.training.step import Batch
from cpng_jax.training.summary import summarise_run

MODES = ('train', 'eval', 'summary')

_NO_RESULTS: Results = {'best_accuracy': 0.0, 'best_epoch': 0}


def run(
    config: Config, workdir: str | os.PathLike[str], mode: str = 'train', *, build: Build = build
) -> dict[str, Any]:
    """Trains, evaluates or summarises what a configuration describes.

    Training goes on from the latest checkpoint in the workdir, if there is one.

    Args:
      config: see `configs/base.py`.
      workdir: folder of the run; holds its configuration, checkpoints, metrics and plots.
      mode: 'train', 'eval' or 'summary'.
      build: makes what the configuration describes; for many runs of one process, `setup.build_for_seeds()`.

    Returns:
      Of 'train' and 'eval' accuracies and their step, of 'summary' numbers of parameters and multiply-adds.

    Raises:
      UserError: something the user can set right.
      Stopped: a signal ended the training, after a checkpoint.
    """
    if mode not in MODES:
        raise UserError(f'--mode is {mode!r}, expected one of {", ".join(MODES)}.')
    validate(config, keys.table())
    folder = paths.local(workdir, '--workdir')
    check_effects(folder, config, keys.table())
    if mode == 'summary':
        summary = summarise_run(config, folder)
        print(summary, flush=True)
        return {'parameters': summary.parameters, 'multiply_adds': summary.multiply_adds}
    distributed.start(config, stops=mode == 'train')
    try:
        setup = build(config)
        return evaluate(setup, folder) if mode == 'eval' else train(setup, folder)
    except jax.errors.JaxRuntimeError as error:
        raise distributed.translate_error(error) from error


def train(setup: Setup, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains from the latest checkpoint to the end, or to a signal.

    Args:
      setup: from `build`.
      workdir: folder of the run.

    Returns:
      `step`, `test_accuracy` of the last epoch, and `best_accuracy` and `best_epoch`, chosen on the test split. With a
      validation split these are chosen on that: there are also `validation_accuracy` of the last epoch, and
      `best_test_accuracy` of the best.

    Raises:
      UserError: the workdir belongs to another configuration, is that of a run under way, cannot be written, or the
        training diverged.
      Stopped: a signal ended the training, after a checkpoint.
    """
    config = setup.config
    beside = distributed.on_primary(lambda: trackers.chosen(config))
    begin = functools.partial(weights.start, config, setup.state_shapes.variables, workdir)
    # A run that goes on has its own weights, and what it once started from may be gone.
    start = None if distributed.all_agree(bool(steps_in(workdir / FOLDER))) else begin()
    latest = lambda: max(steps_in(workdir / FOLDER), default=0)
    acquired = distributed.on_primary(lambda: acquire(workdir, config, keys.table(), step=latest))
    with acquired.lock if acquired else contextlib.nullcontext():
        checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
        try:
            restored = checkpoints.restore(setup.state_shapes, older=older_states.LAYOUTS)
            # If none of the checkpoints was whole, the run starts once more.
            start = None if restored else start or begin()
            # What each process has read may differ, where it is that of a run under way.
            given = distributed.arrays_from_primary(start.given) if start else None
            state, results = restored or (setup.initial_state(given), _NO_RESULTS)
            raised = acquired.raised if acquired else {}
            results = _train_from(setup, workdir, checkpoints, state, results, start, raised, beside)
        except OSError as error:
            raise UserError(
                f'Cannot write to {workdir}: {error.strerror or error}. Checkpoints that are there stay good.'
            ) from error
        finally:
            checkpoints.close()
        if distributed.is_primary():
            plots = plot_run(workdir)
            print(end_message(results, workdir, plots), flush=True)
    return results | {'step': setup.steps}


def _train_from(
    setup: Setup,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    state: TrainState,
    results: Results,
    start: weights.Start | None,
    raised: Raised,
    beside: Mapping[str, trackers.Open] | None,
) -> Results:
    """Makes the remaining steps; returns the last and best accuracies."""
    config, first, primary = setup.config, int(state.step), distributed.is_primary()
    console = None if primary else Console(quiet=True)
    display = Display(
        setup.steps, first_step=first, batch_size=config.batch_size, epochs=config.epochs, console=console
    )
    profile = Profile(workdir, config.profile.steps, on=primary)
    writer = trackers.Writers(workdir, beside, first_step=first, say=display.print)
    with StopRequest() as stop, writer, setup.train_batches(first_step=first) as batches, display, profile:
        display.print(_start_message(setup, workdir, state))
        if raised:
            display.print(_raised_message(setup, first, raised))
        if start:
            display.print(start.message())
            writer.write('start', first, start.row())
        if first == setup.steps:
            return results | _test(setup, workdir, checkpoints, state, results, writer)
        saver = Saver(checkpoints, setup)
        prefetcher = Prefetcher(batches, setup.mesh)
        batch = prefetcher.next()
        if first == 0:
            state = setup.start(state, batch)
        train_step = setup.train_step
        if not jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
            # Compiled before the first step, so that its memory can be read and its compilation is not timed.
            train_step = train_step.lower(state, batch).compile()
            memory = memory_usage(train_step)
            writer.write('memory', first, memory)
            display.print(memory_line(memory))
        timer = Timer(prefetcher, config.batch_size, first)
        stop.listen()
        began, warned = time.monotonic(), False
        for step in range(first + 1, setup.steps + 1):
            with profile.before(step):
                state = train_step(state, batch)
            profile.after(step, state)
            if step < setup.steps:
                batch = prefetcher.next(state.step)  # sent while the devices compute
            ends_epoch = step % setup.steps_per_epoch == 0
            if ends_epoch:
                saver.check_loss(state)  # waits for the devices, as a measurement of time must
                throughput = timer.throughput(step)
                state, row = _end_epoch(setup, state, batch)
                row |= throughput
                began, since = time.monotonic(), began
                row['wall_seconds'] = began - since
                results = _rank(results, row)
                writer.write('epoch', step, row)
                display.print(epoch_line(row, results, config.epochs))
                warned = _warn(setup, display, row, warned)
                timer.reset(step)  # the time of the evaluation does not count
            elif step % config.log.every_steps == 0:
                saver.check_loss(state)
                loss, accuracy = _running(state, config.batch_size)
                display.update(step, epoch=setup.epoch(step), loss=loss, accuracy=accuracy)
                wait = timer.throughput(step)['data_wait']
                writer.write('step', step, {'train_loss': loss, 'train_accuracy': accuracy, 'data_wait': wait})
            stopping = stop.after(step)
            saver.after(step, state, results, stopping=stopping)
            if stopping:
                raise Stopped(stop.signal, step, workdir)
        checkpoints.wait()
        return results | _test(setup, workdir, checkpoints, state, results, writer)


def _start_message(setup: Setup, workdir: pathlib.Path, state: TrainState) -> str:
    config = setup.config
    return start_message(
        f'{config.model.name} on {config.data.name}',
        workdir,
        layers=len(jax.tree.leaves(state.surrogate)),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        step=int(state.step),
        steps=setup.steps,
        epochs=config.epochs,
    )


def _raised_message(setup: Setup, step: int, raised: Raised) -> str:
    changes = ', '.join(f'{name} from {was} to {now}' for name, (was, now) in raised.items())
    rate = float(jnp.asarray(setup.learning_rate(step)))
    return (
        f'raised {changes}: from step {step} on the learning rate is that of {setup.steps} steps in all, '
        f'{rate:.3g} at first'
    )


def _end_epoch(setup: Setup, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
    """Sets beta, measures what epochs are rated by, and starts the next sums: returns the state and the epoch's row."""
    config = setup.config
    loss, accuracy = _running(state, config.batch_size)
    state, beta = setup.end_of_epoch(state, batch)
    result = evaluate_split(setup, state, setup.rated_by)
    row = {
        'epoch': setup.epoch(int(state.step)),
        'train_loss': loss,
        'train_accuracy': accuracy,
        **result.row(setup.rated_by),
        'learning_rate': float(jnp.asarray(setup.learning_rate(int(state.step) - 1))),
    }
    if beta:
        row |= {'chi_limit': config.cpng.chi_limit, 'beta_init': config.cpng.beta_init} | beta
    start = jax.jit(EpochTotals.zeros, static_argnums=1, out_shardings=replicated(setup.mesh))
    return state.replace(epoch=start(state.surrogate, setup.observe)), row


def _warn(setup: Setup, display: Display, row: dict[str, Any], warned: bool) -> bool:
    """Warns of a gain that is off, once in a run; returns whether that has been done."""
    if 'gain' not in row:
        return warned
    held = 'currents' in setup.controller.needs  # by a rule that goes by the gain
    cure = 'config.cpng.every=batch sets it more often' if held else 'config.cpng.rule=coherent_gain holds it at 1'
    warning = None if warned else gain_warning(row, cure)
    if warning:
        display.print(warning)
    return warned or warning is not None


def _running(state: TrainState, batch_size: int) -> tuple[float, float]:
    """Mean loss, in nats, and accuracy of the epoch so far."""
    steps = int(state.epoch.steps)
    return float(state.epoch.loss) / steps, int(state.epoch.correct) / (steps * batch_size)


def _rank(results: Results, row: dict[str, Any]) -> Results:
    """Updates the last and the best accuracy; of equals the later is the best, as for `Checkpoints`."""
    name = f'{rated_by(row)}_accuracy'
    results = results | {name: row[name]}
    if row[name] >= results['best_accuracy']:
        results |= {'best_accuracy': row[name], 'best_epoch': row['epoch']}
    return results


def _test(
    setup: Setup,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    state: TrainState,
    results: Results,
    writer: trackers.Writers,
) -> Results:
    """Measures the test split at the end of a run with a validation split: in the last epoch and in the best."""
    if setup.rated_by == 'test':
        return {}
    row = distributed.from_primary(distributed.on_primary(lambda: read_test(workdir)))
    if row is None or row['step'] != setup.steps:
        last = best = evaluate_split(setup, state)
        epoch = best_epoch = setup.epoch(setup.steps)
        if results['best_epoch'] != epoch:
            restored = checkpoints.restore(setup.state_shapes, 'best', older=older_states.LAYOUTS)
            assert restored is not None  # the epoch that it is of has been saved
            # Where that cannot be read another stands in for it, and the row says which.
            best, best_epoch = evaluate_split(setup, restored[0]), setup.epoch(int(restored[0].step))
        row = {'epoch': epoch, 'best_epoch': best_epoch}
        row |= last.row('test') | best.row('best_test')
        writer.write('test', setup.steps, row)
    return {name: row[name] for name in ('test_accuracy', 'best_test_accuracy')}
