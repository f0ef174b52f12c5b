"""Where arrays live: one mesh over all devices, the batch split over it, the state whole on each or shared out."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cpng_jax.runtime.errors import UserError
from cpng_jax.training.state import TrainState


def make_mesh(batch_size: int, parts: int = 1) -> Mesh:
    """Lays all devices out in one line.

    Args:
      batch_size: examples in a training batch, which the devices share.
      parts: that the batch is worked off in, one after the other.

    Returns:
      The mesh, with the axis 'data'.

    Raises:
      UserError: the devices cannot share the batch evenly.
    """
    devices = jax.device_count()
    if batch_size % (devices * parts):
        if parts > 1:
            raise UserError(
                f'config.batch_size is {batch_size}, which cannot be worked off evenly in config.optim.accumulate = '
                f'{parts} parts on {devices} devices: choose a multiple of {devices * parts}.'
            )
        raise UserError(
            f'config.batch_size is {batch_size}, which {devices} devices cannot share evenly: '
            f'choose a multiple of {devices}.'
        )
    # The devices of a process side by side, so that its share of a batch is rows that follow each other.
    line = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(line), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: state, statistics, losses."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec('data'))


def of_state(shapes: TrainState, mesh: Mesh, *, fsdp: bool) -> TrainState:
    """Decides where each part of a state lives.

    Args:
      shapes: a state, or its shapes and dtypes.
      mesh: from `make_mesh`.
      fsdp: share weights and optimiser state out, each along its longest axis that the devices divide evenly; what has
        none, and all else, is held whole by every device.

    Returns:
      A state of shardings.
    """

    def shared(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if not (fsdp and axes):
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, 'data'))

    everywhere = jax.tree.map(lambda _: replicated(mesh), shapes)
    return everywhere.replace(
        params=jax.tree.map(shared, shapes.params), opt_state=jax.tree.map(shared, shapes.opt_state)
    )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Sends a batch to the devices.

    Args:
      batch: pytree of numpy arrays `[B, ...]`, B being this process's share of the global batch.
      mesh: from `make_mesh`.

    Returns:
      The same pytree of global arrays, each device with its share of the examples.
    """
    sharding = over_batch(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)
