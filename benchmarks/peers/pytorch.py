"""What the PyTorch peers share: the device, a layer of neurons forward and backward, and the arrays' way there."""

from collections.abc import Callable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]

from benchmarks import cases
from benchmarks.cases import Arrays, Case
from benchmarks.worker import Work

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')

# JAX multiplies float32 matrices in TF32 on a GPU unless told otherwise, and so does PyTorch with this.
torch.set_float32_matmul_precision('high')

Layer = Callable[[Any], Any]


def device_name() -> str:
    """Names what the peer runs on."""
    return torch.cuda.get_device_name() if DEVICE.type == 'cuda' else 'cpu'


def synchronise() -> None:
    """Waits until the device has done all it was given."""
    if DEVICE.type == 'cuda':
        torch.cuda.synchronize()


def peak_bytes() -> int | None:
    """Most bytes that tensors have held on the GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE.type == 'cuda' else None


def lif_work(case: Case, layer: Layer, input_scale: float = 1.0) -> Work:
    """Builds a layer of neurons, forward and backward.

    Args:
      case: of the name 'lif'.
      layer: maps currents `[T, ...]` to spikes, from rest.
      input_scale: factor that the peer's dynamics ask for; applied once, outside of the step.

    Returns:
      The `Work`.
    """
    given = cases.lif_inputs(case)
    dtype = getattr(torch, case.dtype)
    currents = (torch.from_numpy(given['currents']) * input_scale).to(DEVICE, dtype).requires_grad_()
    cotangent = torch.from_numpy(given['cotangent']).to(DEVICE, dtype)
    run = torch.compile(layer) if case.compile else layer

    def step() -> None:
        currents.grad = None
        run(currents).backward(cotangent)
        synchronise()

    return Work(step, device_name(), peak_bytes)


def lif_check(given: Arrays, layer: Layer, input_scale: float = 1.0) -> Arrays:
    """Computes `spikes` and the `gradient` of the currents.

    Args:
      given: `currents` and `cotangent`.
      layer: as for `lif_work`.
      input_scale: factor on the currents; the gradient is that of the currents before it.

    Returns:
      Both, `[T, ...]`.
    """
    currents = torch.from_numpy(given['currents']).to(DEVICE).requires_grad_()
    spikes = layer(currents * input_scale)
    spikes.backward(torch.from_numpy(given['cotangent']).to(DEVICE))
    gradient: Any = currents.grad
    return {'spikes': spikes.detach().cpu().numpy(), 'gradient': gradient.cpu().numpy()}
