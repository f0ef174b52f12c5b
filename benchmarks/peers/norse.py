"""The layer of neurons of `benchmarks.race` with Norse: `LIFBoxCell`, lifted over time.

Its membrane moves by `dt / tau_mem` of the way to the input, so that decay 0.5 scales the input by 0.5; the currents
are doubled before the step to make up for it.
"""

from importlib import metadata
from typing import Any

import norse.torch  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
from norse.torch.functional.lif_box import LIFBoxParameters  # pyright: ignore[reportMissingImports]

from benchmarks.cases import Arrays, Case
from benchmarks.peers import pytorch
from benchmarks.worker import Work

VERSIONS = {'norse': metadata.version('norse'), 'torch': torch.__version__}
DIFFERS = ''

_INPUT_SCALE = 2.0


def _layer() -> pytorch.Layer:
    parameters = LIFBoxParameters(
        tau_mem_inv=torch.as_tensor(0.5, device=pytorch.DEVICE),
        v_leak=torch.as_tensor(0.0, device=pytorch.DEVICE),
        v_th=torch.as_tensor(1.0, device=pytorch.DEVICE),
        v_reset=torch.as_tensor(0.0, device=pytorch.DEVICE),
        method='triangle',
        alpha=1.0,
    )
    lifted = norse.torch.Lift(norse.torch.LIFBoxCell(parameters, dt=1.0))

    def run(currents: Any) -> Any:
        return lifted(currents)[0]

    return run


def build(case: Case) -> Work:
    """Builds the layer of neurons."""
    return pytorch.lif_work(case, _layer(), _INPUT_SCALE)


def check(case: Case, given: Arrays) -> Arrays:
    """Computes spikes and the gradient of the currents."""
    del case
    return pytorch.lif_check(given, _layer(), _INPUT_SCALE)
