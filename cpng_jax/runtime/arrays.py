"""Arrays by name, as files have them: those of a checkpoint, read without writing, and `.npz` files."""

import json
import os
import pathlib
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from cpng_jax.runtime.checkpoint import RANKED_BY, steps_in
from cpng_jax.runtime.errors import UserError

Arrays = dict[str, np.ndarray]


class Saved(NamedTuple):
    """Arrays of a checkpoint.

    Attributes:
      step: of the checkpoint.
      arrays: by name.
    """

    step: int
    arrays: Arrays


def by_name(tree: Any) -> dict[str, Any]:
    """Flattens a pytree: leaves by names such as params/conv01/conv/conv/kernel, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def read_checkpoint(workdir: pathlib.Path, parts: Sequence[str], which: str = 'latest') -> Saved:
    """Reads parts of a checkpoint to the host, whatever run it belongs to; nothing is written, so that it may go on.

    Args:
      workdir: folder of the run.
      parts: first names of the arrays to read; one that the checkpoint lacks is left out.
      which: 'latest', or 'best', by test accuracy. A latest one that cannot be read is passed over, with a warning.

    Returns:
      The arrays and their step.

    Raises:
      UserError: there is no checkpoint, or none can be read.
    """
    steps = steps_in(workdir)
    rated = {step: rating for step in steps if (rating := _rating(workdir, step)) is not None}
    if which == 'best' and rated:
        steps = [max(rated, key=lambda step: (rated[step], step))]
    if not steps:
        raise UserError(f'There is no checkpoint in {workdir}: train at least one epoch first, or name another run.')
    reasons = {}
    for step in reversed(steps):
        folder = workdir / 'checkpoints' / str(step) / 'state'
        files = _files(folder)
        try:
            saved = Saved(step, _read_state(folder, parts))
            if _files(folder) != files:  # of a chunk that has gone TensorStore makes zeros
                raise ValueError('it was removed meanwhile')
        except Exception as error:  # Orbax and TensorStore raise many types for a damaged file.
            reasons[step] = (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        if reasons:
            warnings.warn(f'Step {step} of {workdir} is taken, since {_listed(reasons)}.', stacklevel=2)
        return saved
    raise UserError(f'No checkpoint in {workdir} can be read: {_listed(reasons)}; name another run.')


def _listed(reasons: Mapping[int, str]) -> str:
    return '; '.join(f'the checkpoint of step {step} cannot be read ({reason})' for step, reason in reasons.items())


def _files(folder: pathlib.Path) -> set[pathlib.Path]:
    return {path for path in folder.rglob('*') if path.is_file()}


def _rating(workdir: pathlib.Path, step: int) -> float | None:
    """Test accuracy that a checkpoint was rated by; None for one within an epoch, or a damaged rating."""
    try:
        return json.loads((workdir / 'checkpoints' / str(step) / 'metrics' / 'metrics').read_text())[RANKED_BY]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_state(folder: pathlib.Path, parts: Sequence[str]) -> Arrays:
    # Not by a CheckpointManager, which sweeps the folder of a run that may be writing there.
    handler = ocp.PyTreeCheckpointHandler()
    try:
        path = epath.Path(folder.absolute())
        saved = handler.metadata(path).tree
        wanted = {part: saved[part] for part in parts if saved.get(part)}
        args = ocp.args.PyTreeRestore(
            item=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted),
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
            partial_restore=True,
        )
        restored = handler.restore(path, args=args)
        return {f'{part}/{name}': leaf for part in wanted for name, leaf in by_name(restored[part]).items()}
    finally:
        handler.close()


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays into a new `.npz` file, in one go: a process that is killed leaves none.

    Args:
      path: of the file, which must not be there yet.
      arrays: by name.

    Raises:
      UserError: the name does not end with .npz, the file is there, or it cannot be written.
    """
    if path.suffix != '.npz':
        raise UserError(f'The weights file is {str(path)!r}, expected a name that ends with .npz.')
    if path.exists():
        raise UserError(f'{path} is there already and stays as it is: remove it, or choose another name.')
    temporary = path.with_suffix('.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open('wb') as file:
            np.savez(file, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f'Cannot write {path}: {error.strerror or error}.') from error


def read_npz(path: pathlib.Path) -> Arrays:
    """Reads the arrays of a `.npz` file; objects, which would need pickle, are refused.

    Args:
      path: of the file.

    Returns:
      Arrays by name.

    Raises:
      UserError: it cannot be read, or is no such file.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError('it is another kind of file, or damaged')
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        if not all(isinstance(array, np.ndarray) for array in found.values()):
            raise ValueError('not all that it holds are arrays')
        return found
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(f'{path} cannot be read ({reason}); expected a .npz file of arrays by name.') from error
