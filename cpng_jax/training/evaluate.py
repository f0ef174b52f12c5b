"""Evaluation of a state or a checkpoint on a split; each example counts exactly once."""

import pathlib
from typing import Any, NamedTuple

import jax

from cpng_jax.data.pipeline import eval_batches
from cpng_jax.runtime import checkpoint_reader, distributed, sharding
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.workdir import check
from cpng_jax.training import keys, state_v1
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
    restored = checkpoint_reader.restore(workdir, setup.state_shapes, which, older=[state_v1.LAYOUT])
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
    measured = {split: evaluate_split(setup, state, split) for split in sorted({'test', setup.rated_by})}
    step = int(state.step)
    if distributed.is_primary():
        words = [f'{split} {result.in_words()}' for split, result in measured.items()]
        print(f'{config.eval.checkpoint} checkpoint, step {step}: {"; ".join(words)}', flush=True)
    numbers = {}
    for split, result in measured.items():
        numbers |= result.row(split)
    return {'step': step, **numbers, 'correct': measured['test'].correct, 'examples': measured['test'].examples}
