"""The short form of the benchmarks, `make bench`: race, cost of CPNG and scaling, into docs/benchmarks.*.

    python -m benchmarks.bench
    python -m benchmarks.bench --out=runs/bench --width=0.0625 --neurons=4096 --rounds=2 --round_seconds=0.1

Needs the environment of the peers, see `benchmarks.race`. Writes `benchmarks.md`, the tables; `benchmarks.png`, the
ratios and the scaling; and `benchmarks.json`, the time of each round.
"""

import dataclasses
import json
import sys
import textwrap
from typing import Any

from absl import flags, logging
from matplotlib.figure import Figure

from benchmarks import cpng_cost, race, scaling
from benchmarks.cases import NETWORKS, TIME_STEPS, lif_case, network_case
from benchmarks.contest import PEERS, Result, contest
from benchmarks.cpng_cost import Cost
from benchmarks.process import peers_python
from benchmarks.scaling import AXES, Growth
from cpng_jax.runtime import command
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.paths import local

_OURS, _NEUTRAL = '#1f77b4', '#555555'


def plot(results: list[Result], growths: list[Growth]) -> Figure:
    """Draws the ratios of all contests, and the time of a step along each axis.

    Args:
      results: at least one.
      growths: at least one.

    Returns:
      The figure.
    """
    figure = Figure(figsize=(11, 0.42 * len(results) + 2.2), layout='constrained')
    ratios, growth_axes = figure.subplots(1, 2, width_ratios=(3, 2))
    for row, result in enumerate(results):
        spread = result.ratio
        reach = [[spread.median - spread.least], [spread.most - spread.median]]
        ratios.errorbar(spread.median, row, xerr=reach, fmt='o', color=_OURS, capsize=3)
    work = [
        result.case.name + (f', T = {r.time_steps}' if (r := result.case).name == 'lif' else '') for result in results
    ]
    ratios.set_yticks(range(len(results)), [f'{what} / {r.peer}' for what, r in zip(work, results, strict=True)])
    ratios.invert_yaxis()
    ratios.set_xscale('log')
    ratios.axvline(1, color=_NEUTRAL, linewidth=1, linestyle='--')
    ratios.set_xlabel('time of ours / theirs, median and extremes over rounds; left of 1 ours is faster')
    ratios.set_title('A step, ours against other libraries', fontsize=10)
    for growth in growths:
        share = [size / growth.sizes[0] for size in growth.sizes]
        label = f'{growth.axis.replace("_", " ")}: slope {growth.slope:.2f}'
        growth_axes.plot(share, [s / growth.seconds[0] for s in growth.seconds], marker='o', markersize=4, label=label)
    ends = [1, max(growth.sizes[-1] / growth.sizes[0] for growth in growths)]
    growth_axes.plot(ends, ends, color=_NEUTRAL, linewidth=1, linestyle='--', label='linear')
    growth_axes.set(xscale='log', yscale='log', xlabel='size / smallest', ylabel='time of a step / of the smallest')
    growth_axes.set_title('Our step against the size of the network', fontsize=10)
    growth_axes.legend(fontsize=8)
    return figure


def page(results: list[Result], costs: list[Cost], growths: list[Growth], command: str, rounds: int) -> str:
    """Writes the page of all tables, in Markdown.

    Args:
      results: of the race.
      costs: of CPNG.
      growths: of the scaling.
      command: that makes the page.
      rounds: of each measurement.

    Returns:
      The text.
    """
    parts = [
        '# Benchmarks',
        f'Written by `{command}`; {rounds} rounds. {race.describe(results)}',
        '![Ratios and scaling](benchmarks.png)',
        '## Time of a step',
        'Two processes in turns; the ratio is ours over theirs in each round, median (least to greatest), so below 1 '
        'ours is faster. `lif` is a layer of neurons, forward and backward; a network is a training step from uint8 '
        'images to updated weights, ours with membrane statistics. The last column compares outputs and gradients of '
        'the same inputs and weights, networks at 1/16 of their width: the largest difference as a share of the '
        'largest value of an array.',
        race.time_table(results),
        '## Memory and start',
        'A start is building plus the first step. The first start compiles; the second one, whose process the figures '
        'of time and memory are of, finds the programs that the first has kept. A layer by itself keeps none.',
        race.start_table(results),
        '## What CPNG costs',
        '`statistics`: added to a step by the statistics of membrane potentials and firing rates. `every batch`: added '
        'to that by Algorithm 1 in each step. In brackets, where the median lies by 95 %. `Algorithm 1`: once between '
        f'two epochs, and its share of an epoch of {cpng_cost.EPOCH_IMAGES:,} images.',
        cpng_cost.cost_table(costs),
        '## Scaling',
        'A spiking VGG on 32 x 32 images, one size changing at a time. The slope is that of time against size over '
        'logarithms; the work grows with the square of the width, not at all with the micro-batches of a batch, and '
        'else in proportion.',
        scaling.growth_table(growths),
    ]
    return '\n\n'.join(map(_wrapped, parts)) + '\n'


