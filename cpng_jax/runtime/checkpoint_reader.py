"""Reading checkpoints without changing anything in their folder, be it that of a run under way or of a colleague."""

import json
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import orbax.checkpoint as ocp

from cpng_jax.runtime import distributed, orbax
from cpng_jax.runtime.errors import UserError

PyTree = Any
State = TypeVar('State')
Progress = dict[str, Any]
Which = Literal['latest', 'best']

FOLDER = 'checkpoints'
# How often the checkpoint that is being read may give way to newer ones.
_TRIES = 20


class Layout(NamedTuple):
    """A structure that an older version saved states in, and how such a state is brought up to date.

    Attributes:
      before: maps the target of `restore` to the pytree of arrays or `jax.ShapeDtypeStruct`, with their shardings,
        that was saved for it then.
      upgrade: makes a state like the target of what was read in that structure; takes both.
    """

    before: Callable[[PyTree], PyTree]
    upgrade: Callable[[PyTree, PyTree], PyTree]


_TODAY = Layout(lambda target: target, lambda state, _: state)


class Found(NamedTuple):
    """What was read.

    Attributes:
      step: of the checkpoint.
      state: the state in it.
      progress: the results saved with it.
      unreadable: the later checkpoints that cannot be read, and why.
    """

    step: int
    state: Any
    progress: Progress
    unreadable: dict[int, str]


class _Superseded(Exception):  # noqa: N818  not an error
    """A checkpoint was removed while it was read."""


def restore(
    workdir: str | os.PathLike[str], target: State, which: Which = 'latest', older: Sequence[Layout] = ()
) -> tuple[State, Progress] | None:
    """Reads a checkpoint of a run, which may be under way; where it cannot be read, the one before it, with a warning.

    Args:
      workdir: folder of the run.
      target: a state of the same structure, shapes and shardings as the result.
      which: 'latest' or 'best'.
      older: structures of older versions, tried in order on a checkpoint that has not that of the target.

    Returns:
      The state and the results saved with it, or None when there is no checkpoint.

    Raises:
      UserError: there are checkpoints, but none can be read, or one belongs to another network.
    """
    reader = Reader(workdir)
    found = reader.find(target, which, older)
    reader.close()
    if found is None:
        return None
    for step, reason in found.unreadable.items():
        text = f'The checkpoint of step {step} cannot be read ({reason}); that of step {found.step} is taken instead.'
        warnings.warn(text, stacklevel=2)
    return found.state, found.progress


def steps_in(directory: pathlib.Path) -> list[int]:
    """Lists the steps that have a whole checkpoint in a folder of them, oldest first.

    Raises:
      UserError: the folder cannot be read.
    """
    try:
        names = os.listdir(directory)
    except OSError as error:
        if not directory.exists():  # nor is its parent a folder, maybe
            return []
        raise UserError(f'Cannot read {directory}: {error.strerror}.') from error
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def rating(metrics: Mapping[str, float]) -> float:
    """The accuracy that a checkpoint was rated by, on the split that its name tells; there is just one."""
    (accuracy,) = metrics.values()
    return float(accuracy)


def ratings_in(directory: pathlib.Path) -> tuple[dict[int, float], dict[int, str]]:
    """Reads the accuracies that the checkpoints in a folder were rated by.

    Args:
      directory: the folder.

    Returns:
      The accuracies by step, of those that have been rated; and the steps whose rating cannot be read, and why.
    """
    ratings, damaged = {}, {}
    for step in steps_in(directory):
        try:
            ratings[step] = rating(json.loads((directory / str(step) / 'metrics' / 'metrics').read_text()))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, AttributeError, TypeError) as error:
            damaged[step] = orbax.reason(error)
    return ratings, damaged


def best_step_in(directory: pathlib.Path) -> int | None:
    """Returns the step of the highest rating, of equals the later; None when none has been rated."""
    ratings, _ = ratings_in(directory)
    return max(ratings, key=lambda step: (ratings[step], step), default=None)


def files_of(checkpoint: pathlib.Path) -> set[str] | None:
    """The files of a checkpoint; None where there is none.

    Of a chunk that has gone TensorStore makes zeros: what was read counts if the files are the same before and after.
    """
    if not checkpoint.is_dir():
        return None
    return {os.path.join(root, name) for root, _, names in os.walk(checkpoint) for name in names}


