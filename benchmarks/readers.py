"""Runs a graph of NIR in a library that reads it, for `benchmarks.round_trip`, in the environment of the peers.

    .venv-peers/bin/python -m benchmarks.readers LIBRARY GRAPH FRAMES OUT

reads the frames, `[T, B, ...]`, and writes outputs at each time step to OUT, both .npz, with the spikes by the names of
their nodes. What the library raises ends it; its last line says so.
"""

import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import nir
import numpy as np

Arrays = dict[str, np.ndarray]

# Seconds, as the files have it.
DT = 1e-4
# Examples that run at once.
_BATCH = 50


def _neurons(graph: nir.NIRGraph) -> list[str]:
    return [name for name, node in graph.nodes.items() if isinstance(node, nir.LIF | nir.IF)]


def _stepped(module: Any, neurons: list[str], frames: np.ndarray, *, states: bool) -> Arrays:
    """Steps a PyTorch module through time; the spikes are what its neurons hand on."""
    import torch  # pyright: ignore[reportMissingImports]

    seen: dict[str, list[Any]] = {name: [] for name in neurons}

    def watch(name: str) -> Callable[..., None]:
        # Neurons hand on their spikes alone, or with a state.
        return lambda module, inputs, out: seen[name].append(out[0] if isinstance(out, tuple) else out)

    for name in neurons:
        module.get_submodule(name.replace('.', '_')).register_forward_hook(watch(name))
    outputs, state = [], None
    with torch.no_grad():
        for frame in torch.from_numpy(frames):
            out, state = module(frame, state) if states else module(frame)
            outputs.append(out)
    found = {name: torch.stack(spikes).numpy() for name, spikes in seen.items()}
    return {'outputs': torch.stack(outputs).numpy(), **found}


def spikingjelly(graph: nir.NIRGraph, frames: np.ndarray) -> Arrays:
    """Runs it as SpikingJelly reads it."""
    from spikingjelly.activation_based import nir_exchange  # pyright: ignore[reportMissingImports]

    module = nir_exchange.import_from_nir(graph, dt=DT).eval()
    return _stepped(module, _neurons(graph), frames, states=True)


def snntorch(graph: nir.NIRGraph, frames: np.ndarray) -> Arrays:
    """Runs it as snnTorch reads it; the neurons keep their states themselves."""
    from snntorch.import_nir import import_from_nir  # pyright: ignore[reportMissingImports]

    return _stepped(import_from_nir(graph), _neurons(graph), frames, states=True)


def norse(graph: nir.NIRGraph, frames: np.ndarray) -> Arrays:
    """Runs it as Norse reads it."""
    import norse.torch  # pyright: ignore[reportMissingImports]

    return _stepped(norse.torch.from_nir(graph, dt=DT), _neurons(graph), frames, states=True)


def spyx(graph: nir.NIRGraph, frames: np.ndarray) -> Arrays:
    """Runs it as spyx reads it, which has the channels last and tells no spikes."""
    import spyx.nir  # pyright: ignore[reportMissingImports]

    if frames.ndim == 5:
        frames = np.moveaxis(frames, 2, -1)
    return {'outputs': np.asarray(spyx.nir.from_nir(graph, frames, dt=DT)[1])}


READERS = {'spikingjelly': spikingjelly, 'snntorch': snntorch, 'norse': norse, 'spyx': spyx}


def main(library: str, graph: str, frames: str, out: str) -> None:
    """Reads, runs and writes."""
    warnings.simplefilter('ignore')
    given = np.load(frames)['frames']
    parts = [
        {name: each if name == 'outputs' else each.astype(bool) for name, each in part.items()}
        for start in range(0, given.shape[1], _BATCH)
        for part in [READERS[library](nir.read(graph), given[:, start : start + _BATCH])]
    ]
    found = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    np.savez(out, version=metadata.version(library), **found)  # pyright: ignore[reportArgumentType]


if __name__ == '__main__':
    main(*sys.argv[1:])
