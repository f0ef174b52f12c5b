"""The layer of neurons of `benchmarks.race` with snnTorch: `Leaky`, a Python loop over time as its tutorials have it.

Reset to zero in the step of the spike (`reset_delay=False`), which keeps the gradient through the reset; the
triangular surrogate through `custom_surrogate`.
"""

import importlib
from importlib import metadata
from typing import Any

import torch  # pyright: ignore[reportMissingImports]

from benchmarks.cases import Arrays, Case
from benchmarks.peers import pytorch
from benchmarks.worker import Work

# A type checker would take this file for the library of its name.
snntorch: Any = importlib.import_module('snntorch')

VERSIONS = {'snntorch': metadata.version('snntorch'), 'torch': torch.__version__}
DIFFERS = ''


def _triangular(x: Any, gradient: Any, spikes: Any) -> Any:
    del spikes
    return gradient * torch.relu(1 - x.abs())


def _layer() -> pytorch.Layer:
    leaky = snntorch.Leaky(
        beta=0.5,
        threshold=1.0,
        spike_grad=snntorch.surrogate.custom_surrogate(_triangular),
        reset_mechanism='zero',
        reset_delay=False,
    ).to(pytorch.DEVICE)

    def run(currents: Any) -> Any:
        leaky.reset_mem()
        membrane, spikes = torch.zeros_like(currents[0]), []
        for current in currents:
            spike, membrane = leaky(current, membrane)
            spikes.append(spike)
        return torch.stack(spikes)

    return run


def build(case: Case) -> Work:
    """Builds the layer of neurons."""
    return pytorch.lif_work(case, _layer())


def check(case: Case, given: Arrays) -> Arrays:
    """Computes spikes and the gradient of the currents."""
    del case
    return pytorch.lif_check(given, _layer())
