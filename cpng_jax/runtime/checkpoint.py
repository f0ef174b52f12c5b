"""Checkpoints of any pytree: a thin layer over Orbax.

It keeps the latest and the best, falls back on an older one where the latest is damaged, and reads those that an older
version saved with another layout.
"""

import json
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from cpng_jax.runtime import distributed
from cpng_jax.runtime.errors import UserError

PyTree = Any
State = TypeVar('State')
Progress = dict[str, Any]


class Layout(NamedTuple):
    """A structure that an older version saved states in, and how such a state is brought up to date.

    Attributes:
      before: maps the target of `Checkpoints.restore` to the pytree of arrays or `jax.ShapeDtypeStruct`, with their
        shardings, that was saved for it then.
      upgrade: makes a state like the target of what was read in that structure; takes both.
    """

    before: Callable[[PyTree], PyTree]
    upgrade: Callable[[PyTree, PyTree], PyTree]


_TODAY = Layout(lambda target: target, lambda state, _: state)

RANKED_BY = 'test_accuracy'


class Checkpoints:
    """The checkpoints of a workdir; writes go on in the background until `close`."""

    def __init__(self, workdir: str | os.PathLike[str], *, keep: int = 2) -> None:
        """Opens `workdir/checkpoints`; makes it when missing.

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
                get_metric_fn=lambda metrics: metrics[RANKED_BY], n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[RANKED_BY],
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if distributed.is_primary():
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

    def save(self, step: int, state: PyTree, progress: Progress, test_accuracy: float | None = None) -> None:
        """Saves a state in the background; a step that has a checkpoint already is left alone.

        Args:
          step: number of updates made.
          state: pytree of arrays.
          progress: results so far, as JSON can hold them.
          test_accuracy: by which the best checkpoint is chosen; None within an epoch.

        Raises:
          UserError: this or the write before it failed, for want of space, say; older checkpoints are untouched.
        """
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        metrics = None if test_accuracy is None else {RANKED_BY: test_accuracy}
        try:
            self._manager.save(step, args=args, metrics=metrics)
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
        steps = self.steps()
        if which == 'best':
            best = self.best_step()
            steps = steps if best is None else [best]
        layouts = (_TODAY, *older)
        candidates = [jax.tree.map(ocp.utils.to_shape_dtype_struct, layout.before(target)) for layout in layouts]
        reasons: dict[int, str] = {}
        for step in reversed(steps):
            restored: Any = None
            index = 0
            try:
                index = self._matching(step, candidates)
                state = ocp.args.StandardRestore(candidates[index])
                args = ocp.args.Composite(state=state, progress=ocp.args.JsonRestore())
                restored = self._manager.restore(step, args=args)
            except UserError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many types for a damaged file.
                reasons[step] = _first_line(error)
            if not distributed.all_agree(restored is not None):
                reasons.setdefault(step, 'another process cannot read its part')
                continue
            self._set_all_aside(reasons)
            return layouts[index].upgrade(restored.state, target), restored.progress
        if reasons:
            listed = '; '.join(f'step {step}: {reason}' for step, reason in reasons.items())
            raise UserError(
                f'None of the checkpoints in {self.directory} can be read ({listed}). They were left as they are; '
                'choose another --workdir to start anew.'
            )
        return None

    def _matching(self, step: int, candidates: Sequence[PyTree]) -> int:
        """Index of the first candidate with the names and shapes of a checkpoint, by its metadata alone.

        Orbax would find a mismatch only halfway through the arrays, and say less.

        Raises:
          UserError: there is none; the message is about the first candidate.
        """
        metadata: Any = self._manager.item_metadata(step)['state']
        found, first = _shapes(metadata.tree), _shapes(candidates[0])
        for index, candidate in enumerate(candidates):
            if _shapes(candidate) == found:
                return index
        name = min(name for name in found.keys() | first.keys() if found.get(name) != first.get(name))
        raise UserError(
            f'The checkpoint of step {step} in {self.directory} belongs to another network or optimiser: '
            f'{name} is {_shape_text(found.get(name))}, expected {_shape_text(first.get(name))}. '
            'It was left as it is; choose another --workdir to start anew.'
        )

    def _set_aside_unrated(self) -> None:
        """Sets aside checkpoints with a damaged rating: Orbax would refuse the whole folder for one of them."""
        for rating in self.directory.glob('[0-9]*/metrics/metrics'):
            try:
                json.loads(rating.read_text())
            except ValueError as error:
                self._set_aside(int(rating.parts[-3]), _first_line(error))

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
            self._manager.close()
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> UserError:
        # Every process takes part in a save: Orbax times out where one of them has ended.
        if isinstance(error, TimeoutError) and jax.process_count() > 1:
            return distributed.lost_process_error(error)
        reason = _first_line(error)
        return UserError(f'Cannot save a checkpoint in {self.directory}: {reason}. Older checkpoints are untouched.')


def steps_in(workdir: pathlib.Path) -> list[int]:
    """Lists the steps that have a checkpoint in a workdir, oldest first, by the names of folders; opens nothing."""
    return sorted(int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdecimal())


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by names such as params.conv01.conv.kernel."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='.'): tuple(leaf.shape) for path, leaf in leaves}


def _shape_text(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return 'missing'
    return ' x '.join(map(str, shape)) or 'a scalar'


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
