"""Convolutions as `cpng_jax` computes them, as XLA does alone, and as oneDNN does, in alternating rounds.

    python -m benchmarks.convolutions
    python -m benchmarks.convolutions --peers_python= --rounds=3
    python -m benchmarks.convolutions --loop --only='8 x '

The layers are those of VGG16 at T = 5 and batch 16, of ResNet19 at T = 6 and batch 8, and of SEW-ResNet34 at T = 4 and
batch 2, on random numbers; first layers see each image once. XLA alone is `jax.lax.conv_general_dilated`, with
gradients as JAX derives them; on anything but a CPU ours are the same. oneDNN is asked through PyTorch, in a process of
its own, with the faster of its two memory layouts; without --peers_python it is left out. Each function is a program by
itself, which gets new memory for all that it works with at each call, where a whole step would have it.

With --loop, ours and XLA's are measured in a loop, as micro-batches of `config.optim.accumulate` go through one; large
layers of XLA's take minutes.
"""

import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.cases import Case
from benchmarks.contest import Spread
from benchmarks.cpng_cost import seconds_of
from benchmarks.memory import table
from benchmarks.process import Worker, peers_python
from cpng_jax.nn.convolution import convolve
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime import command
from cpng_jax.runtime.environment import processor

WORKS = ('forward', 'by input', 'by kernel')
_SIDE = 'benchmarks.peers.convolutions'
# Calls in a round, and turns of a loop.
_TIMES, _TURNS = 3, 2


class Layer(NamedTuple):
    """A convolution: examples times T, edge of the map, channels in and out, edge of the kernel, stride."""

    examples: int
    edge: int
    channels: int
    features: int
    kernel: int = 3
    stride: int = 1

    def __str__(self) -> str:
        """As in '8 x 56 x 56, 64 to 128, 3 x 3 / 2'."""
        stride = '' if self.stride == 1 else f' / {self.stride}'
        kernel = f'{self.kernel} x {self.kernel}{stride}'
        return f'{self.examples} x {self.edge} x {self.edge}, {self.channels} to {self.features}, {kernel}'


LAYERS = (
    Layer(16, 32, 3, 64),
    *(Layer(80, *sizes) for sizes in ((32, 64, 64), (16, 128, 128), (8, 256, 256), (4, 512, 512), (2, 512, 512))),
    *(Layer(48, *sizes) for sizes in ((32, 128, 128), (32, 128, 256, 3, 2), (16, 256, 256), (8, 512, 512))),
    Layer(2, 224, 3, 64, 7, 2),
    *(Layer(8, *sizes) for sizes in ((56, 64, 64), (56, 64, 128, 3, 2), (56, 64, 128, 1, 2), (28, 128, 128))),
    *(Layer(8, *sizes) for sizes in ((28, 128, 128, 1), (14, 256, 256), (14, 256, 512, 3, 2), (7, 512, 512))),
)


class Measured(NamedTuple):
    """What was measured of one function of a layer.

    Attributes:
      seconds: of ours.
      to_xla: ours as a multiple of XLA's, round by round.
      to_onednn: ours as a multiple of oneDNN's; None where that was not asked.
    """

    seconds: Spread
    to_xla: Spread
    to_onednn: Spread | None


