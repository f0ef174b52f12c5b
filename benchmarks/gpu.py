"""What one hour on a GPU should tell: neurons, training steps and memory against SpikingJelly, in parts.

    python -m benchmarks.gpu --peers_python=python3
    python -m benchmarks.gpu --out=runs/gpu_small --small

A part takes minutes, and each row that it finds is written at once: `PART.json` and the page of all parts so far,
`gpu.md`, in `--out`. A part that has ended, of the same device and options, is not run again, so that a machine that is
lost costs one part. The first ones are the core and tell most.

    neurons        a layer forward and backward at T = 4 to 128: the scan over time, the Pallas kernels, SpikingJelly
                   (which takes its Triton kernels by itself) with and without torch.compile. The floor is the time of
                   five arrays at the rate at which this device adds 1 to a large array.
    NETWORK DTYPE  a training step, ours with membrane statistics and either implementation of the neurons, SpikingJelly
                   in channels_last, in bfloat16 by autocast, with and without torch.compile. Float32 is TF32 on both.
    memory         of a step of VGG16 in bfloat16, against T.
    equal          gradients of this device against those of this machine's processor, at full float32 precision.
    input          images/s that the processor's cores prepare for ImageNet, against those that a training step of
                   SEW-ResNet34 in bfloat16 takes.
    target         Fashion-MNIST: seconds until the validation accuracy reaches `--target`, compilation included.

Sides do their work in turns, in processes of their own. Each JAX side is built after another, and each PyTorch side,
but the first beside the second: their times to the first step are not compared here. A side that fails is named with
its words, and the others go on. `--small` has small sizes, for a trial on any machine.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from absl import flags

from benchmarks import gpu_page, input_pipeline, neurons, race
from benchmarks.cases import NETWORKS, Case, lif_case, network_case
from benchmarks.contest import OURS, PEERS, Contender, Spread, take_turns
from benchmarks.equality import equality
from benchmarks.gpu_page import COMPILED, PALLAS, PEER, SCAN, Row
from benchmarks.process import ROOT, Late, Worker, peers_python, within
from cpng_jax.runtime import command, metrics
from cpng_jax.runtime.errors import UserError, nearest
from cpng_jax.runtime.paths import local
from cpng_jax.runtime.workdir import write_json

_FLOAT32 = 4  # bytes
_BATCHES = {'vgg16': 128, 'resnet19': 64, 'sew_resnet34': 32}


class Options(NamedTuple):
    """What the command line says.

    Attributes:
      peers_python: interpreter that has SpikingJelly.
      rounds: in which the sides take turns.
      round_seconds: that a side works in a round; at least a step.
      small: sizes for a trial.
      target: validation accuracy of Fashion-MNIST, 0 to 1.
      data_dir: where Fashion-MNIST lies, or is prepared.
      out: folder that is written to.
    """

    peers_python: str
    rounds: int
    round_seconds: float
    small: bool
    target: float
    data_dir: str
    out: str

    @property
    def measuring(self) -> Row:
        """Those that decide what is measured, for a part that is there already to be told from another."""
        return {name: getattr(self, name) for name in ('rounds', 'round_seconds', 'small', 'target')}


class Contestant(NamedTuple):
    """One of those that take turns.

    Attributes:
      label: in tables.
      python: its interpreter.
      module: a `benchmarks.worker.Side`.
      changes: to the case.
    """

    label: str
    python: str
    module: str
    changes: Mapping[str, Any]


def contestants(options: Options, *, mixed: Mapping[str, Any]) -> list[Contestant]:
    """Ours and SpikingJelly, each in two ways; `mixed` is what else changes in the case of the peer."""
    peer = PEERS[PEER]
    return [
        Contestant(SCAN, sys.executable, OURS, {'implementation': 'scan'}),
        Contestant(PALLAS, sys.executable, OURS, {'implementation': 'pallas'}),
        Contestant(PEER, options.peers_python, peer, mixed),
        Contestant(COMPILED, options.peers_python, peer, {**mixed, 'compile': True}),
    ]


def race_of(case: Case, entered: Sequence[Contestant], options: Options, *, check: bool = True) -> Row:
    """Has sides do a case in turns.

    Args:
      case: the work.
      entered: at least one; those that fail are left out from then on.
      options: of the command line.
      check: compare what our first side computes with what the first one of the peer does.

    Returns:
      `case` and its `size`; `sides`, of each label what `Contender` has; `failed`, of each label in words; `equality`,
      in words, of the two sides, where both are there.
    """
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor())
        workers = {side.label: stack.enter_context(Worker(side.python, side.module, side.label)) for side in entered}

        def build(lane: list[Contestant]) -> dict[str, Row]:
            built = {}
            for side in lane:
                changed = dataclasses.replace(case, **side.changes)
                try:
                    built[side.label] = workers[side.label].ask('build', case=dataclasses.asdict(changed))
                except UserError as error:
                    failed[side.label] = str(error)
            return built

        try:
            lanes = [[side for side in entered if (side.module == OURS) == ours] for ours in (True, False)]
            built = {label: facts for found in pool.map(build, lanes) for label, facts in found.items()}
            alive = {side.label: workers[side.label] for side in entered if side.label in built}
            found = _turns(alive, built, failed, options)
            same = ''
            if check and {SCAN, PEER} <= set(alive):
                try:
                    same = equality(case, workers[SCAN], workers[PEER])
                except UserError as error:
                    same = f'NOT COMPARED: {error}'
        except Late:
            for worker in workers.values():
                worker.kill()
            raise
    # As JSON has it: lists for tuples.
    kept = {
        label: dataclasses.asdict(side) | {'seconds': list(side.seconds)}
        for label, side in zip(alive, found, strict=True)
    }
    return {'case': case.name, 'size': case.size, 'sides': kept, 'failed': failed, 'equality': same}


def _turns(
    alive: dict[str, Worker], built: Mapping[str, Row], failed: dict[str, str], options: Options
) -> list[Contender]:
    """Has those that are alive take turns; if one falls out the others start again, so that all have one company."""
    while alive:
        try:
            return take_turns(
                list(alive.values()),
                [built[label] for label in alive],
                rounds=options.rounds,
                round_seconds=options.round_seconds,
            )
        except UserError as error:
            lost = next(label for label, worker in alive.items() if str(error).startswith(f'{worker.name} '))
            failed[lost] = str(error)
            del alive[lost]
    return []


def _neurons(options: Options) -> Iterator[Row]:
    elements = 1 << (16 if options.small else 27)
    copy = Case('copy', 1, neurons=elements)
    copied = race_of(copy, [Contestant(SCAN, sys.executable, OURS, {})], options, check=False)
    if not copied['sides']:
        raise UserError(copied['failed'][SCAN])
    rate = 2 * _FLOAT32 * elements / Spread.of(copied['sides'][SCAN]['seconds']).median
    for steps in (4,) if options.small else (4, 8, 16, 32, 64, 128):
        row = race_of(lif_case(steps, elements // steps), contestants(options, mixed={}), options)
        yield {**row, 'bytes_per_s': rate, 'floor_s': neurons.ARRAYS * _FLOAT32 * elements / rate}


def _case(name: str, options: Options, **changes: Any) -> Case:
    """A network at the size of a GPU's memory, or of a trial."""
    if options.small:
        return dataclasses.replace(network_case(name).reduced(), **changes)
    return dataclasses.replace(network_case(name, _BATCHES[name]), **changes)


