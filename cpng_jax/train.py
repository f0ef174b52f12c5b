"""The training loop, readable from top to bottom: `run` is what train.py calls."""

import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cpng_jax import cpng, data, optim, sharding, train_state, train_step
from cpng_jax.analysis.plots import plot_run
from cpng_jax.checkpoint import Checkpoints
from cpng_jax.config import Config, validate
from cpng_jax.data.pipeline import TrainBatches, eval_batches, steps_per_epoch
from cpng_jax.errors import UserError
from cpng_jax.metrics import Display, MetricsWriter
from cpng_jax.models import registry
from cpng_jax.stop import Stopped, StopRequest
from cpng_jax.train_state import EpochTotals, TrainState
from cpng_jax.workdir import check, claim

MODES = ('train', 'eval')


class Experiment(NamedTuple):
    """What a configuration describes, built and checked, before any step is made."""

    config: Config
    dataset: data.Dataset
    mesh: jax.sharding.Mesh
    model: nn.Module
    optimizer: Any
    cpng_config: cpng.CPNGConfig
    steps_per_epoch: int
    steps: int


class Accuracy(NamedTuple):
    """Result of an evaluation."""

    loss: float
    correct: int
    examples: int

    @property
    def accuracy(self) -> float:
        """Share of the examples that were classified rightly."""
        return self.correct / self.examples


def run(config: Config, workdir: str | os.PathLike[str], mode: str = 'train') -> dict[str, Any]:
    """Trains or evaluates what a configuration describes.

    Training goes on from the latest checkpoint in the workdir, if there is one.

    Args:
      config: see `configs/base.py`.
      workdir: folder of the run; holds its configuration, checkpoints, metrics and plots.
      mode: 'train' or 'eval'.

    Returns:
      Facts about the result: accuracies, and the step they belong to.

    Raises:
      UserError: something the user can set right.
      Stopped: a signal ended the training, after a checkpoint.
    """
    if mode not in MODES:
        raise UserError(f'--mode is {mode!r}, expected one of {", ".join(MODES)}.')
    validate(config)
    experiment = build(config)
    folder = pathlib.Path(workdir)
    if mode == 'eval':
        return evaluate_checkpoint(experiment, folder)
    return train(experiment, folder)


def build(config: Config) -> Experiment:
    """Builds all that a configuration describes; shapes are checked without computing.

    Args:
      config: a valid configuration.

    Returns:
      The experiment.

    Raises:
      UserError: the parts do not fit together.
    """
    dataset = data.load(config.data)
    mesh = sharding.make_mesh(config.batch_size)
    model = registry.build(config, classes=len(dataset.class_names))
    per_epoch = steps_per_epoch(dataset, config.batch_size)
    steps = per_epoch * config.epochs
    try:
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *dataset.image_shape)))
    except (ValueError, TypeError) as error:
        shape = ' x '.join(map(str, dataset.image_shape))
        raise UserError(f'config.model does not fit {config.data.name} images of {shape}: {error}') from error
    cpng_config = cpng.CPNGConfig(
        chi_limit=config.cpng.chi_limit,
        limit_mode=config.cpng.limit_mode,
        interval=config.cpng.interval,
        surrogate=config.neuron.surrogate,
        v_th=config.neuron.v_th,
    )
    optimizer = optim.make_optimizer(config.optim, steps)
    return Experiment(config, dataset, mesh, model, optimizer, cpng_config, per_epoch, steps)


def initial_state(experiment: Experiment) -> TrainState:
    """Initialises the state of an experiment on all its devices."""
    example = jnp.zeros((1, *experiment.dataset.image_shape))
    state = train_state.create(experiment.model, experiment.optimizer, example, experiment.config.seed)
    return jax.device_put(state, sharding.replicated(experiment.mesh))


