"""A layer of LIF neurons, forward and backward, against the time that its memory traffic takes at least.

    python -m benchmarks.neurons
    python -m benchmarks.neurons --elements=65536 --copied=1048576 --time_steps=4 --repeat=2

Two programs of ours: the scan over time, which is the default, and the Pallas kernels. The floor is what the currents,
read, and the spikes, written, take forward, and backward the currents and the gradient, read, and the gradient by the
currents, written: five arrays at the rate at which this device adds 1 to a large array. The two programs' spikes and
gradients are compared. Where there is no GPU the kernels are interpreted, which says nothing of their speed.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.contest import Spread
from benchmarks.memory import table
from cpng_jax import lif
from cpng_jax.nn import pallas_loop
from cpng_jax.nn.surrogate import Array, get_surrogate
from cpng_jax.nn.time_loop import Neurons
from cpng_jax.runtime import command
from cpng_jax.runtime.errors import UserError

_TAU, _V_TH = 0.5, 1.0
# That neurons read or write at least, forward and backward.
ARRAYS = 5


class Layer(NamedTuple):
    """What was measured at one number of time steps.

    Attributes:
      time_steps: T.
      neurons: of the layer.
      floor_s: seconds that the memory traffic takes.
      seconds: of each program by its name, over rounds.
      spikes_differ: share of the spikes that the two have otherwise.
      gradients_differ: largest difference of the two gradients by the currents.
    """

    time_steps: int
    neurons: int
    floor_s: float
    seconds: dict[str, Spread]
    spikes_differ: float
    gradients_differ: float


def _scan(currents: Array) -> Array:
    return lif(currents, jnp.float32(1), tau=_TAU, v_th=_V_TH)[0]


def _kernels(currents: Array) -> Array:
    neurons = Neurons(get_surrogate('triangular'), detach_reset=False, time_steps=currents.shape[0])
    return pallas_loop.integrate(currents, jnp.float32(1), _TAU, _V_TH, neurons)[0]


PROGRAMS: dict[str, Callable[[Array], Array]] = {'scan': _scan, 'Pallas': _kernels}


def _forth_and_back(program: Callable[[Array], Array], currents: Array, upstream: Array) -> tuple[Array, Array]:
    """Spikes, and the gradient by the currents."""
    spikes, back = jax.vjp(program, currents)
    return spikes, back(upstream)[0]


def timed(function: Callable[..., Any], *arguments: Any, rounds: int, repeat: int) -> tuple[Spread, Any]:
    """Times calls that follow each other, after one that compiles.

    Args:
      function: compiled.
      *arguments: on the device.
      rounds: each waits for the device at its end alone.
      repeat: calls in a round.

    Returns:
      Seconds of a call over rounds, and what it returned.
    """
    result = jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(repeat):
            result = function(*arguments)
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - began) / repeat)
    return Spread.of(seconds), result


def memory_rate(elements: int, *, rounds: int, repeat: int) -> float:
    """Bytes a second that this device reads and writes when it adds 1 to an array of float32."""
    array = jnp.zeros(elements, jnp.float32)
    seconds, _ = timed(jax.jit(lambda x: x + 1), array, rounds=rounds, repeat=repeat)
    return 2 * array.nbytes / seconds.median


def measure(time_steps: int, elements: int, rate: float, *, rounds: int, repeat: int) -> Layer:
    """Measures a layer by both programs.

    Args:
      time_steps: T.
      elements: neurons times T.
      rate: bytes a second, see `memory_rate`.
      rounds: of each program.
      repeat: calls in a round.

    Returns:
      See `Layer`.
    """
    shape = (time_steps, elements // time_steps)
    currents, upstream = (jax.random.normal(jax.random.key(seed), shape) for seed in (0, 1))
    seconds, results = {}, []
    for name, program in PROGRAMS.items():
        step = jax.jit(functools.partial(_forth_and_back, program))
        seconds[name], result = timed(step, currents, upstream, rounds=rounds, repeat=repeat)
        results.append(result)
    (spikes, gradient), (others, other) = results
    return Layer(
        time_steps,
        shape[1],
        ARRAYS * currents.nbytes / rate,
        seconds,
        float(jnp.mean(spikes != others)),
        float(jnp.max(jnp.abs(gradient - other))),
    )


def neurons_table(layers: list[Layer]) -> str:
    """Lays out what was measured as a table in Markdown."""
    rows = []
    for layer in layers:
        cells = [
            f'{spread.median * 1e3:.3f} ms, {spread.median / layer.floor_s:.2f}' for spread in layer.seconds.values()
        ]
        differ = f'{layer.spikes_differ:.1%} of the spikes, {layer.gradients_differ:.1g} of a gradient'
        size = [str(layer.time_steps), f'{layer.neurons:,}', f'{layer.floor_s * 1e3:.3f} ms']
        rows.append([*size, *cells, differ])
    return table(['T', 'neurons', 'floor', *(f'{name}, of the floor' for name in PROGRAMS), 'they differ by'], rows)


def main(_: list[str]) -> None:
    """Measures and prints."""
    given = flags.FLAGS
    if given.elements < max(given.time_steps):
        raise UserError(f'--elements is {given.elements}, expected at least a neuron: {max(given.time_steps)} or more.')
    often = {'rounds': given.rounds, 'repeat': given.repeat}
    rate = memory_rate(given.copied, **often)
    print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}, {rate / 1e9:,.0f} GB/s, float32\n')
    print(neurons_table([measure(steps, given.elements, rate, **often) for steps in given.time_steps]))


if __name__ == '__main__':
    flags.DEFINE_multi_integer('time_steps', [4, 16, 64], 'T; again for others.', lower_bound=1)
    flags.DEFINE_integer('elements', 1 << 26, 'Neurons times time steps.', lower_bound=1)
    flags.DEFINE_integer(
        'copied', 1 << 29, 'Elements of the array that the rate of memory is read from.', lower_bound=1
    )
    flags.DEFINE_integer('rounds', 5, 'Of each program.', lower_bound=1)
    flags.DEFINE_integer('repeat', 20, 'Calls in a round.', lower_bound=1)
    command.run(main)