class Reader:
    """The checkpoints of a workdir, to be read."""

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        """Names `workdir/checkpoints`, which need not be there; `workdir` is the folder of the run."""
        self.directory = pathlib.Path(workdir).absolute() / FOLDER
        orbax.hush()
        # Each process reads by itself: one that fails must not leave another waiting for it.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'process {me}'
        )
        handler = ocp.CompositeCheckpointHandler(
            # Named, so that the metadata of a checkpoint can be read before its arrays.
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
            state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            progress=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            metrics=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        )
        self._checkpointer = ocp.Checkpointer(handler, multiprocessing_options=alone)

    def find(self, target: PyTree, which: Which, older: Sequence[Layout]) -> Found | None:
        """Reads the checkpoint wanted, or, where it cannot be read, the one before it.

        Args:
          target: see `restore`, as for the others.
          which: 'latest' or 'best'.
          older: structures of older versions.

        Returns:
          What was found; None when there is no checkpoint.

        Raises:
          UserError: there are checkpoints, but none can be read, or one belongs to another network.
        """
        layouts = (_TODAY, *older)
        candidates = [jax.tree.map(ocp.utils.to_shape_dtype_struct, layout.before(target)) for layout in layouts]
        for _ in range(_TRIES):
            try:
                found = self._newest(which, candidates)
            except _Superseded:
                continue
            if found is None:
                return None
            index, found = found
            return found._replace(state=layouts[index].upgrade(found.state, target))
        raise UserError(
            f'The checkpoints in {self.directory} are superseded faster than they can be read: '
            'try again, or have the run keep more of them, config.checkpoint.keep.'
        )

    def _newest(self, which: Which, candidates: Sequence[PyTree]) -> tuple[int, Found] | None:
        """One pass from the newest to the oldest: the index of the layout, and what was read in it."""
        _, damaged = ratings_in(self.directory)
        best = best_step_in(self.directory) if which == 'best' else None
        wanted = steps_in(self.directory)[::-1] if best is None else [best]
        wanted, damaged = distributed.from_primary([wanted, list(damaged.items())])
        damaged, unreadable = dict(damaged), {}
        for step in wanted:
            files, index, restored, misfit = files_of(self._folder(step)), 0, None, None
            try:
                if step in damaged:
                    raise ValueError(damaged[step])
                index = self._matching(step, candidates)
                state = ocp.args.StandardRestore(candidates[index])
                args = ocp.args.Composite(state=state, progress=ocp.args.JsonRestore())
                restored: Any = self._checkpointer.restore(orbax.path(self._folder(step)), args=args)
            except UserError as error:
                misfit = error
            except Exception as error:  # Orbax and TensorStore raise many types for a damaged file.
                unreadable[step] = orbax.reason(error)
            if not distributed.all_agree(files is not None and files_of(self._folder(step)) == files):
                raise _Superseded
            if misfit is not None:
                raise misfit
            if distributed.all_agree(restored is not None):
                return index, Found(step, restored.state, restored.progress, unreadable)
            unreadable.setdefault(step, 'another process cannot read its part')
        if not unreadable:
            return None
        listed = '; '.join(f'step {step}: {reason}' for step, reason in unreadable.items())
        raise UserError(
            f'None of the checkpoints in {self.directory} can be read ({listed}). They were left as they are; '
            'choose another --workdir to start anew.'
        )

    def _folder(self, step: int) -> pathlib.Path:
        return self.directory / str(step)

    def _matching(self, step: int, candidates: Sequence[PyTree]) -> int:
        """Index of the first candidate with the names and shapes of a checkpoint, by its metadata alone.

        Orbax would find a mismatch only halfway through the arrays, and say less.

        Raises:
          UserError: there is none; the message is about the first candidate.
        """
        metadata: Any = self._checkpointer.metadata(orbax.path(self._folder(step))).item_metadata
        found, first = _shapes(metadata['state'].tree), _shapes(candidates[0])
        for index, candidate in enumerate(candidates):
            if _shapes(candidate) == found:
                return index
        name = min(name for name in found.keys() | first.keys() if found.get(name) != first.get(name))
        raise UserError(
            f'The checkpoint of step {step} in {self.directory} belongs to another network or optimiser: '
            f'{name} is {shape_text(found.get(name))}, expected {shape_text(first.get(name))}. '
            'It was left as it is; choose another --workdir to start anew.'
        )

    def close(self) -> None:
        """Ends the background threads."""
        self._checkpointer.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by names such as params.conv01.conv.kernel."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='.'): tuple(leaf.shape) for path, leaf in leaves}


def shape_text(shape: tuple[int, ...] | None) -> str:
    """Writes the shape of an array for a message: 3 x 3 x 1 x 4, 'a scalar', or 'missing' for None."""
    if shape is None:
        return 'missing'
    return ' x '.join(map(str, shape)) or 'a scalar'