def train(experiment: Experiment, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains from the latest checkpoint to the end, or to a signal.

    Args:
      experiment: from `build`.
      workdir: folder of the run.

    Returns:
      `step`, `test_accuracy`, `best_accuracy` and `best_epoch`.

    Raises:
      UserError: the workdir belongs to another configuration, cannot be written, or the training diverged.
      Stopped: a signal asked for it; a checkpoint was saved.
    """
    config = experiment.config
    claim(workdir, config)
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
    state = initial_state(experiment)
    results: dict[str, Any] = {'test_accuracy': 0.0, 'best_accuracy': 0.0, 'best_epoch': 0}
    restored = checkpoints.restore(state)
    if restored is not None:
        state, results = restored
    first_step = int(state.step)

    pool = config.cpng.statistics == 'epoch_mean'
    mean, std = experiment.dataset.mean, experiment.dataset.std
    every_batch = experiment.cpng_config if config.cpng.enabled and config.cpng.every == 'batch' else None
    step_function = train_step.make_train_step(
        experiment.model,
        experiment.optimizer,
        experiment.mesh,
        mean=mean,
        std=std,
        pool_statistics=pool,
        cpng_every_batch=every_batch,
    )
    evaluate = train_step.make_eval_step(experiment.model, experiment.mesh, mean=mean, std=std)
    schedule = optim.learning_rate(config.optim, experiment.steps)

    batches = TrainBatches(
        experiment.dataset.train,
        experiment.dataset.augment,
        batch_size=config.batch_size,
        seed=config.seed,
        first_step=first_step,
        threads=config.data.threads,
    )
    display = Display(experiment.steps, first_step=first_step, batch_size=config.batch_size, epochs=config.epochs)
    with MetricsWriter(workdir, first_step=first_step) as writer, batches, display, StopRequest() as stop:
        try:
            display.print(_greeting(experiment, workdir, state))
            began, began_at = time.monotonic(), first_step
            for step in range(first_step + 1, experiment.steps + 1):
                state = step_function(state, sharding.put_batch(next(batches), experiment.mesh))
                ends_epoch = step % experiment.steps_per_epoch == 0
                if ends_epoch:
                    _check_loss(state, checkpoints)
                    seconds = time.monotonic() - began
                    speed = (step - began_at) * config.batch_size / seconds
                    state, row = _end_epoch(experiment, state, evaluate)
                    row |= {'images_per_second': speed, 'seconds': seconds}
                    row |= {'learning_rate': float(jnp.asarray(schedule(step - 1)))}
                    results = _rank(results, row)
                    writer.write('epoch', step, row)
                    display.print(_epoch_line(row, results, config.epochs))
                    began, began_at = time.monotonic(), step
                elif step % config.log.every_steps == 0:
                    _check_loss(state, checkpoints)
                    loss, accuracy = _running(state, config.batch_size)
                    display.update(step, epoch=_epoch(experiment, step), loss=loss, accuracy=accuracy)
                    writer.write('step', step, {'train_loss': loss, 'train_accuracy': accuracy})
                every = config.checkpoint.every_steps
                if ends_epoch or stop.requested or (every and step % every == 0):
                    _save(checkpoints, state, results, rated=ends_epoch)
                if stop.requested and step < experiment.steps:
                    checkpoints.wait()
                    raise Stopped(stop.signal, step, workdir)
            checkpoints.wait()
        finally:
            checkpoints.close()
    plots = plot_run(workdir)
    print(_farewell(results, workdir, plots), flush=True)
    return results | {'step': experiment.steps}


def _end_epoch(experiment: Experiment, state: TrainState, evaluate) -> tuple[TrainState, dict[str, Any]]:
    """Runs CPNG and the test split, and starts the next epoch's sums: returns the state and the epoch's row."""
    config = experiment.config
    loss, accuracy = _running(state, config.batch_size)
    totals = state.epoch
    controlled, report = train_step.cpng_step(state, experiment.cpng_config)
    if config.cpng.enabled and config.cpng.every == 'epoch':
        state = controlled
    result = evaluate_split(experiment, state, evaluate)
    row = {
        'epoch': _epoch(experiment, int(state.step)),
        'train_loss': loss,
        'train_accuracy': accuracy,
        'test_loss': result.loss,
        'test_accuracy': result.accuracy,
        'chi_limit': config.cpng.chi_limit,
        'beta_init': config.cpng.beta_init,
        'beta': by_layer(state.surrogate),
        'chi': by_layer(report.chi),
        'chi_min': by_layer(state.cpng.chi_recorder),
        'firing_rate': by_layer(totals.firing_rate),
        'skipped': [_layer_name(name) for name in report.skipped_layers()],
    }
    fresh = jax.device_put(EpochTotals.zeros(state.surrogate), sharding.replicated(experiment.mesh))
    return state.replace(epoch=fresh), row


def evaluate_split(experiment: Experiment, state: TrainState, evaluate) -> Accuracy:
    """Measures a state on the test split; each example counts exactly once.

    Args:
      experiment: from `build`.
      state: what to measure.
      evaluate: from `train_step.make_eval_step`.

    Returns:
      Mean cross entropy in nats, and the number classified rightly.
    """
    devices = experiment.mesh.size
    batch_size = -(-experiment.config.eval.batch_size // devices) * devices
    sums = [
        evaluate(state, sharding.put_batch(batch, experiment.mesh))
        for batch in eval_batches(experiment.dataset.test, batch_size)
    ]
    loss, correct, examples = (sum(float(value) for value in column) for column in zip(*sums, strict=True))
    return Accuracy(loss / examples, round(correct), round(examples))


def evaluate_checkpoint(experiment: Experiment, workdir: pathlib.Path) -> dict[str, Any]:
    """Restores the checkpoint that `config.eval.checkpoint` names and measures it on the test split.

    Args:
      experiment: from `build`.
      workdir: folder of the run.

    Returns:
      `step`, `test_loss`, `test_accuracy`, `correct` and `examples`.

    Raises:
      UserError: the workdir has no checkpoint, or belongs to another configuration.
    """
    config = experiment.config
    if not (workdir / 'checkpoints').is_dir():
        raise UserError(
            f'There is no checkpoint in {workdir}: train first, or name the folder of a run with --workdir.'
        )
    check(workdir, config)
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
    restored = checkpoints.restore(initial_state(experiment), config.eval.checkpoint)
    checkpoints.close()
    if restored is None:
        raise UserError(f'There is no checkpoint in {workdir} yet: train at least one epoch first.')
    state, _ = restored
    dataset = experiment.dataset
    evaluate = train_step.make_eval_step(experiment.model, experiment.mesh, mean=dataset.mean, std=dataset.std)
    result = evaluate_split(experiment, state, evaluate)
    step = int(state.step)
    print(
        f'{config.eval.checkpoint} checkpoint, step {step}: test accuracy {result.accuracy:.2%} '
        f'({result.correct} of {result.examples}), loss {result.loss:.4f}',
        flush=True,
    )
    return {
        'step': step,
        'test_loss': result.loss,
        'test_accuracy': result.accuracy,
        'correct': result.correct,
        'examples': result.examples,
    }


def by_layer(tree: Any) -> dict[str, float]:
    """Flattens a pytree laid out like `surrogate` to a number for each layer, by the layer's path, in its order."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {
        _layer_name(jax.tree_util.keystr(path, simple=True, separator='/')): float(np.mean(leaf))
        for path, leaf in leaves
    }


