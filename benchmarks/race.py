"""Time and memory of a layer of neurons and of training steps, ours against other libraries, in alternating rounds.

    python3 -m venv .venv-peers
    .venv-peers/bin/pip install -r benchmarks/requirements.txt
    .venv-peers/bin/pip install --no-deps -r benchmarks/peers.txt
    .venv/bin/python -m benchmarks.race
    .venv/bin/python -m benchmarks.race --cases=lif --peers=snnTorch --rounds=9

For each case and peer, two fresh processes do the same work on the same random numbers: `lif` is a layer of leaky
integrate-and-fire neurons, forward and backward, at each of `--time_steps`; the networks are whole training steps, from
uint8 images to updated weights, against SpikingJelly. One side works while the other waits for a line of input. Both
may use all cores. A time is the median over rounds of a round's median step; the ratio is ours over theirs in each
round: the median and, in brackets, the least and the greatest. Then both compute outputs and gradients from the same
inputs and weights (networks at 1/16 of their width), and the table says how far these are apart.

A network of ours starts twice: first with an empty folder of compiled programs, then as it starts ever after. The
second process is the one that takes part. Where JAX_COMPILATION_CACHE_DIR is set, neither start is a first one.

The memory on a CPU is the greatest resident memory of the process during the rounds above what it held before the work
was built, the start of the library's runtime and compiled code included, 50 MB or so; what building left behind has
been handed back before. On a GPU it is the peak of the library's own allocator.

Works on a GPU too, if both environments see it; `benchmarks.gpu` asks there what is most telling.
"""

import dataclasses
import platform
from collections.abc import Iterator

from absl import flags

from benchmarks.cases import NETWORKS, TIME_STEPS, Case, lif_case, network_case
from benchmarks.contest import PEERS, Result, Spread, contest
from benchmarks.memory import table
from benchmarks.process import peers_python
from cpng_jax.runtime import command
from cpng_jax.runtime.environment import processor
from cpng_jax.runtime.errors import UserError

CASES = ('lif', *NETWORKS)


def machine() -> str:
    """Names the processor, the cores that may be used, and the system."""
    return f'{processor()}, {platform.system()}'


def pairs(cases: list[Case], peers: list[str]) -> Iterator[tuple[Case, str]]:
    """Pairs cases with peers: a layer of neurons with each, networks with SpikingJelly alone."""
    for case in cases:
        for peer in peers:
            if case.name == 'lif' or peer == 'SpikingJelly':
                yield case, peer


def milliseconds(seconds: float) -> str:
    """Writes a time with three digits."""
    value = 1000 * seconds
    return f'{value:.0f} ms' if value >= 100 else f'{value:.3g} ms'


def megabytes(count: int | None) -> str:
    """Writes bytes in 10^6."""
    return '-' if count is None else f'{count / 1e6:.0f} MB'


def ratio(spread: Spread) -> str:
    """Writes a ratio with its spread."""
    return f'{spread.median:.2f} ({spread.least:.2f} to {spread.most:.2f})'


def time_table(results: list[Result]) -> str:
    """Lays out the time of a step, ours against theirs, in Markdown."""
    rows = []
    for result in results:
        times = [milliseconds(Spread.of(side.seconds).median) for side in (result.ours, result.theirs)]
        same = result.equality + (f' ({result.theirs.differs})' if result.theirs.differs else '')
        rows.append([result.case.name, result.case.size, result.peer, *times, ratio(result.ratio), same])
    return table(['what', 'size', 'peer', 'ours', 'theirs', 'ours / theirs', 'results'], rows)


def start_table(results: list[Result]) -> str:
    """Lays out memory, and time to build and of the first step, at the first and the second start, in Markdown."""
    rows = []
    for result in results:
        sides = (result.ours, result.theirs)
        peaks = [megabytes(side.peak_bytes) for side in sides]
        starts = [f'{side.build_s:.1f} + {side.first_step_s:.1f} s' for side in sides]
        first = '-' if result.ours.first_start_s is None else f'{result.ours.first_start_s:.1f} s'
        rows.append([result.case.name, result.case.size, result.peer, *peaks, first, *starts])
    heading = ['what', 'size', 'peer', 'memory, ours', 'theirs', 'first start, ours', 'second start, ours', 'theirs']
    return table(heading, rows)


def describe(results: list[Result]) -> str:
    """Names machine, devices, versions, and what the memory is."""
    sides = [side for result in results for side in (result.ours, result.theirs)]
    versions = {name: version for side in sides for name, version in side.versions.items()}
    devices = ', '.join(sorted({side.device for side in sides}))
    measured = '; '.join(sorted({side.measured for side in sides}))
    named = ', '.join(f'{name} {version}' for name, version in sorted(versions.items()))
    return f'{machine()}; devices: {devices}; Python {platform.python_version()}, {named}. Memory {measured}.'


def main(_: list[str]) -> None:
    """Races and prints."""
    values = flags.FLAGS
    cases = [lif_case(int(steps), values.neurons) for steps in values.time_steps if 'lif' in values.cases]
    cases += [network_case(name, values.batch, values.width) for name in NETWORKS if name in values.cases]
    options = {'dtype': values.dtype, 'channels_last': values.channels_last, 'compile': values.compile}
    cases = [dataclasses.replace(case, **options) for case in cases]
    results = []
    try:
        python = peers_python(values.peers_python)
        for case, peer in pairs(cases, values.peers):
            result = contest(case, peer, python, rounds=values.rounds, round_seconds=values.round_seconds)
            results.append(result)
            print(f'{case.name}, {case.size}: ours / {peer} {ratio(result.ratio)}; {result.equality}', flush=True)
    except UserError as error:
        raise SystemExit(str(error)) from None
    if results:
        print('', describe(results), time_table(results), start_table(results), sep='\n\n')


if __name__ == '__main__':
    flags.DEFINE_multi_enum('cases', list(CASES), CASES, 'What to run.')
    flags.DEFINE_multi_enum('peers', list(PEERS), list(PEERS), 'Whom to race with.')
    flags.DEFINE_string('peers_python', '.venv-peers/bin/python', 'The interpreter that has the peers.')
    flags.DEFINE_integer('rounds', 7, 'Alternating rounds.', lower_bound=1)
    flags.DEFINE_float('round_seconds', 2.0, 'Seconds that a side works in a round; at least a step.', lower_bound=0)
    flags.DEFINE_multi_integer('time_steps', list(TIME_STEPS), 'T of the layer of neurons.', lower_bound=1)
    flags.DEFINE_integer('neurons', 262_144, 'Of the layer.', lower_bound=1)
    flags.DEFINE_integer('batch', 0, 'Of the networks; 0 for 16, 8 and 2.', lower_bound=0)
    flags.DEFINE_float('width', 1.0, 'Factor on all channels of the networks.', lower_bound=0.01)
    flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'What networks compute in.')
    flags.DEFINE_bool('channels_last', False, 'Memory layout of the PyTorch networks.')
    flags.DEFINE_bool('compile', False, 'Run PyTorch through torch.compile.')
    command.run(main)
