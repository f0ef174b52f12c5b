"""The benchmarks against other libraries, without these: protocol, numbers, tables, and our side of the work."""

import dataclasses
import io
import json
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from benchmarks import (
    bench,
    cases,
    contest,
    convolutions,
    cpng_cost,
    equality,
    neurons,
    ours,
    process,
    race,
    scaling,
    worker,
)
from benchmarks.contest import Contender, Result, Spread
from cpng_jax import data
from cpng_jax.runtime.errors import UserError
from tests import abacus

pytestmark = pytest.mark.trains

LIF = cases.lif_case(3, 128)


def stand_in(**changes):
    """A side whose step does nothing, and which computes what ours does for a layer of neurons."""
    return types.SimpleNamespace(**{**vars(abacus), **changes})


def answers(side, *requests):
    output = io.StringIO()
    worker.serve(side, io.StringIO(''.join(json.dumps(request) + '\n' for request in requests)), output)
    return [json.loads(line) for line in output.getvalue().splitlines()]


def contender(seconds=(1.0, 2.0), **changes):
    fields = dict(
        seconds=seconds,
        build_s=0.5,
        first_step_s=2.0,
        peak_bytes=3_000_000,
        measured='on the device',
        device='abacus',
        versions={'beads': '10'},
        differs='',
    )
    return Contender(**{**fields, **changes})


def result(**changes):
    theirs = contender((2.0, 8.0, 4.0), peak_bytes=None)
    fields = dict(case=LIF, peer='SpikingJelly', ours=contender((1.0, 2.0, 3.0)), theirs=theirs, equality='equal: all')
    return Result(**{**fields, **changes})


def test_a_worker_builds_runs_and_tells_its_memory():
    case = dataclasses.asdict(LIF)
    built, ran, settled, memory = answers(
        stand_in(), {'do': 'build', 'case': case}, {'do': 'run', 'steps': 3}, {'do': 'settle'}, {'do': 'memory'}
    )
    assert built['device'] == 'abacus' and built['versions'] == {'beads': '10'} and built['build_s'] >= 0
    assert len(ran['seconds']) == 3 and settled == {}
    assert set(memory) == {'peak_bytes', 'measured'}


def test_a_worker_on_an_accelerator_tells_its_memory():
    side = stand_in(build=lambda case: worker.Work(lambda: None, 'abacus', lambda: 7))
    *_, memory = answers(side, {'do': 'build', 'case': dataclasses.asdict(LIF)}, {'do': 'memory'})
    assert memory == {'peak_bytes': 7, 'measured': 'on the device'}


def test_an_error_of_a_side_is_an_answer_and_the_worker_goes_on():
    def fail(case):
        raise ValueError('no beads')

    failed, settled = answers(stand_in(build=fail), {'do': 'build', 'case': dataclasses.asdict(LIF)}, {'do': 'settle'})
    assert failed == {'error': 'ValueError: no beads'} and settled == {}


@pytest.mark.processes
def test_both_sides_of_a_real_contest_and_their_equality():
    found = contest.contest(LIF, 'ourselves', sys.executable, rounds=2, round_seconds=0.001)
    assert len(found.ours.seconds) == len(found.theirs.seconds) == 2
    assert found.equality == 'equal: spikes exactly, gradient exactly, first spikes exactly'
    assert found.ratio.least > 0


@pytest.fixture(autouse=True)
def _ourselves(monkeypatch):
    monkeypatch.setitem(contest.PEERS, 'ourselves', contest.OURS)


@pytest.mark.processes
def test_a_worker_that_dies_is_named_with_its_last_words():
    with (
        process.Worker(sys.executable, 'benchmarks.no_such_side', 'nobody') as nobody,
        pytest.raises(UserError, match=r"nobody ended while it was to build: .*No module named 'benchmarks.no_such"),
    ):
        nobody.ask('build', case=dataclasses.asdict(LIF))


@pytest.mark.processes
def test_what_a_side_cannot_do_is_named():
    with (
        process.Worker(sys.executable, contest.OURS, 'ours') as side,
        pytest.raises(UserError, match='ours failed to build: KeyError'),
    ):
        side.ask('build', case=dataclasses.asdict(dataclasses.replace(LIF, name='perceptron')))


@pytest.mark.processes
def test_the_worker_imports_neither_jax_nor_torch_nor_the_library():
    code = 'import sys, benchmarks.worker; print([m for m in ("jax", "torch", "cpng_jax") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], cwd=process.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