def works(
    layer: Layer, convolution: Callable[..., Array], seed: int = 0, *, loop: bool = False
) -> dict[str, Callable[[], None]]:
    """Compiles what a layer does in training.

    Args:
      layer: its sizes.
      convolution: with the arguments of `jax.lax.conv_general_dilated`.
      seed: of the numbers.
      loop: in a loop of JAX's, of `_TURNS` turns.

    Returns:
      By the names of `WORKS`, a function that computes and waits; the latter two are gradients.
    """
    rng = np.random.default_rng(seed)
    edge, reach = -(-layer.edge // layer.stride), layer.kernel // 2
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x = draw(layer.examples, layer.edge, layer.edge, layer.channels)
    kernel = draw(layer.kernel, layer.kernel, layer.channels, layer.features)
    upstream = draw(layer.examples, edge, edge, layer.features)

    def conv(x: Array, kernel: Array) -> Array:
        geometry = (layer.stride,) * 2, ((reach, reach),) * 2
        return convolution(x, kernel, *geometry, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    def by(argument: int) -> Callable[..., Array]:
        return lambda x, kernel, upstream: jax.vjp(conv, x, kernel)[1](upstream)[argument]

    functions: dict[str, tuple[Callable[..., Array], tuple[Any, ...]]] = {
        'forward': (conv, (x, kernel)),
        'by input': (by(0), (x, kernel, upstream)),
        'by kernel': (by(1), (x, kernel, upstream)),
    }

    def run(function: Callable[..., Array], arguments: tuple[Array, ...]) -> None:
        jax.block_until_ready(function(*arguments))

    if loop:
        # An array for each turn: what does not change, XLA would compute before the loop.
        every_turn = lambda arrays: tuple(np.stack([array] * _TURNS) for array in arrays)
        functions = {
            name: (functools.partial(_in_loop, function), every_turn(arguments))
            for name, (function, arguments) in functions.items()
        }
    compiled = {}
    for name, (function, arguments) in functions.items():
        compiled[name] = functools.partial(run, jax.jit(function), jax.device_put(arguments))
        compiled[name]()
    return compiled


def _in_loop(function: Callable[..., Array], *arguments: Array) -> Array:
    """The sum of what a function makes of each turn's arguments."""
    like = jax.eval_shape(function, *(array[0] for array in arguments))
    add = lambda total, turn: (total + function(*turn), None)
    return jax.lax.scan(add, jnp.zeros(like.shape, like.dtype), arguments)[0]


def compare(layer: Layer, rounds: int, python: str | None = None, *, loop: bool = False) -> dict[str, Measured]:
    """Measures a layer in all ways.

    Args:
      layer: its sizes.
      rounds: in which they take turns.
      python: the interpreter that has PyTorch; None to leave that out.
      loop: measure a turn of a loop.

    Returns:
      What was measured, by the names of `WORKS`.
    """
    ours, xla = (works(layer, each, loop=loop) for each in (convolve, jax.lax.conv_general_dilated))
    turns = _TURNS if loop else 1
    results = {}
    with contextlib.ExitStack() as stack:
        others: dict[bool, Worker] = {}  # by memory layout: whether channels come last
        if python is not None:
            others = {last: stack.enter_context(Worker(python, _SIDE, 'PyTorch')) for last in (False, True)}
        for name in WORKS:
            for last, other in others.items():
                case = Case(name, 1, channels_last=last, convolution=tuple(layer))
                other.ask('build', case=dataclasses.asdict(case))
            mine, alone, theirs = [], [], []
            for _ in range(rounds):
                mine.append(seconds_of(ours[name], _TIMES) / turns)
                alone.append(seconds_of(xla[name], _TIMES) / turns)
                asked = [other.ask('run', steps=_TIMES)['seconds'] for other in others.values()]
                theirs.append([statistics.median(seconds) for seconds in asked])
            to_onednn = Spread.of_ratios(mine, [min(both) for both in theirs]) if others else None
            results[name] = Measured(Spread.of(mine), Spread.of_ratios(mine, alone), to_onednn)
    return results


def layers_table(measured: dict[Layer, dict[str, Measured]]) -> str:
    """Lays out what was measured in Markdown: ms of ours, and the ratios to XLA's and oneDNN's."""

    def cell(found: Measured) -> str:
        ratios = [found.to_xla, *([] if found.to_onednn is None else [found.to_onednn])]
        shown = (f'{ratio.median:.2f}' if ratio.median >= 0.05 else f'{ratio.median:.1g}' for ratio in ratios)
        return ', '.join([f'{found.seconds.median * 1e3:.3g}', *shown])

    rows = [[str(layer), *(cell(found[name]) for name in WORKS)] for layer, found in measured.items()]
    return table(['layer', 'forward', 'gradient by input', 'gradient by kernel'], rows)


def main(_: list[str]) -> None:
    """Measures and prints."""
    values = flags.FLAGS
    python = peers_python(values.peers_python) if values.peers_python and not values.loop else None
    others = 'XLA alone' if python is None else 'XLA alone and to oneDNN'
    where = ' of a turn of a loop' if values.loop else ''
    print(f'{processor()}; {values.rounds} rounds; ms{where}, and the ratios to {others}, medians\n')
    layers = [layer for layer in LAYERS if str(layer).startswith(values.only)]
    print(layers_table({layer: compare(layer, values.rounds, python, loop=values.loop) for layer in layers}))


if __name__ == '__main__':
    flags.DEFINE_integer('rounds', 5, 'Alternating rounds.', lower_bound=1)
    flags.DEFINE_string('only', '', 'What the names of layers begin with, such as "8 x 56".')
    flags.DEFINE_bool('loop', False, 'Within a loop, without oneDNN.')
    flags.DEFINE_string('peers_python', '.venv-peers/bin/python', "The interpreter that has PyTorch; '' for none.")
    command.run(main)