def _steps(name: str, dtype: str) -> Callable[[Options], Iterator[Row]]:
    def measure(options: Options) -> Iterator[Row]:
        case = _case(name, options, dtype=dtype)
        yield race_of(case, contestants(options, mixed={'channels_last': True}), options)

    return measure


def _memory(options: Options) -> Iterator[Row]:
    for steps in (2,) if options.small else (4, 8, 16, 32):
        case = _case('vgg16', options, dtype='bfloat16', time_steps=steps)
        fewer = [side for side in contestants(options, mixed={'channels_last': True}) if 'compile' not in side.changes]
        yield race_of(case, fewer, options._replace(rounds=1, round_seconds=0.0), check=False)


def _equal(options: Options) -> Iterator[Row]:
    names = ['vgg16'] if options.small else list(NETWORKS)
    for case in [lif_case(8, 1 << 16), *(_case(name, options) for name in names)]:
        here = Worker(sys.executable, OURS, 'ours')
        with here, Worker(sys.executable, OURS, 'ours on the processor', {'JAX_PLATFORMS': 'cpu'}) as processor:
            yield {'case': case.name, 'size': case.reduced().size, 'equality': equality(case, here, processor)}


def _input(options: Options) -> Iterator[Row]:
    cores = len(os.sched_getaffinity(0))
    images, encoded = 64 if options.small else 8000, input_pipeline.photographs()
    rates = [input_pipeline.whole_pipeline(encoded, images, seed, cores) for seed in range(1 if options.small else 3)]
    case = _case('sew_resnet34', options, dtype='bfloat16')
    row = race_of(case, [side for side in contestants(options, mixed={}) if side.module == OURS], options, check=False)
    yield {**row, 'batch': case.batch, 'cores': cores, 'images_per_s': rates}


