"""`benchmarks.gpu` without a GPU and without SpikingJelly, at small size: every part, resuming, and what goes wrong."""

import json
import sys

import pytest

from benchmarks import contest, gpu, gpu_page, process
from benchmarks.cases import Case, lif_case
from benchmarks.contest import Spread
from cpng_jax.runtime.errors import UserError

pytestmark = [pytest.mark.trains, pytest.mark.processes]

LABELS = [gpu_page.SCAN, gpu_page.PALLAS, gpu_page.PEER, gpu_page.COMPILED]


@pytest.fixture(autouse=True)
def _ourselves(monkeypatch):
    monkeypatch.setitem(contest.PEERS, gpu_page.PEER, 'tests.abacus')


def options(tmp_path, **changes):
    given = dict(
        peers_python=sys.executable, rounds=2, round_seconds=0.0, small=True, target=0.0, data_dir='', out=str(tmp_path)
    )
    return gpu.Options(**{**given, **changes})


def kept(tmp_path, name):
    return json.loads((tmp_path / f'{name}.json').read_text())


def test_every_part_runs_is_written_and_not_run_again(tmp_path, capsys):
    # Of the six parts that differ in network and dtype alone, one.
    names = [name for name in gpu.PARTS if not name.endswith('float32') and 'resnet' not in name]
    found = gpu.run(names, options(tmp_path, data_dir=str(tmp_path)), 300)
    assert sorted(found) == sorted(names)
    for name in names:
        part = kept(tmp_path, name)
        assert part == found[name] and 'error' not in part and part['rows'], part.get('error')
        for row in part['rows']:
            assert not row.get('failed'), row['failed']
            for label, side in row.get('sides', {}).items():
                assert label in LABELS and min(side['seconds']) > 0
    (neurons,) = found['neurons']['rows']
    assert list(neurons['sides']) == LABELS
    assert neurons['floor_s'] == pytest.approx(5 * 4 * 2**16 / neurons['bytes_per_s'])
    assert neurons['equality'].startswith('equal: spikes exactly')
    (row,) = found['vgg16_bfloat16']['rows']
    assert list(row['sides']) == LABELS and row['equality'] == 'equal: logits exactly, gradient exactly'
    assert [row['equality'][:6] for row in found['equal']['rows']] == ['equal:', 'equal:']
    (target,) = found['target']['rows']
    assert target['epoch'] == 1 and target['seconds'] > target['wall_seconds'][0] > 0
    text = (tmp_path / 'gpu.md').read_text()
    for name in names:
        assert f'## {gpu.PARTS[name].title}\n' in text
    capsys.readouterr()
    assert gpu.run(['neurons'], options(tmp_path, data_dir=str(tmp_path)), 300) == found
    assert capsys.readouterr().out == 'neurons: there already\n'


def fake(rows, title='Beads', error=None):
    """A part that yields rows and ends with an error, if there is one."""

    def measure(_):
        yield from rows
        if error:
            raise error

    return gpu.Part(title, measure, lambda found: [f'{len(found)} rows'])


def test_what_a_part_has_found_is_kept_when_it_ends_early_and_it_runs_again(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.PARTS, 'beads', fake([{}, {}], error=UserError('No more beads.')))
    gpu.run(['beads'], options(tmp_path), 60)
    assert kept(tmp_path, 'beads')['rows'] == [{}, {}]
    text = (tmp_path / 'gpu.md').read_text()
    assert '2 rows' in text and 'No more beads.' in text
    monkeypatch.setitem(gpu.PARTS, 'beads', fake([{}], error=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        gpu.run(['beads'], options(tmp_path), 60)
    assert kept(tmp_path, 'beads')['error'] == 'It was interrupted.'
    monkeypatch.setitem(gpu.PARTS, 'beads', fake([{}, {}, {}]))
    assert 'error' not in gpu.run(['beads'], options(tmp_path), 60)['beads']
    # Other options are another measurement.
    assert gpu.run([], options(tmp_path, rounds=3), 60) == {}


def test_a_part_that_takes_too_long_is_given_up_with_its_processes(tmp_path, monkeypatch):
    killed = []
    monkeypatch.setattr(process.Worker, 'kill', lambda worker, kill=process.Worker.kill: killed.append(kill(worker)))
    found = gpu.run(['vgg16_bfloat16'], options(tmp_path), 1)
    assert len(killed) == 4  # which are building
    assert found['vgg16_bfloat16']['error'].startswith('vgg16_bfloat16 took longer than --part_seconds=1')


def test_a_side_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setitem(contest.PEERS, gpu_page.PEER, 'benchmarks.no_such_side')
    row = gpu.race_of(lif_case(2, 64), gpu.contestants(options(tmp_path), mixed={}), options(tmp_path))
    assert list(row['sides']) == LABELS[:2] and list(row['failed']) == LABELS[2:]
    assert 'No module named' in row['failed'][gpu_page.PEER]
    lines = gpu_page.time_lines([row])
    assert lines[0].splitlines()[-1].split(' | ')[3:] == ['-', '-', '-', '- |']
    assert len(lines) == 3 and gpu_page.ratio(row) is None


def test_one_that_falls_out_within_the_turns_is_named_and_the_others_start_again(tmp_path, monkeypatch):
    real, calls = gpu.take_turns, []

    def fall_out(workers, built, **given):
        calls.append([worker.name for worker in workers])
        if len(calls) == 1:
            raise UserError(f'{gpu_page.PALLAS} ended while it was to run: no beads')
        return real(workers, built, **given)

    monkeypatch.setattr(gpu, 'take_turns', fall_out)
    copy = Case('copy', 1, neurons=64)
    sides = gpu.contestants(options(tmp_path), mixed={})[:2]
    row = gpu.race_of(copy, sides, options(tmp_path), check=False)
    assert calls == [LABELS[:2], LABELS[:1]] and list(row['sides']) == LABELS[:1]
    assert 'no beads' in row['failed'][gpu_page.PALLAS]


def test_the_ratio_is_that_of_the_faster_on_each_side():
    seconds = {LABELS[0]: [4.0, 4.0], LABELS[1]: [1.0, 3.0], LABELS[2]: [4.0, 4.0], LABELS[3]: [9.0, 9.0]}
    row = {'sides': {label: {'seconds': each} for label, each in seconds.items()}}
    assert gpu_page.ratio(row) == Spread(0.5, 0.25, 0.75)


def test_an_unknown_part_is_answered_by_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"--parts has 'neuron'; the nearest is 'neurons' of neurons, vgg16_bfloat16"):
        gpu.run(['neuron'], options(tmp_path), 60)
    assert not list(tmp_path.iterdir())