@pytest.mark.processes
def test_a_missing_environment_of_the_peers_names_the_commands():
    command = [sys.executable, '-m', 'benchmarks.race', '--peers_python=.no-peers/bin/python']
    done = subprocess.run(command, cwd=process.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for words in ('python3 -m venv .no-peers', '.no-peers/bin/pip install -r benchmarks/requirements.txt'):
        assert words in done.stderr


def test_the_ratio_is_taken_round_by_round():
    assert result().ratio == Spread(0.5, 0.25, 0.75)


def test_equality_is_judged_by_kind():
    mine = {'spikes': np.array([0.0, 1.0]), 'gradient/a': np.array([1.0, 100.0]), 'gradient/b': np.array([1e-7])}
    assert equality.compare(mine, mine) == 'equal: spikes exactly, gradient exactly'
    rounded = {**mine, 'gradient/a': mine['gradient/a'] + 1e-4, 'gradient/b': np.array([2e-7])}
    assert equality.compare(mine, rounded) == 'equal: spikes exactly, gradient within 1e-06'
    assert equality.compare(mine, {'spikes': np.array([1.0, 1.0])}).startswith('NOT EQUAL: spikes within 1e+00')
    small = {'gradient/a': np.array([100.0]), 'gradient/b': np.array([1.0])}
    assert equality.compare(small, {**small, 'gradient/b': np.array([1.1])}).startswith('NOT EQUAL')


def test_outputs_that_no_spike_reaches_are_not_compared():
    dead = {'logits': np.ones((3, 2, 5)), 'gradient/a': np.zeros(4)}
    assert equality.compare(dead, dead).startswith('NOT COMPARED')


def test_the_tables_have_all_columns():
    row = race.time_table([result()]).splitlines()[-1]
    assert row.split(' | ')[3:] == ['2000 ms', '4000 ms', '0.50 (0.25 to 0.75)', 'equal: all |']
    start = race.start_table([result()]).splitlines()[-1]
    assert start.split(' | ')[3:] == ['3 MB', '-', '-', '0.5 + 2.0 s', '0.5 + 2.0 s |']
    started = race.start_table([result(ours=contender(first_start_s=12.34))]).splitlines()[-1]
    assert started.split(' | ')[5] == '12.3 s'
    assert 'beads 10' in race.describe([result()])
    differing = result(theirs=contender((1.0, 1.0, 1.0), differs='other beads'))
    assert '(other beads)' in race.time_table([differing])


def test_where_a_median_lies():
    """SciPy's quantile test, which inverts the same distribution."""
    values = np.random.default_rng(0).normal(size=41)
    interval = scipy.stats.quantile_test(values).confidence_interval(0.95)
    assert Spread.of_median([*values]) == (np.median(values), interval.low, interval.high)
    assert Spread.of_median([3, 1, 2, 6, 5, 4]) == (3.5, 1, 6)
    with pytest.raises(ValueError, match='of 5 values nothing can be said'):
        Spread.of_median([1, 2, 3, 4, 5])


def test_networks_race_with_spikingjelly_alone():
    found = list(race.pairs([LIF, cases.network_case('vgg16')], ['SpikingJelly', 'Norse']))
    assert [(case.name, peer) for case, peer in found] == [
        ('lif', 'SpikingJelly'),
        ('lif', 'Norse'),
        ('vgg16', 'SpikingJelly'),
    ]


def by_hand(currents, cotangent):
    """Spikes and the gradient of the currents in float64, from Eq. 2 and 7 written out."""
    u, potentials, spikes = np.zeros(currents.shape[1:]), [], []
    for current in currents:
        u = 0.5 * u * (1 - (spikes[-1] if spikes else 0)) + current
        potentials.append(u)
        spikes.append((u >= 1).astype(np.float64))
    gradient = np.zeros(currents.shape)
    later = np.zeros(currents.shape[1:])  # dL/du of the next step
    for t in reversed(range(len(currents))):
        u, s = potentials[t], spikes[t]
        surrogate = np.maximum(1 - np.abs(u - 1), 0)
        later = (cotangent[t] - 0.5 * u * later) * surrogate + 0.5 * (1 - s) * later
        gradient[t] = later
    return np.stack(spikes), gradient


def test_our_layer_of_neurons_is_that_of_the_equations():
    case = cases.lif_case(12, 640)
    given = cases.lif_inputs(case)
    found = ours.check(case, given)
    spikes, gradient = by_hand(*(given[name].astype(np.float64) for name in ('currents', 'cotangent')))
    np.testing.assert_array_equal(found['spikes'], spikes)
    np.testing.assert_allclose(found['gradient'], gradient, rtol=0, atol=1e-5)
    assert 0.05 < spikes.mean() < 0.5
    np.testing.assert_array_equal(found['first_spikes'] == -1, ~spikes.any(axis=0))


@pytest.mark.parametrize('name', cases.NETWORKS)
def test_the_cases_describe_the_configurations(name):
    network, config = cases.NETWORKS[name], ours.config_of(cases.network_case(name))
    assert config.model.time_steps == network.time_steps
    dataset = data.load(config.data)
    assert dataset.image_shape == (network.image_size, network.image_size, 3)
    assert len(dataset.class_names) == network.classes


@pytest.fixture(scope='module')
def growth():
    return scaling.measure('time_steps', (1, 2), rounds=1, steps=1, base=scaling.Size(batch=2, width=2, depth=2))


@pytest.fixture(scope='module')
def cost():
    """Of a network with two convolutions instead of the real one."""
    small = scaling.Size(time_steps=2, batch=2, width=2, depth=2)
    case = dataclasses.replace(cases.network_case('resnet19', batch=2), time_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, 'config_of', lambda case: scaling.config_of(small))
        yield cpng_cost.measure(case, rounds=6, steps=1)


def test_the_cost_of_cpng_is_measured(cost):
    assert cost.without_s.least > 0 and cost.update_s.least > 0
    assert cost.epoch_share < 0.5
    assert cpng_cost.cost_table([cost]).count('\n') == 2


def test_scaling_is_measured(growth):
    assert growth.sizes == (1, 2) and min(growth.seconds) > 0
    assert scaling.growth_table([growth]).count('\n') == 2


@pytest.mark.parametrize('axis', scaling.AXES)
def test_a_size_is_in_the_configuration(axis):
    before, after = (scaling.config_of(size) for size in (scaling.Size(), scaling.Size().along(axis, 16)))
    changed = {
        'time_steps': (after.model.time_steps, 16),
        'batch': (after.batch_size, 16),
        'width': (after.model.stages, ((16, 16), (32, 32))),
        'depth': (after.model.stages, ((16,) * 8, (32,) * 8)),
        'micro_batches': (after.optim.accumulate, 16),
    }
    assert changed[axis][0] == changed[axis][1]
    assert (before.to_dict() == after.to_dict()) == (axis == 'width')  # the width that there was before


def test_slope_and_growth_of_a_known_law():
    squared = scaling.Growth('width', (1, 2, 4), (3.0, 12.0, 48.0))
    assert squared.slope == pytest.approx(2) and squared.over_work == pytest.approx(1)
    half = scaling.Growth('batch', (1, 4), (1.0, 2.0))
    assert half.slope == pytest.approx(0.5) and half.over_work == pytest.approx(0.5)


def test_the_page_the_numbers_and_the_picture(cost, growth):
    text = bench.page([result()], [cost], [growth], 'python -m benchmarks.bench', 2)
    for words in ('0.50 (0.25 to 0.75)', '## What CPNG costs', 'time steps', 'benchmarks.png'):
        assert words in text
    stored = json.loads(json.dumps(bench.numbers([result()], [cost], [growth])))
    assert stored['race'][0]['ours']['seconds'] == [1.0, 2.0, 3.0]
    assert len(bench.plot([result()], [growth]).axes) == 2


def spread_is_ordered(spread):
    return 0 < spread.least <= spread.median <= spread.most


@pytest.mark.processes
def test_convolutions_are_compared_all_ways(monkeypatch):
    monkeypatch.setattr(convolutions, '_SIDE', 'tests.abacus')  # in the place of PyTorch
    for layer in (convolutions.Layer(2, 4, 3, 4), convolutions.Layer(2, 4, 3, 4, 1, 2)):
        results = convolutions.compare(layer, 2, sys.executable)
        assert list(results) == ['forward', 'by input', 'by kernel']
        assert all(spread_is_ordered(spread) for found in results.values() for spread in found)
    in_loop = convolutions.compare(convolutions.Layer(2, 4, 3, 4), 2, loop=True)
    assert all(found.to_onednn is None and found.seconds.median > 0 for found in in_loop.values())


def test_a_loop_of_convolutions_adds_up_its_turns():
    arrays = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(convolutions._in_loop(jnp.multiply, arrays, 2 * arrays), 2 * (arrays**2).sum(0))


def test_the_table_of_convolutions():
    layer = convolutions.Layer(8, 56, 64, 128, 1, 2)
    alone = convolutions.Measured(Spread(0.002, 0.001, 0.003), Spread(0.5, 0.4, 0.6), None)
    found = {'forward': alone, 'by input': alone._replace(to_onednn=Spread(0.75, 0.7, 0.8)), 'by kernel': alone}
    row = convolutions.layers_table({layer: found}).splitlines()[-1]
    assert row == '| 8 x 56 x 56, 64 to 128, 1 x 1 / 2 | 2, 0.50 | 2, 0.50, 0.75 | 2, 0.50 |'


def test_two_programs_of_a_layer_of_neurons_are_measured_against_the_floor():
    rate = neurons.memory_rate(4096, rounds=1, repeat=1)
    assert rate > 0
    layers = [neurons.measure(steps, 1024, 1e9, rounds=2, repeat=1) for steps in (1, 4)]
    for layer, steps in zip(layers, (1, 4), strict=True):
        assert (layer.time_steps, layer.neurons) == (steps, 1024 // steps)
        assert layer.floor_s == pytest.approx(5 * 1024 * 4 / 1e9)
        assert layer.seconds.keys() == {'scan', 'Pallas'}
        assert all(0 < spread.least <= spread.median <= spread.most for spread in layer.seconds.values())
        assert layer.spikes_differ == 0
        assert layer.gradients_differ < 1e-6
    known = layers[1]._replace(
        seconds={name: contest.Spread(2e-5, 1e-5, 3e-5) for name in neurons.PROGRAMS},
        floor_s=1e-5,
        gradients_differ=0.0,
    )
    heading, _, row = neurons.neurons_table([known]).splitlines()
    assert heading.count('|') == row.count('|')
    assert '| 4 | 256 | 0.010 ms | 0.020 ms, 2.00 | 0.020 ms, 2.00 | 0.0% of the spikes, 0 of a gradient |' in row