def _target(options: Options) -> Iterator[Row]:
    given = [f'--config.data.dir={options.data_dir}', '--config.cpng.rule=coherent_gain']
    if options.small:
        given += ['--config.data.fake=True', '--config.model.width=0.05', '--config.epochs=1', '--config.batch_size=16']
        given += ['--config.data.fake_examples=200']
    train = ['train.py', '--config=fashion_mnist_cnn', *given]
    with tempfile.TemporaryDirectory() as workdir:  # a run that were there already would go on
        began = time.perf_counter()
        command_line = [sys.executable, *train, f'--workdir={workdir}']
        ran = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=False)
        whole = time.perf_counter() - began
        if ran.returncode:
            raise UserError(f'train.py ended with {ran.returncode}: {(ran.stderr.strip().splitlines() or ["-"])[-1]}')
        rows = metrics.read_epochs(workdir)
    accuracies = [row[f'{metrics.rated_by(row)}_accuracy'] for row in rows]
    reached = next((index for index, accuracy in enumerate(accuracies) if accuracy >= options.target), None)
    seconds = [row['wall_seconds'] for row in rows]
    before = whole - sum(seconds)  # imports, data, and what the end of a run does: all of it is counted
    yield {
        'target': options.target,
        'command': ' '.join(['python', *train]),
        'epoch': None if reached is None else reached + 1,
        'seconds': None if reached is None else before + sum(seconds[: reached + 1]),
        'accuracies': accuracies,
        'wall_seconds': seconds,
    }


class Part(NamedTuple):
    """A part.

    Attributes:
      title: in the page.
      measure: yields the rows, which are kept as they come.
      lines: lays them out, paragraphs of Markdown.
    """

    title: str
    measure: Callable[[Options], Iterator[Row]]
    lines: Callable[[list[Row]], list[str]]

    def text(self, kept: Row) -> list[str]:
        """Lays out what the file of the part says, or why it says nothing."""
        made = f'{kept["device"]}; {kept["versions"]}; {kept["seconds"]:.0f} s.'
        lines = self.lines(kept['rows']) if kept['rows'] else []
        return [f'## {self.title}', made, *lines, *([kept['error']] if 'error' in kept else [])]


PARTS = {
    'neurons': Part('A layer of neurons, forward and backward', _neurons, gpu_page.time_lines),
    **{
        f'{name}_{dtype}': Part(f'A training step of {name} in {dtype}', _steps(name, dtype), gpu_page.time_lines)
        for dtype in ('bfloat16', 'float32')
        for name in NETWORKS
    },
    'memory': Part('Memory of a step against T', _memory, gpu_page.memory_lines),
    'equal': Part('This device against the processor', _equal, gpu_page.equal_lines),
    'input': Part('Images for ImageNet', _input, gpu_page.input_lines),
    'target': Part('Fashion-MNIST to a target accuracy', _target, gpu_page.target_lines),
}


