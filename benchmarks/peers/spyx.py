"""The layer of neurons of `benchmarks.race` with spyx: `spyx.nn.LIF` through `spyx.nn.run`, under `jax.jit`."""

from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import spyx.axn  # pyright: ignore[reportMissingImports]
import spyx.nn  # pyright: ignore[reportMissingImports]
from flax import nnx

from benchmarks import cases
from benchmarks.cases import Arrays, Case
from benchmarks.worker import Work

VERSIONS = {'spyx': metadata.version('spyx'), 'jax': jax.__version__}
DIFFERS = 'spikes one step later and resets by subtraction: first spikes alone are compared'


def _layer(shape: tuple[int, ...]) -> Callable[[Any], Any]:
    """Maps currents `[T, batch, *shape]` to spikes."""
    neurons = spyx.nn.LIF(shape, beta=0.5, threshold=1.0, activation=spyx.axn.triangular(1), rngs=nnx.Rngs(0))
    return lambda currents: spyx.nn.run(neurons, currents)[0]


def build(case: Case) -> Work:
    """Builds the layer of neurons."""
    given = {name: jnp.asarray(array, case.dtype) for name, array in cases.lif_inputs(case).items()}
    layer = _layer(given['currents'].shape[2:])

    @jax.jit
    def forward_backward(currents: Any, cotangent: Any) -> Any:
        spikes, pull = jax.vjp(layer, currents)
        return spikes, pull(cotangent)[0]

    device = jax.devices()[0]

    def peak_bytes() -> int | None:
        return (device.memory_stats() or {}).get('peak_bytes_in_use')

    def step() -> None:
        jax.block_until_ready(forward_backward(**given))

    return Work(step, device.device_kind, peak_bytes)


def check(case: Case, given: Arrays) -> Arrays:
    """Computes the time step of each neuron's first spike; a step without input shows the spikes of the last."""
    del case
    currents = np.pad(given['currents'], [(0, 1), (0, 0), (0, 0)])
    spikes = np.asarray(_layer(currents.shape[2:])(jnp.asarray(currents)))
    return {'first_spikes': cases.first_spikes(spikes[1:])}
