"""A convolution and its gradients by PyTorch, which on a CPU leaves them to oneDNN, for `benchmarks.convolutions`."""

from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]

from benchmarks.cases import Arrays, Case
from benchmarks.peers.pytorch import DEVICE, device_name, peak_bytes, synchronise
from benchmarks.worker import Work

VERSIONS = {'torch': torch.__version__}
DIFFERS = ''


def build(case: Case) -> Work:
    """Builds what `case.name` says, 'forward', 'by input' or 'by kernel', of the layer `case.convolution`."""
    examples, edge, channels, features, kernel, stride = case.convolution
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    draw = lambda *shape: torch.randn(*shape, device=DEVICE).to(memory_format=layout)
    x, weight = draw(examples, channels, edge, edge), draw(features, channels, kernel, kernel)
    reach = kernel // 2
    conv = lambda: torch.nn.functional.conv2d(x, weight, stride=stride, padding=reach)
    upstream = torch.randn_like(conv())

    def back(mask: list[bool]) -> Callable[[], object]:
        geometry = ([stride] * 2, [reach] * 2, [1, 1], False, [0, 0], 1)
        return lambda: torch.ops.aten.convolution_backward(upstream, x, weight, None, *geometry, mask)

    work = {'forward': conv, 'by input': back([True, False, False]), 'by kernel': back([False, True, False])}[case.name]

    def step() -> None:
        with torch.no_grad():
            work()
        synchronise()

    return Work(step, device_name(), peak_bytes)


def check(case: Case, given: Arrays) -> Arrays:
    """Nothing: `cpng_jax` is held to SciPy in its tests."""
    del case, given
    return {}
