"""`cpng_jax.convolution.convolve` against `jax.lax.conv_general_dilated`, forward and backward, in alternating rounds.

    python -m benchmarks.convolutions

The layers are 3x3 convolutions of VGG16 at T = 5 and batch 16, and of ResNet19 at T = 6 and batch 8, on random numbers.
On anything but a CPU both are the same.
"""

import functools
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from benchmarks.contest import Spread
from benchmarks.cpng_cost import seconds_of
from benchmarks.memory import table
from cpng_jax.nn.convolution import convolve
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime import command

_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Alternating rounds.', lower_bound=1)


class Layer(NamedTuple):
    """A 3x3 convolution: examples times T, edge of the map, channels in and out."""

    examples: int
    edge: int
    channels: int
    features: int


LAYERS = (
    *(Layer(80, *sizes) for sizes in ((32, 64, 64), (16, 128, 128), (8, 256, 256), (4, 512, 512), (2, 512, 512))),
    *(Layer(48, *sizes) for sizes in ((32, 128, 128), (16, 256, 256), (8, 512, 512))),
)


def works(layer: Layer, convolution: Callable[..., Array], seed: int = 0) -> dict[str, Callable[[], None]]:
    """Compiles what a layer does in training.

    Args:
      layer: its sizes.
      convolution: with the arguments of `jax.lax.conv_general_dilated`.
      seed: of the numbers.

    Returns:
      By name, a function that computes and waits: 'forward', 'by input' and 'by kernel', the two gradients.
    """
    rng = np.random.default_rng(seed)
    examples, edge, channels, features = layer
    x = rng.normal(size=(examples, edge, edge, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels, features)).astype(np.float32)
    upstream = rng.normal(size=(examples, edge, edge, features)).astype(np.float32)

    def conv(x: Array, kernel: Array) -> Array:
        padding = ((1, 1), (1, 1))
        return convolution(x, kernel, (1, 1), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    def by(argument: int) -> Callable[..., Array]:
        return lambda x, kernel, upstream: jax.vjp(conv, x, kernel)[1](upstream)[argument]

    functions: dict[str, tuple[Callable[..., Array], tuple[Any, ...]]] = {
        'forward': (conv, (x, kernel)),
        'by input': (by(0), (x, kernel, upstream)),
        'by kernel': (by(1), (x, kernel, upstream)),
    }

    def run(function: Callable[..., Array], arguments: tuple[Array, ...]) -> None:
        jax.block_until_ready(function(*arguments))

    compiled = {}
    for name, (function, arguments) in functions.items():
        compiled[name] = functools.partial(run, jax.jit(function), jax.device_put(arguments))
        compiled[name]()
    return compiled


def compare(layer: Layer, rounds: int, times: int = 3) -> dict[str, tuple[Spread, Spread]]:
    """Measures a layer both ways.

    Args:
      layer: its sizes.
      rounds: in which both take turns.
      times: calls in a round.

    Returns:
      By name as of `works`: seconds of ours, and its ratio to XLA's own, round by round.
    """
    ours, xla = works(layer, convolve), works(layer, jax.lax.conv_general_dilated)
    results = {}
    for name in ours:
        seconds = [(seconds_of(ours[name], times), seconds_of(xla[name], times)) for _ in range(rounds)]
        results[name] = (Spread.of([a for a, _ in seconds]), Spread.of([a / b for a, b in seconds]))
    return results


def main(_: list[str]) -> None:
    """Measures and prints."""
    print(f'{platform.machine()}, {jax.devices()[0].device_kind}, {_ROUNDS.value} rounds; ms, and ratio to XLA alone\n')
    rows = []
    for layer in LAYERS:
        cells = [
            f'{seconds.median * 1e3:.1f}, {ratio.median:.2f} ({ratio.least:.2f} to {ratio.most:.2f})'
            for seconds, ratio in compare(layer, _ROUNDS.value).values()
        ]
        size = f'{layer.edge} x {layer.edge}, {layer.channels} to {layer.features}'
        rows.append([str(layer.examples), size, *cells])
    print(table(['examples x T', 'map, channels', 'forward', 'gradient by input', 'gradient by kernel'], rows))


if __name__ == '__main__':
    command.run(main)
