"""Where arrays live: one mesh over all devices; arrays are replicated, or split along one of their axes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cpng_jax.runtime.errors import UserError


def make_mesh(batch_size: int, parts: int = 1) -> Mesh:
    """Makes a mesh with one axis of all devices, those of a process side by side.

    Args:
      batch_size: examples in a training batch, which the devices share.
      parts: micro-batches of a batch, over which gradients are accumulated.

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
    """The sharding of arrays that every device holds whole, such as statistics and losses."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec('data'))


def along_longest_axis(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose memory the devices share, as fully sharded data parallelism has it.

    Args:
      shape: of the array.
      mesh: from `make_mesh`.

    Returns:
      Split along the longest axis that the devices divide evenly; replicated where there is none.
    """
    axes = [axis for axis, size in enumerate(shape) if size % mesh.size == 0]
    if not axes:
        return replicated(mesh)
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*(None,) * longest, 'data'))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Starts the transfer of a batch to the devices.

    Args:
      batch: pytree of numpy arrays `[B, ...]`, B being this process's share of the global batch.
      mesh: from `make_mesh`.

    Returns:
      The same pytree of global arrays, each device with its share of the examples.
    """
    sharding = over_batch(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)