def _wrapped(part: str) -> str:
    """Prose in lines of 120 characters; headings, pictures and tables as they are."""
    return part if part.startswith(('#', '!', '|')) else textwrap.fill(part, 120)


def numbers(results: list[Result], costs: list[Cost], growths: list[Growth]) -> dict[str, Any]:
    """Gathers what was measured, for JSON."""
    named = {'race': results, 'cpng_cost': costs, 'scaling': growths}
    return {name: [dataclasses.asdict(item) for item in items] for name, items in named.items()}


def main(_: list[str]) -> None:
    """Measures and writes."""
    logging.set_verbosity(logging.WARNING)  # JAX names each backend that is not there
    values = flags.FLAGS
    rounds, results = values.rounds, []
    cases = [lif_case(time_steps, values.neurons) for time_steps in TIME_STEPS]
    cases += [network_case(name, values.batch, values.width) for name in values.networks]
    try:
        python, out = peers_python(values.peers_python), local(values.out, '--out')
        for case, peer in race.pairs(cases, list(PEERS)):
            results.append(contest(case, peer, python, rounds=rounds, round_seconds=values.round_seconds))
            print(f'{case.name}, {case.size}: ours / {peer} {race.ratio(results[-1].ratio)}', flush=True)
    except UserError as error:
        raise SystemExit(str(error)) from None
    costs = [
        cpng_cost.measure(network_case(name, values.batch, values.width), rounds=values.cost_rounds, steps=1)
        for name in values.networks
        if name != 'sew_resnet34'
    ]
    growths = [
        scaling.measure(axis, sizes[: values.sizes], rounds=rounds, steps=2) for axis, (sizes, _) in AXES.items()
    ]
    command = ' '.join(['python -m benchmarks.bench', *sys.argv[1:]])
    out.mkdir(parents=True, exist_ok=True)
    (out / 'benchmarks.md').write_text(page(results, costs, growths, command, rounds))
    (out / 'benchmarks.json').write_text(json.dumps(numbers(results, costs, growths), indent=1) + '\n')
    plot(results, growths).savefig(out / 'benchmarks.png', dpi=110)
    print(f'Written: {out}/benchmarks.md, .png and .json')


if __name__ == '__main__':
    flags.DEFINE_string('out', 'docs', 'Folder that is written to.')
    flags.DEFINE_string('peers_python', '.venv-peers/bin/python', 'The interpreter that has the peers.')
    flags.DEFINE_multi_enum('networks', list(NETWORKS), list(NETWORKS), 'Which to train for a step.')
    flags.DEFINE_integer('rounds', 5, 'Of each measurement.', lower_bound=1)
    flags.DEFINE_integer('cost_rounds', 40, 'Of a step each, of what CPNG costs.', lower_bound=6)
    flags.DEFINE_float('round_seconds', 1.0, 'Seconds that a side works in a round; at least a step.', lower_bound=0)
    flags.DEFINE_integer('neurons', 262_144, 'Of the layer.', lower_bound=1)
    flags.DEFINE_integer('batch', 0, 'Of the networks; 0 for 16, 8 and 2.', lower_bound=0)
    flags.DEFINE_float('width', 1.0, 'Factor on all channels of the networks.', lower_bound=0.01)
    flags.DEFINE_integer('sizes', 7, 'Sizes at most along each axis of the scaling.', lower_bound=2)
    command.run(main)
