"""Evaluation of a state or a checkpoint on a split; each example counts exactly once."""

import pathlib
from typing import Any, NamedTuple

import jax

from cpng_jax.data.pipeline import eval_batches
from cpng_jax.runtime import checkpoint_reader, distributed, sharding
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.workdir import check, load_config
from cpng_jax.training import keys, older_states, weights
from cpng_jax.training.setup import Setup
from cpng_jax.training.state import TrainState


class Accuracy(NamedTuple):
    """Result of an evaluation.

    Attributes:
      loss: mean cross entropy, in nats.
      correct: number of examples classified correctly.
      examples: number of examples.
    """

    loss: float
    correct: int
    examples: int

    @property
    def accuracy(self) -> float:
        """Share of the examples classified correctly."""
        return self.correct / self.examples

    def row(self, split: str) -> dict[str, float]:
        """Loss and accuracy by the names that metrics have them under."""
        return {f'{split}_loss': self.loss, f'{split}_accuracy': self.accuracy}

    def in_words(self) -> str:
        """Accuracy, counts and loss for a message."""
        return f'accuracy {self.accuracy:.2%} ({self.correct} of {self.examples}), loss {self.loss:.4f}'


def evaluate_split(setup: Setup, state: TrainState, split: str = 'test') -> Accuracy:
    """Evaluates a state on a split; each example counts exactly once.

    Args:
      setup: from `build`.
      state: to evaluate.
      split: 'test', or 'validation' of a data set that has one.

    Returns:
      Mean cross entropy in nats, and the number of examples classified correctly.
    """
    devices = setup.mesh.size
    batch_size = -(-setup.config.eval.batch_size // devices) * devices
    sums = [
        setup.eval_step(state, sharding.put_batch(batch, setup.mesh))
        for batch in eval_batches(
            getattr(setup.dataset, split),
            batch_size,
            prepare=setup.dataset.prepare,
            threads=setup.config.data.threads,
            workers=setup.config.data.workers,
            shard=jax.process_index(),
            shards=jax.process_count(),
        )
    ]
    loss, correct, examples = (sum(float(value) for value in column) for column in zip(*sums, strict=True))
    return Accuracy(loss / examples, round(correct), round(examples))


def restore(setup: Setup, workdir: pathlib.Path) -> TrainState | None:
    """Reads the checkpoint that `config.eval.checkpoint` names; the run may be under way.

    Args:
      setup: from `build`.
      workdir: folder of the run.

    Returns:
      The state; None when there is no checkpoint yet.

    Raises:
      UserError: none can be read, or one belongs to another network.
    """
    which = setup.config.eval.checkpoint
    restored = checkpoint_reader.restore(workdir, setup.state_shapes, which, older=older_states.LAYOUTS)
    return None if restored is None else restored[0]


def evaluate_checkpoint(setup: Setup, workdir: pathlib.Path) -> dict[str, Any]:
    """Restores the checkpoint that `config.eval.checkpoint` names and evaluates it (`--mode=eval`).

    On the test split, and on that for validation where there is one.

    Args:
      setup: from `build`.
      workdir: folder of the run.

    Returns:
      `step`, `test_loss`, `test_accuracy`, `correct` and `examples`; with a validation split also `validation_loss` and
      `validation_accuracy`.

    Raises:
      UserError: the workdir has no checkpoint, or belongs to another configuration.
    """
    config = setup.config
    if not (workdir / 'checkpoints').is_dir():
        raise UserError(
            f'There is no checkpoint in {workdir}: train first, or name the folder of a run with --workdir.'
        )
    check(workdir, config, keys.table())
    state = restore(setup, workdir)
    if state is None:
        raise UserError(f'There is no checkpoint in {workdir} yet: train at least one epoch first.')
    step = int(state.step)
    return _measured(setup, state, f'{config.eval.checkpoint} checkpoint, step {step}') | {'step': step}


def evaluate_weights(setup: Setup) -> dict[str, Any]:
    """Evaluates the weights that `config.init_from` names; nothing is written.

    Args:
      setup: from `build`.

    Returns:
      See `evaluate_checkpoint`; `step` is None for weights of no run.

    Raises:
      UserError: there are no such weights, they are not those of the network, or `config.init_skip` leaves some out.
    """
    start = weights.start(setup.config, setup.state_shapes.variables)
    assert start is not None, 'config.init_from is set'
    # Surrogate gradients have no effect on what a network answers.
    left = [name for name in start.left if not name.startswith(weights.SET_BY_RULES)]
    if left:
        raise UserError(
            f'config.init_skip is {setup.config.init_skip!r}, which leaves {left[0]} at its initial values: '
            'an evaluation needs all weights.'
        )
    given = distributed.arrays_from_primary(start.given)
    return _measured(setup, setup.initial_state(given), start.source) | {'step': start.step}


def evaluate(setup: Setup, workdir: pathlib.Path) -> dict[str, Any]:
    """Evaluates what `--mode=eval` asks for: a checkpoint of the workdir, or the weights that `config.init_from` names.

    The latter where `init_from` is set and the workdir is not that of a run which started from there.

    Args:
      setup: from `build`.
      workdir: folder of the run.

    Returns:
      See `evaluate_checkpoint`.

    Raises:
      UserError: there are no such weights, or they are not those of the network.
    """
    source = setup.config.init_from
    began_there = (workdir / 'config.json').is_file() and load_config(workdir, keys.table()).init_from == source
    return evaluate_weights(setup) if source and not began_there else evaluate_checkpoint(setup, workdir)


def _measured(setup: Setup, state: TrainState, name: str) -> dict[str, Any]:
    """Evaluates a state, on the test split and on that for validation, and says the result by a name in a line."""
    measured = {split: evaluate_split(setup, state, split) for split in sorted({'test', setup.rated_by})}
    if distributed.is_primary():
        words = [f'{split} {result.in_words()}' for split, result in measured.items()]
        print(f'{name}: {"; ".join(words)}', flush=True)
    numbers = {}
    for split, result in measured.items():
        numbers |= result.row(split)
    return {**numbers, 'correct': measured['test'].correct, 'examples': measured['test'].examples}
