"""Arrays of a checkpoint by name, read without writing."""

import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from cpng_jax.runtime import orbax
from cpng_jax.runtime.checkpoint_reader import FOLDER, best_step_in, files_of, steps_in
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.npz import Arrays


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
      which: 'latest', or 'best', by its rating. A latest one that cannot be read is passed over, with a warning.

    Returns:
      The arrays and their step.

    Raises:
      UserError: there is no checkpoint, or none can be read.
    """
    checkpoints = workdir / FOLDER
    steps, best = steps_in(checkpoints), best_step_in(checkpoints)
    if which == 'best' and best is not None:
        steps = [best]
    if not steps:
        raise UserError(f'There is no checkpoint in {workdir}: train at least one epoch first, or name another run.')
    reasons = {}
    for step in reversed(steps):
        there = files_of(checkpoints / str(step))
        try:
            saved = Saved(step, _read_state(checkpoints / str(step) / 'state', parts))
            if files_of(checkpoints / str(step)) != there:
                raise ValueError('it was removed meanwhile')
        except Exception as error:  # Orbax and TensorStore raise many types for a damaged file.
            reasons[step] = orbax.reason(error)
            continue
        if reasons:
            warnings.warn(f'Step {step} of {workdir} is taken, since {_listed(reasons)}.', stacklevel=2)
        return saved
    raise UserError(f'No checkpoint in {workdir} can be read: {_listed(reasons)}; name another run.')


def _listed(reasons: Mapping[int, str]) -> str:
    return '; '.join(f'the checkpoint of step {step} cannot be read ({reason})' for step, reason in reasons.items())


def _read_state(folder: pathlib.Path, parts: Sequence[str]) -> Arrays:
    orbax.hush()
    # Not by a CheckpointManager, which sweeps the folder of a run that may be writing there.
    handler = ocp.PyTreeCheckpointHandler()
    try:
        path = orbax.path(folder.absolute())
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
