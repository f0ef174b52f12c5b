"""When the state of a run is saved, so that its latest and best are kept, and how one ends whose state is no good."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cpng_jax.runtime.checkpoint import Checkpoints
from cpng_jax.runtime.errors import DivergedError
from cpng_jax.runtime.metrics import rated_by
from cpng_jax.training.setup import Setup
from cpng_jax.training.state import TrainState, all_finite

Results = dict[str, Any]


class Saver:
    """Saves the state of a run when it is time.

    The best epoch is kept whenever it was: one between two saves stays in the memory of the devices, which hold the
    state twice then, and is written with the next. A run that is killed in between goes through it again.
    """

    def __init__(self, checkpoints: Checkpoints, setup: Setup) -> None:
        """Takes up a run.

        Args:
          checkpoints: of its workdir.
          setup: from `build`.
        """
        self._checkpoints, self._setup = checkpoints, setup
        self._best: tuple[int, TrainState, Results] | None = None

    def after(self, step: int, state: TrainState, results: Results, *, stopping: bool) -> None:
        """Saves after a step if it is time: every so many steps or epochs, at the end, and before a stop.

        Args:
          step: that was made.
          state: after it.
          results: with the accuracy of the epoch, where the step was its last.
          stopping: the run is about to end.

        Raises:
          DivergedError: the state to save is not finite.
          UserError: a write failed.
        """
        setup, often = self._setup, self._setup.config.checkpoint
        ends_epoch, epoch = step % setup.steps_per_epoch == 0, setup.epoch(step)
        best = ends_epoch and results['best_epoch'] == epoch
        due = stopping or step == setup.steps or (ends_epoch and epoch % often.every_epochs == 0)
        if due or (often.every_steps and step % often.every_steps == 0):
            state = self._finite(state)
            if best:
                self._best = None
            self._save_best()
            self._save(step, state, results, rated=ends_epoch)
        elif best:
            self._best = (step, _copied(self._finite(state)), results)
        if stopping:
            self._checkpoints.wait()

    def check_loss(self, state: TrainState) -> None:
        """Ends a run whose loss is not finite, before its state is saved.

        Args:
          state: after a step.

        Raises:
          DivergedError: it is not.
        """
        if not np.isfinite(float(state.epoch.loss)):
            self._diverged('the loss', state)

    def _save(self, step: int, state: TrainState, results: Results, *, rated: bool) -> None:
        """Saves a checkpoint, at the end of an epoch rated by its accuracy."""
        name = f'{rated_by(results)}_accuracy'
        self._checkpoints.save(step, state, results, {name: results[name]} if rated else None)

    def _save_best(self) -> None:
        """Saves the best epoch that is kept for later."""
        if self._best is not None:
            self._save(*self._best, rated=True)
        self._best = None

    def _finite(self, state: TrainState) -> TrainState:
        if not bool(all_finite(state)):
            self._diverged('a weight or a running statistic', state)
        return state

    def _diverged(self, what: str, state: TrainState) -> None:
        self._save_best()
        self._checkpoints.wait()
        kept = self._checkpoints.steps()
        rest = f'The checkpoint of step {kept[-1]} is kept' if kept else 'There was no checkpoint yet'
        raise DivergedError(
            f'Training diverged: {what} became NaN or infinite by step {int(state.step)}. {rest}. '
            'Try a lower config.optim.learning_rate or a longer config.optim.warmup_fraction, in another --workdir.'
        )


@jax.jit
def _copied(state: TrainState) -> TrainState:
    """The state in buffers of its own: the next step takes those that it has."""
    return jax.tree.map(jnp.copy, state)