def _layer_name(path: str) -> str:
    return path.removesuffix('/beta')


def _epoch(experiment: Experiment, step: int) -> int:
    """The epoch, counted from 1, that ends with or contains a step."""
    return -(-step // experiment.steps_per_epoch)


def _running(state: TrainState, batch_size: int) -> tuple[float, float]:
    """Mean loss and accuracy of the epoch so far."""
    steps = int(state.epoch.steps)
    return float(state.epoch.loss) / steps, int(state.epoch.correct) / (steps * batch_size)


def _check_loss(state: TrainState, checkpoints: Checkpoints) -> None:
    """Ends a training that has diverged, before anything of it is saved."""
    if not np.isfinite(float(state.epoch.loss)):
        _diverged('the loss', state, checkpoints)


def _save(checkpoints: Checkpoints, state: TrainState, results: dict[str, Any], *, rated: bool) -> None:
    if not bool(train_state.all_finite(state)):
        _diverged('a weight or a running statistic', state, checkpoints)
    checkpoints.save(state, results, results['test_accuracy'] if rated else None)


def _diverged(what: str, state: TrainState, checkpoints: Checkpoints) -> None:
    checkpoints.wait()
    kept = checkpoints.steps()
    rest = f'The checkpoint of step {kept[-1]} is kept' if kept else 'There was no checkpoint yet'
    raise UserError(
        f'Training diverged: {what} became NaN or infinite by step {int(state.step)}. {rest}. '
        'Try a lower config.optim.learning_rate or a longer config.optim.warmup_fraction, in another --workdir.'
    )


def _rank(results: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Keeps the last and the best test accuracy; of equals the later epoch, whose checkpoint is the one kept."""
    results = results | {'test_accuracy': row['test_accuracy']}
    if row['test_accuracy'] >= results['best_accuracy']:
        results |= {'best_accuracy': row['test_accuracy'], 'best_epoch': row['epoch']}
    return results


def _spread(values: dict[str, float], digits: int) -> str:
    """Minimum, median and maximum."""
    numbers = list(values.values())
    return ' '.join(f'{value:.{digits}f}' for value in (np.min(numbers), np.median(numbers), np.max(numbers)))


def _epoch_line(row: dict[str, Any], results: dict[str, Any], epochs: int) -> str:
    line = (
        f'epoch {row["epoch"]:>3}/{epochs}  train {row["train_accuracy"]:.1%} loss {row["train_loss"]:.3f}  '
        f'test {row["test_accuracy"]:.1%} loss {row["test_loss"]:.3f} (best {results["best_accuracy"]:.1%})  '
        f'beta {_spread(row["beta"], 2)}  chi {_spread(row["chi"], 3)}  '
        f'firing {np.mean(list(row["firing_rate"].values())):.1%}  {row["images_per_second"]:.0f} images/s'
    )
    if row['skipped']:
        line += f'\n  CPNG kept the beta of {", ".join(row["skipped"])}: potentials constant or not finite'
    return line


def _greeting(experiment: Experiment, workdir: pathlib.Path, state: TrainState) -> str:
    config, step = experiment.config, int(state.step)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    layers = len(jax.tree.leaves(state.surrogate))
    device = jax.devices()[0]
    start = f'goes on from step {step}' if step else 'starts'
    if step == experiment.steps:
        start = 'is finished: step'
    return (
        f'{config.model.name} on {config.data.name}: {layers} spiking layers, {parameters:,} parameters, '
        f'{jax.device_count()} x {device.device_kind}\n{workdir} {start} of {experiment.steps} steps '
        f'in {config.epochs} epochs; beta and chi: min median max over the layers'
    )


def _farewell(results: dict[str, Any], workdir: pathlib.Path, plots: list[pathlib.Path]) -> str:
    return (
        f'test accuracy: last {results["test_accuracy"]:.2%}, best {results["best_accuracy"]:.2%} '
        f'(epoch {results["best_epoch"]})\n{workdir}: metrics.jsonl, tensorboard, checkpoints'
        + ''.join(f', plots/{plot.name}' for plot in plots)
    )
