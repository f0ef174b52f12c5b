"""Converts the ANN of a run, and saves what came of it as a run of its own."""

import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cpng_jax.convert.calibration import Said
from cpng_jax.convert.methods import METHODS, Task
from cpng_jax.convert.network import activations, folded, spiking_config, spiking_variables
from cpng_jax.convert.weight_calibration import Training
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime import arrays
from cpng_jax.runtime.checkpoint import Checkpoints
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.metrics import MetricsWriter
from cpng_jax.runtime.workdir import acquire, load_config, write_json
from cpng_jax.training import keys, weights
from cpng_jax.training.activity import activity
from cpng_jax.training.evaluate import evaluate_split
from cpng_jax.training.setup import Setup, build
from cpng_jax.training.state import TrainState

# In the folder of a network that was converted: what it was made of, how, and what it reaches.
FILE_NAME = 'conversion.json'

Row = dict[str, Any]


class Options(NamedTuple):
    """How to convert.

    Attributes:
      method: of `METHODS`.
      checkpoint: of the ANN's run, 'latest' or 'best'.
      images: training images that weights are calibrated on.
      training: how they are.
      percentile: of what a layer is given, for its threshold, 0 to 100; of `diet`.
      scaling: of thresholds after that.
    """

    method: str
    checkpoint: str = 'latest'
    images: int = 1024
    training: Training = Training()
    percentile: float = 99.7
    scaling: float = 0.6

    def row(self) -> Row:
        """The options that have an effect, for the record."""
        more = {'images': self.images, **self.training._asdict()} if METHODS[self.method].trains else {}
        if METHODS[self.method].makes == 'diet':
            more = {'percentile': self.percentile, 'scaling': self.scaling}
        return {'method': self.method, 'checkpoint': self.checkpoint, **more}


class ANN(NamedTuple):
    """A trained ANN.

    Attributes:
      workdir: of its run.
      config: of its run.
      setup: from `build`.
      state: its checkpoint.
      accuracy: on the test split.
    """

    workdir: pathlib.Path
    config: Config
    setup: Setup
    state: TrainState
    accuracy: float


def read(workdir: pathlib.Path, options: Options) -> ANN:
    """Reads and evaluates a trained ANN.

    Args:
      workdir: of its run.
      options: how it is to be converted.

    Returns:
      The ANN.

    Raises:
      UserError: there is no run, it has no checkpoint, or its network cannot be converted so.
    """
    config = load_config(workdir, keys.table())
    spiking_config(config, 1)  # which refuses what cannot be converted, before any work
    kind, kinds = config.neuron.kind, METHODS[options.method].kinds
    if kinds and kind not in kinds:
        raise UserError(
            f'--method is {options.method} and config.neuron.kind of the run is {kind}: expected a run with '
            f'{" or ".join(kinds)}, or another --method.'
        )
    setup = build(config)
    saved = arrays.read_checkpoint(workdir, weights.COLLECTIONS, options.checkpoint)
    given = weights.fitted(saved.arrays, setup.state_shapes.variables, source=str(workdir)).given
    state = setup.initial_state(given)
    state = state.replace(step=jnp.asarray(saved.step, jnp.int32))
    return ANN(workdir, config, setup, state, evaluate_split(setup, state).accuracy)


def convert(ann: ANN, options: Options, time_steps: int, folder: pathlib.Path, say: Said) -> Row:
    """Converts an ANN for a number of time steps, evaluates the network that spikes and saves it.

    Args:
      ann: from `read`.
      options: how.
      time_steps: T.
      folder: workdir of the network that spikes; one that has been finished is read, not made again.
      say: told of what is being done.

    Returns:
      `time_steps`, `test_accuracy`, `firing_rate`, `operations` for an image, `seconds` of the conversion, and the
      options.

    Raises:
      UserError: the folder holds something else, or cannot be written.
    """
    asked = options.row() | {'time_steps': time_steps, 'ann': str(ann.workdir.resolve()), 'step': int(ann.state.step)}
    done = finished(folder)
    if done is not None:
        changed = [name for name, value in asked.items() if done.get(name) != value]
        if changed:
            was = ', '.join(f'{name} {done.get(name)}, not {asked[name]}' for name in changed)
            raise UserError(f'{folder} holds a network that was converted with {was}: choose another --out.')
        return done
    config = spiking_config(ann.config, time_steps, METHODS[options.method].makes)
    setup = build(config)
    since = time.monotonic()
    state = _converted(ann, setup, options, time_steps, say)
    row = asked | {'seconds': round(time.monotonic() - since, 2)}
    measured = evaluate_split(setup, state)
    spikes = activity(setup, state)
    row |= {**measured.row('test'), 'firing_rate': spikes.firing_rate, 'operations': spikes.operations}
    _save(setup, state, folder, row)
    return row


def finished(folder: pathlib.Path) -> Row | None:
    """What is known of a network that was converted; None where it is not finished.

    Args:
      folder: its workdir.

    Returns:
      The row that `convert` returned.

    Raises:
      UserError: the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f'{path} is damaged ({error}): remove {folder}, and it is made again.') from error


def _converted(ann: ANN, setup: Setup, options: Options, time_steps: int, say: Said) -> TrainState:
    """The state of the network that spikes, at the step of the ANN."""
    params = folded(ann.setup.model, ann.state.variables, ann.setup.example)
    with ann.setup.train_batches(first_step=0) as batches:
        task = Task(
            ann=ann.setup.model,
            ann_variables=ann.state.variables,
            snn=setup.model,
            variables=spiking_variables(setup.model, params, setup.example),
            layers=activations(setup.model, setup.example),
            time_steps=time_steps,
            batches=_images(batches, ann.setup),
            images=options.images,
            training=options.training,
            percentile=options.percentile,
            scaling=options.scaling,
            key=jax.random.key(ann.config.seed),
            say=say,
        )
        found = METHODS[options.method].convert(task)
    given = {name: np.asarray(array) for name, array in weights.flat(found).items()}
    return setup.initial_state(given).replace(step=ann.state.step)


def _images(batches: Any, setup: Setup) -> Iterator[Array]:
    """Training images as training sees them, without end."""
    for batch in batches:
        yield jax.jit(setup.prepare)(batch['image'])


def _save(setup: Setup, state: TrainState, folder: pathlib.Path, row: Row) -> None:
    """Writes a workdir that `--mode=eval`, summary and the analyses read."""
    step = int(state.step)
    with acquire(folder, setup.config, keys.table()).lock:
        checkpoints = Checkpoints(folder, keep=1)
        try:
            rated = {'test_accuracy': row['test_accuracy']}
            checkpoints.save(step, state, {**rated, 'best_accuracy': row['test_accuracy'], 'best_epoch': 0}, rated)
            checkpoints.wait()
        finally:
            checkpoints.close()
        with MetricsWriter(folder) as writer:
            writer.write('conversion', step, row)
        # Last: what is not finished is made again.
        write_json(folder / FILE_NAME, row)