def run(names: Sequence[str], options: Options, part_seconds: int) -> dict[str, Row]:
    """Runs parts, and writes what each found.

    Args:
      names: keys of `PARTS`, in the order in which they run.
      options: of the command line.
      part_seconds: after which a part is given up.

    Returns:
      What the file of each part in the folder says, those of earlier calls with the same device and options included.

    Raises:
      UserError: there is no such part, or our side does not run.
    """
    for name in names:
        if name not in PARTS:
            raise UserError(f'--parts has {name!r}; the nearest is {nearest(name, PARTS)!r} of {", ".join(PARTS)}.')
    out = local(options.out, '--out')
    out.mkdir(parents=True, exist_ok=True)
    with Worker(sys.executable, OURS, 'ours') as ours:
        probe = ours.ask('build', case=dataclasses.asdict(Case('copy', 1, neurons=1)))
    same = {'device': f'{probe["device"]}, {race.machine()}', 'options': options.measuring}
    found: dict[str, Row] = {}
    for name in PARTS:
        path = out / f'{name}.json'
        if path.is_file():
            kept = json.loads(path.read_text())
            if 'error' not in kept and all(kept[key] == value for key, value in same.items()):
                found[name] = kept
    for name in names:
        if name in found:
            print(f'{name}: there already', flush=True)
            continue
        began, rows = time.perf_counter(), []
        found[name] = kept = {**same, 'rows': rows, 'error': 'It was interrupted.'}

        def save(name: str = name, kept: Row = kept, began: float = began) -> None:
            kept |= {'seconds': time.perf_counter() - began, 'versions': _versions(kept['rows'], probe)}
            write_json(out / f'{name}.json', kept)
            write(found, out)

        try:
            with within(part_seconds, name):
                for row in PARTS[name].measure(options):
                    rows.append(row)
                    save()
            del kept['error']
        except (UserError, Late) as error:
            kept['error'] = str(error)
        save()
        print(*PARTS[name].text(kept), '', sep='\n\n', flush=True)
    write(found, out)
    return found


def write(found: Mapping[str, Row], out: pathlib.Path) -> None:
    """Writes the page of the parts that are there, what the file of each says by its name, into a folder."""
    text = ['# On a GPU', '`python -m benchmarks.gpu`; times are medians over rounds.']
    text += [line for name, part in PARTS.items() if name in found for line in part.text(found[name])]
    (out / 'gpu.md').write_text('\n\n'.join(text) + '\n')


def _versions(rows: Sequence[Row], probe: Row) -> str:
    each = dict(probe['versions'])
    for row in rows:
        for side in row.get('sides', {}).values():
            each |= side['versions']
    return ', '.join(f'{name} {version}' for name, version in sorted(each.items()))


def main(_: list[str]) -> None:
    """Runs the parts."""
    given = flags.FLAGS
    try:
        options = Options(
            peers_python(given.peers_python),
            **{name: getattr(given, name) for name in Options._fields[1:]},
        )
        found = run(given.parts, options, given.part_seconds)
    except UserError as error:
        raise SystemExit(str(error)) from None
    print(f'Written: {given.out}/gpu.md and a file for each of {len(found)} parts')


if __name__ == '__main__':
    flags.DEFINE_string('out', 'runs/gpu', 'Folder that is written to.')
    flags.DEFINE_string('peers_python', '.venv-peers/bin/python', 'The interpreter that has SpikingJelly.')
    flags.DEFINE_list('parts', list(PARTS), 'Which to run, in this order.')
    flags.DEFINE_integer('part_seconds', 480, 'After which a part is given up.', lower_bound=1)
    flags.DEFINE_integer('rounds', 5, 'In which the sides take turns.', lower_bound=1)
    flags.DEFINE_float('round_seconds', 0.5, 'Seconds that a side works in a round; at least a step.', lower_bound=0)
    flags.DEFINE_bool('small', False, 'Sizes for a trial on any machine.')
    flags.DEFINE_float('target', 0.92, 'Validation accuracy of Fashion-MNIST.', 0, 1)
    flags.DEFINE_string('data_dir', 'data', 'Where Fashion-MNIST lies, or is prepared.')
    command.run(main)
