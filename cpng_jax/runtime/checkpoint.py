"""Checkpoints: a thin layer over Orbax that keeps the latest and the best, and steps over broken ones."""

import json
import os
import pathlib
import warnings
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from cpng_jax.runtime import distributed
from cpng_jax.runtime.errors import UserError
from cpng_jax.training.state import TrainState

Progress = dict[str, Any]

_RANKED_BY = 'test_accuracy'


class Checkpoints:
    """The checkpoints of a workdir; writes go on in the background until `close`."""

    def __init__(self, workdir: str | os.PathLike[str], *, keep: int = 2) -> None:
        """Opens `workdir/checkpoints`, which is made when missing.

        Args:
          workdir: folder of the run.
          keep: latest checkpoints to keep; the best is kept besides.

        Raises:
          UserError: the folder cannot be made or read.
        """
        self.directory = pathlib.Path(workdir).absolute() / 'checkpoints'
        policies = [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics[_RANKED_BY], n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[_RANKED_BY],
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if distributed.leads():
                self._set_aside_unrated()
            distributed.barrier('unrated checkpoints are set aside')
            # The handlers are named so that the metadata of a checkpoint can be read before its arrays.
            handlers = {'state': ocp.StandardCheckpointHandler(), 'progress': ocp.JsonCheckpointHandler()}
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        except OSError as error:
            raise UserError(f'Cannot keep checkpoints in {self.directory}: {error.strerror}.') from error

    def steps(self) -> list[int]:
        """Lists the steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Returns the step of the highest test accuracy, None when no checkpoint has been rated."""
        rated = [step for step in self.steps() if self._manager.metrics(step) is not None]
        return self._manager.best_step() if rated else None

    def save(self, state: TrainState, progress: Progress, test_accuracy: float | None = None) -> None:
        """Saves a state in the background; a step that has a checkpoint already is left alone.

        Args:
          state: what to save.
          progress: small facts about the run that JSON can hold.
          test_accuracy: rates the checkpoint; None within an epoch.

        Raises:
          UserError: this or the write before it failed, for want of space, say; older checkpoints are untouched.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        metrics = None if test_accuracy is None else {_RANKED_BY: test_accuracy}
        try:
            self._manager.save(step, args=args, metrics=metrics)
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def restore(
        self, target: TrainState, which: Literal['latest', 'best'] = 'latest'
    ) -> tuple[TrainState, Progress] | None:
        """Reads a checkpoint back.

        A latest checkpoint that cannot be read is moved aside to `checkpoints/broken`, with a warning, and the one
        before it is taken.

        Args:
          target: a state of the same structure, shapes and shardings, which the result takes on.
          which: 'latest' or 'best'.

        Returns:
          The state and the facts saved with it, or None when there is no checkpoint.

        Raises:
          UserError: there are checkpoints, but none can be read, or one belongs to another network; they stay where
            they are.
        """
        steps = self.steps()
        if which == 'best':
            best = self.best_step()
            steps = steps if best is None else [best]
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        reasons: dict[int, str] = {}
        for step in reversed(steps):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
            restored: Any = None
            try:
                self._check_shapes(step, abstract)
                restored = self._manager.restore(step, args=args)
            except UserError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many types for a damaged file.
                reasons[step] = _first_line(error)
            if not distributed.all_agree(restored is not None):
                reasons.setdefault(step, 'another process cannot read its part')
                continue
            if reasons:
                if distributed.leads():
                    for broken, reason in reasons.items():
                        self._set_aside(broken, reason)
                distributed.barrier('broken checkpoints are set aside')
                self._manager.reload()
            return restored.state, restored.progress
        if reasons:
            listed = '; '.join(f'step {step}: {reason}' for step, reason in reasons.items())
            raise UserError(
                f'None of the checkpoints in {self.directory} can be read ({listed}). They were left as they are; '
                'choose another --workdir to start anew.'
            )
        return None

    def _check_shapes(self, step: int, target: Any) -> None:
        """Compares names and shapes before anything is read: Orbax would stop halfway, with less to say."""
        saved: Any = self._manager.item_metadata(step)['state']
        found, expected = _shapes(saved.tree), _shapes(target)
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                raise UserError(
                    f'The checkpoint of step {step} in {self.directory} belongs to another network or optimiser: '
                    f'{name} is {_described(found.get(name))}, expected {_described(expected.get(name))}. '
                    'It was left as it is; choose another --workdir to start anew.'
                )

    def _set_aside_unrated(self) -> None:
        """Sets aside checkpoints with a damaged rating: Orbax would refuse the whole folder for one of them."""
        for rating in self.directory.glob('[0-9]*/metrics/metrics'):
            try:
                json.loads(rating.read_text())
            except ValueError as error:
                self._set_aside(int(rating.parts[-3]), _first_line(error))

    def _set_aside(self, step: int, reason: str) -> None:
        """Moves a checkpoint that cannot be read out of the way, so that its step can be saved again."""
        broken = self.directory / 'broken'
        broken.mkdir(exist_ok=True)
        target = broken / str(step)
        while target.exists():
            target = target.with_name(target.name + '_')
        (self.directory / str(step)).rename(target)
        warnings.warn(f'The checkpoint of step {step} cannot be read ({reason}); moved to {target}.', stacklevel=3)

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
            self._manager.close()
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> UserError:
        # Orbax waits for the other processes, and gives up on one that has ended.
        if isinstance(error, TimeoutError) and jax.process_count() > 1:
            return distributed.lost(error)
        reason = _first_line(error)
        return UserError(f'Cannot save a checkpoint in {self.directory}: {reason}. Older checkpoints are untouched.')


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by names such as params.conv01.conv.kernel."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='.'): tuple(leaf.shape) for path, leaf in leaves}


def _described(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return 'missing'
    return ' x '.join(map(str, shape)) or 'a scalar'


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
