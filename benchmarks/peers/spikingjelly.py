"""The cases of `benchmarks.race` with SpikingJelly, in its multi-step mode.

A training step is `reset_net`, forward, cross entropy of the time mean, backward and a fused SGD of PyTorch. Version 2
chooses between its kernels by itself: there is no `backend` to set.
"""

from importlib import metadata
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from spikingjelly.activation_based import functional, neuron, surrogate  # pyright: ignore[reportMissingImports]
from torch.nn.functional import cross_entropy  # pyright: ignore[reportMissingImports]

from benchmarks import cases
from benchmarks.cases import Arrays, Case
from benchmarks.peers import pytorch
from benchmarks.peers.spikingjelly_networks import make_network, parameter_gradients, set_parameters
from benchmarks.worker import Work

VERSIONS = {'spikingjelly': metadata.version('spikingjelly'), 'torch': torch.__version__}
DIFFERS = ''

_LEARNING_RATE, _MOMENTUM, _WEIGHT_DECAY = 0.1, 0.9, 1e-4

# Of the random images on our side, `cpng_jax.data.fake`.
_MEAN, _STD = 0.5, 0.3


def _layer() -> pytorch.Layer:
    neurons = neuron.LIFNode(
        tau=2.0, decay_input=False, surrogate_function=surrogate.PiecewiseQuadratic(alpha=1.0), step_mode='m'
    ).to(pytorch.DEVICE)

    def run(currents: Any) -> Any:
        functional.reset_net(neurons)
        return neurons(currents)

    return run


def _images(case: Case, images: Any) -> Any:
    """Brings uint8 `[B, H, W, 3]` to `[B, 3, H, W]` on the device."""
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(pytorch.DEVICE).contiguous(memory_format=layout)


def _network(case: Case) -> Any:
    network = make_network(case).to(pytorch.DEVICE)
    return network.to(memory_format=torch.channels_last) if case.channels_last else network


def build(case: Case) -> Work:
    """Builds a case.

    Args:
      case: of any name.

    Returns:
      The `Work`.
    """
    if case.name == 'lif':
        return pytorch.lif_work(case, _layer())
    given = cases.network_inputs(case)
    images = _images(case, given['images'])
    labels = torch.from_numpy(given['labels']).long().to(pytorch.DEVICE)
    network = _network(case)
    forward = torch.compile(network) if case.compile else network
    optimizer = torch.optim.SGD(
        network.parameters(), _LEARNING_RATE, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY, fused=True
    )
    mixed = case.dtype == 'bfloat16'

    def step() -> None:
        functional.reset_net(network)
        optimizer.zero_grad()
        with torch.autocast(pytorch.DEVICE.type, torch.bfloat16, enabled=mixed):
            logits = forward((images.float() / 255 - _MEAN) / _STD)
        cross_entropy(logits.float().mean(0), labels).backward()
        optimizer.step()
        pytorch.synchronise()

    return Work(step, pytorch.device_name(), pytorch.peak_bytes)


def check(case: Case, given: Arrays) -> Arrays:
    """Computes spikes and the gradient of the currents; or logits and the gradient of each parameter."""
    if case.name == 'lif':
        return pytorch.lif_check(given, _layer())
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False
    network = _network(case)
    set_parameters(network, given)
    logits = network((_images(case, given['images']).float() / 255 - _MEAN) / _STD)
    cross_entropy(logits.mean(0), torch.from_numpy(given['labels']).long().to(pytorch.DEVICE)).backward()
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.allow_tf32 = True
    return {'logits': logits.detach().cpu().numpy(), **parameter_gradients(network)}
