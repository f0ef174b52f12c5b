"""Checkpoints of any pytree: a thin layer over Orbax.

It keeps the latest and the best, falls back on an older one where the latest is damaged, and reads those that an older
version saved with another layout.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from cpng_jax.runtime import distributed, orbax
from cpng_jax.runtime.checkpoint_reader import (
    Layout,
    Progress,
    PyTree,
    Reader,
    State,
    best_step_in,
    rating,
    ratings_in,
)
from cpng_jax.runtime.errors import UserError


class Checkpoints:
    """The checkpoints of a run that saves them; writes go on in the background until `close`.

    Whoever only reads takes `checkpoint_reader.restore`, which leaves the folder as it is.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, keep: int = 2) -> None:
        """Opens `workdir/checkpoints`; makes it when missing.

        Args:
          workdir: folder of the run.
          keep: latest checkpoints to keep; the best is kept besides.

        Raises:
          UserError: the folder cannot be made or read.
        """
        self._reader = Reader(workdir)
        self.directory = self._reader.directory
        policies = [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(get_metric_fn=rating, n=1, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=rating,
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if distributed.is_primary():
                self._set_aside_unrated()
            distributed.barrier('unrated checkpoints are set aside')
            handlers = {'state': ocp.StandardCheckpointHandler(), 'progress': ocp.JsonCheckpointHandler()}
            self._manager = ocp.CheckpointManager(orbax.path(self.directory), options=options, item_handlers=handlers)
        except OSError as error:
            raise UserError(f'Cannot keep checkpoints in {self.directory}: {error.strerror}.') from error

    def steps(self) -> list[int]:
        """Lists the steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Returns the step of the highest rating, None when no checkpoint has been rated."""
        return best_step_in(self.directory)

    def save(self, step: int, state: PyTree, progress: Progress, rated: Mapping[str, float] | None = None) -> None:
        """Saves a state in the background; a step that has a checkpoint already is left alone.

        Args:
          step: number of updates made.
          state: pytree of arrays.
          progress: results so far, as JSON can hold them.
          rated: the accuracy by which the best checkpoint is chosen, under the name of its split, such as
            `test_accuracy`; None within an epoch.

        Raises:
          UserError: this or the write before it failed, for want of space, say; older checkpoints are untouched.
        """
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        try:
            self._manager.save(step, args=args, metrics=None if rated is None else dict(rated))
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def restore(
        self, target: State, which: Literal['latest', 'best'] = 'latest', older: Sequence[Layout] = ()
    ) -> tuple[State, Progress] | None:
        """Reads a checkpoint back.

        A latest checkpoint that cannot be read is moved aside to `checkpoints/broken`, with a warning, and the one
        before it is taken.

        Args:
          target: a state of the same structure, shapes and shardings as the result.
          which: 'latest' or 'best'.
          older: structures of older versions, tried in order on a checkpoint that has not that of the target.

        Returns:
          The state and the results saved with it, or None when there is no checkpoint.

        Raises:
          UserError: there are checkpoints, but none can be read, or one belongs to another network; they stay where
            they are.
        """
        found = self._reader.find(target, which, older)
        if found is None:
            return None
        self._set_all_aside(found.unreadable)
        return found.state, found.progress

    def _set_aside_unrated(self) -> None:
        """Sets aside checkpoints with a damaged rating: Orbax would refuse the whole folder for one of them."""
        _, damaged = ratings_in(self.directory)
        for step, reason in damaged.items():
            self._set_aside(step, reason)

    def _set_all_aside(self, reasons: dict[int, str]) -> None:
        """Sets aside checkpoints that cannot be read: the steps and why."""
        if not reasons:
            return
        if distributed.is_primary():
            for step, reason in reasons.items():
                self._set_aside(step, reason)
        distributed.barrier('broken checkpoints are set aside')
        self._manager.reload()

    def _set_aside(self, step: int, reason: str) -> None:
        """Moves a checkpoint that cannot be read to `broken`, so that its step can be saved again."""
        broken = self.directory / 'broken'
        broken.mkdir(exist_ok=True)
        target = broken / str(step)
        while target.exists():
            target = target.with_name(target.name + '_')
        (self.directory / str(step)).rename(target)
        warnings.warn(f'The checkpoint of step {step} cannot be read ({reason}); moved to {target}.', stacklevel=4)

    def wait(self) -> None:
        """Waits for writes under way.

        Raises:
          UserError: one failed; older checkpoints are untouched.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits for writes under way and ends the background threads.

        Raises:
          UserError: a write failed; older checkpoints are untouched.
        """
        try:
            self._reader.close()
            self._manager.close()
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> UserError:
        # Every process takes part in a save: Orbax times out where one of them has ended.
        if isinstance(error, TimeoutError) and jax.process_count() > 1:
            return distributed.lost_process_error(error)
        reason = orbax.reason(error)
        return UserError(f'Cannot save a checkpoint in {self.directory}: {reason}. Older checkpoints are untouched.')
