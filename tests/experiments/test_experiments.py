"""The experiments' arms, and a grid of tiny runs: finished cells are kept, results are those of the runs."""

import contextlib
import csv
import itertools
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import cifar100_vgg16, digits
from cpng_jax.experiments import catalogue, figures, grid, tables
from cpng_jax.experiments import plan as plans
from cpng_jax.experiments.plan import CPNG, FIXED, Arm, Plan
from cpng_jax.runtime import metrics, workdir
from cpng_jax.runtime.config import flatten, refuse_idle, validate
from cpng_jax.runtime.errors import DivergedError, UserError
from cpng_jax.runtime.lock import held
from cpng_jax.runtime.workdir import write_json
from cpng_jax.training import keys, loop
from tests import forked


def plan_of(name, config=None, values=None):
    return catalogue.EXPERIMENTS[name](config or digits.get_config(), values)


@pytest.mark.parametrize('name', catalogue.EXPERIMENTS)
def test_every_arm_is_a_valid_run_of_its_own(name, tmp_path):
    config, plan, known = digits.get_config(), plan_of(name), keys.table().known
    labels = [arm.label for arm in plan.arms]
    assert len({*labels}) == len(labels)
    cells = grid.cells_of(plan, config, [3, 4], tmp_path)
    assert len({cell.folder for cell in cells}) == len(cells) == 2 * len(plan.arms)
    for cell in cells:
        validate(cell.config, keys.table())
        assert {cell.arm.baseline, cell.arm.beta_of} <= {*labels, None}
        changed = {key for key, value in flatten(cell.config).items() if value != flatten(config)[key]}
        followers = {key.name for key in known.values() if key.follows in cell.arm.changes}
        needed = {'cpng.beta_from'} if cell.arm.beta_of else {'init_from'} if cell.arm.converted_from else set()
        assert changed <= {*cell.arm.changes, *followers, *needed, 'seed'}
        assert {*cell.arm.changes} - {'model.stages'} <= {*known}  # a field of the network
    assert len({tuple(arm.factors) for arm in plan.arms}) == 1
    assert flatten(config) == flatten(digits.get_config())


def test_the_factors_of_the_paper():
    assert [arm.factors['beta'] for arm in plan_of('beta_sweep').arms] == [0.25, 0.5, 0.75, 1, 1.5, 2, 3]
    assert [arm.factors['chi_limit'] for arm in plan_of('chi_limit').arms[1:]] == [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    pairs = {(arm.factors['batch_size'], arm.factors['every']) for arm in plan_of('frequency').arms}
    assert pairs == {(size, every) for size in (64, 128) for every in ('none', 'batch', 'epoch')}
    shapes = [
        (arm.factors['surrogate'], arm.factors['loss'], arm.factors['cpng']) for arm in plan_of('surrogates').arms
    ]
    assert len({*shapes}) == 8
    assert {shape for shape, _, _ in shapes} == {'triangular', 'rectangular', 'arctan'}
    warm_ups = [arm.factors['warm_up'] for arm in plan_of('from_scratch').arms if arm.beta_of]
    assert warm_ups == [4, 0]  # a tenth of 40 epochs, and none
    swept = [arm.factors['beta'] for arm in plan_of('beta_sweep', values=[2.0, 0.5]).arms]
    assert swept == [0.5, 1, 2]


def test_rules_by_the_gain_are_compared_from_several_starts_and_at_several_depths():
    rules = [
        'fixed',
        'CPNG',
        'coherence and gain',
        'chi and gain',
        'gain',
        'gain by the width',
        'Condition IV',
        'CPNG x gain',
    ]
    swept = ['fixed at 0.25', 'fixed at 0.5', 'fixed at 0.75', 'fixed at 1.5']
    plan = plan_of('gain', values=[3.0, 0.5])
    assert [(arm.factors['rule'], arm.factors['beta']) for arm in plan.arms] == [
        (rule, beta) for rule in rules for beta in (0.5, 1.0, 3.0)
    ]
    assert {arm.baseline for arm in plan.arms} == {'fixed, beta = 1'}
    assert all(arm.changes['cpng.beta_init'] == arm.factors['beta'] for arm in plan.arms)
    config = digits.get_config()
    config.model.stages = ((8, 8), (16,), (32,))
    deep = plan_of('depth', config, [4, 9])
    assert [(arm.factors['rule'], arm.factors['layers']) for arm in deep.arms] == [
        (rule, layers) for layers in (4, 9) for rule in (*swept, *rules)
    ]
    assert {arm.label: arm.baseline for arm in deep.arms}['gain, 9 layers'] == 'fixed, 9 layers'
    stages = {arm.factors['layers']: arm.changes['model.stages'] for arm in deep.arms}
    assert stages[4] == ((8, 8), (16,), (32,))
    assert [len(stage) for stage in stages[9]] == catalogue.spread(9, [2, 1, 1])
    assert all({*new} == {*old} for new, old in zip(stages[9], config.model.stages, strict=True))
    assert [plan.series for plan in (plan, deep)] == ['rule', 'rule']


def test_the_width_is_swept_by_chi_for_each_shape():
    plan = plan_of('width', values=[0.5, 0.9])
    shapes = ('triangular', 'rectangular', 'arctan')
    assert [(arm.factors['surrogate'], arm.factors['chi_target']) for arm in plan.arms] == [
        (shape, target) for shape in shapes for target in (0.5, 0.9)
    ]
    for arm in plan.arms:
        assert arm.changes == {
            'cpng.enabled': True,
            'cpng.rule': 'chi_gain',
            'cpng.chi_target': arm.factors['chi_target'],
            'neuron.surrogate': arm.factors['surrogate'],
        }
    assert (plan.factor, plan.series) == ('chi_target', 'surrogate')


def test_a_network_that_its_name_stands_for_is_deepened(tmp_path):
    config = cifar100_vgg16.get_config()
    cells = grid.cells_of(plan_of('depth', config, [13, 26]), config, [0], tmp_path)
    assert 'stages' not in config.model
    assert [len(stage) for stage in cells[0].config.model.stages] == [2, 2, 3, 3, 3]
    assert [len(stage) for stage in cells[-1].config.model.stages] == [4, 4, 6, 6, 6]
    validate(cells[-1].config, keys.table())


def test_a_residual_network_is_deepened_by_whole_blocks(tiny_config):
    tiny_config.model = {'name': 'resnet18', 'time_steps': 2}
    assert catalogue.deepened(tiny_config, 17) == {'model.blocks': (2, 2, 2, 2)}
    assert catalogue.deepened(tiny_config, 33) == {'model.blocks': (4, 4, 4, 4)}
    tiny_config.model = {'name': 'sew_resnet50', 'time_steps': 2}
    assert catalogue.deepened(tiny_config, 49) == {'model.blocks': (3, 4, 6, 3)}


@pytest.mark.parametrize(
    ('values', 'sentence'),
    [
        ([2.5], r'--values is 2\.5, expected numbers of layers, such as 8,16\.'),
        ([0.0], r'--values is 0, expected numbers of layers'),
        ([float('nan')], r'--values is nan, expected numbers of layers'),
        ([1], r'--values asks for too few layers: the network has 2 stages, and each needs one\.'),
    ],
)
def test_depths_are_numbers_of_layers_that_the_stages_can_share(values, sentence, tiny_config):
    with pytest.raises(UserError, match=sentence):
        plan_of('depth', tiny_config, values)


def test_a_network_without_layers_to_add_is_named(tiny_config):
    tiny_config.model = {'name': 'vgg', 'stages': (), 'head': (8,), 'time_steps': 2}
    with pytest.raises(UserError, match='--values asks for too few layers: the network has 0 stages'):
        catalogue.deepened(tiny_config, 8)


@given(shares=st.lists(st.integers(1, 40), min_size=1, max_size=6), more=st.integers(0, 60))
def test_layers_are_spread_in_proportion(shares, more):
    total = len(shares) + more
    counts = catalogue.spread(total, shares)
    assert sum(counts) == total
    assert min(counts) >= 1
    # No layer would be better off in another stage.
    for i, j in itertools.product(range(len(shares)), repeat=2):
        if counts[i] > 1:
            assert shares[i] / (counts[i] - 1) >= shares[j] / counts[j]
    assert catalogue.spread(sum(shares), shares) == shares


def test_some_arms_are_kept():
    plan = plan_of('from_scratch')
    assert plans.keep_arms(plan, []) == plan
    kept = plans.keep_arms(plan, ['found, at once', 'CPNG'])
    assert [arm.label for arm in kept.arms] == ['CPNG', 'found, at once']
    with pytest.raises(UserError, match=r"--arm is 'CPGN'; the nearest is 'CPNG' of fixed; CPNG; found, after 4"):
        plans.keep_arms(plan, ['CPGN'])
    with pytest.raises(UserError, match=r"'found, at once' takes the beta of 'CPNG': keep it, too, --arm='CPNG'"):
        plans.keep_arms(plan, ['fixed', 'found, at once'])


def test_equal_runs_of_two_experiments_share_a_folder(tmp_path):
    config = digits.get_config()

    def folder(name, label):
        (cell,) = (c for c in grid.cells_of(plan_of(name), config, [0], tmp_path) if c.arm.label == label)
        return cell.folder

    assert folder('beta_sweep', 'beta = 1') == folder('compare', 'fixed') == folder('chi_limit', 'fixed')
    assert (
        folder('chi_limit', 'chi_limit = 0.2') == folder('compare', 'CPNG') == folder('surrogates', 'triangular + CPNG')
    )
    assert folder('frequency', 'batch 64, epoch') == folder('compare', 'CPNG')
    assert folder('frequency', 'batch 128, epoch') != folder('compare', 'CPNG')


def test_results_in_a_folder_named_after_a_retired_key_are_found(tmp_path):
    config = digits.get_config()
    of = lambda: [c for c in grid.cells_of(plan_of('compare'), config, [0, 1], tmp_path) if c.arm.label == 'DS-ATGO']
    first, second = (cell.folder for cell in of())
    assert first == tmp_path / 'cells' / 'cpng.enabled=False,neuron.kind=ds_atgo' / 'seed_0'
    old = tmp_path / 'cells' / 'cpng.enabled=False,neuron.ds_atgo=True' / 'seed_0'
    old.mkdir(parents=True)
    (old / 'result.json').write_text('{"epochs": 40}')
    stored = of()[0].config.to_dict()
    stored['neuron']['ds_atgo'] = stored['neuron'].pop('kind') == 'ds_atgo'
    (old / 'config.json').write_text(json.dumps(stored))
    assert [cell.folder for cell in of()] == [old, second]
    assert [result and result['epochs'] for result in map(grid.Cell.result, of())] == [40, None]
    workdir.check(old, of()[0].config, keys.table())
    first.mkdir(parents=True)
    assert of()[0].folder == first


def test_folders_of_deep_networks_have_short_names_and_those_of_older_results_are_found(tmp_path):
    config = digits.get_config()
    config.model.stages = ((8, 8), (16, 24), (32,))
    of = lambda layers: grid.cells_of(plan_of('depth', config, [layers]), config, [0], tmp_path)[-1].folder
    short = of(200).relative_to(tmp_path / 'cells').parts[0]
    assert short == 'cpng.rule=cpng_gain,model.stages=8x80_16x80_32x40'
    old = tmp_path / 'cells' / 'cpng.rule=cpng_gain,model.stages=((8, 8), (16, 16), (32,))' / 'seed_0'
    assert of(5).parent.name == 'cpng.rule=cpng_gain,model.stages=8x2_16x2_32'
    old.mkdir(parents=True)
    assert of(5) == old


@pytest.mark.parametrize('size', [0.5, float('inf'), float('nan')])
def test_sizes_of_a_batch_are_integers(size):
    with pytest.raises(UserError, match=rf'--values is {size:g}, expected sizes of a batch, such as 32,64\.'):
        plan_of('frequency', values=[size])


def test_arms_that_are_the_same_are_refused(tmp_path):
    config = digits.get_config()
    with pytest.raises(UserError, match=r'The arms chi_limit = 0\.2 and chi_limit = 0\.2 are the same'):
        grid.cells_of(plan_of('chi_limit', values=[0.2, 0.2]), config, [0], tmp_path)


def test_what_counts_in_some_arms_alone_has_its_default_in_the_others(tmp_path):
    config = digits.get_config()
    config.loss.tet_weight, config.optim.momentum = 0.5, 0.8  # of TET with Adam, and of the arms with SGD
    for cell in grid.cells_of(plan_of('surrogates', config), config, [0], tmp_path):
        tet = 'TET' in cell.arm.label
        assert (cell.config.loss.tet_weight, cell.config.optim.momentum) == ((0.5, 0.9) if tet else (1e-3, 0.8))
        refuse_idle([cell.config], keys.table())
    config.data.slicing = 'time'
    with pytest.raises(UserError, match=r"slicing is 'time', which has no effect with config\.data\.name 'digits'"):
        grid.cells_of(plan_of('surrogates', config), config, [0], tmp_path)
    config = digits.get_config()
    config.cpng.rule = 'fixed'
    with pytest.raises(
        UserError, match=r'config\.cpng\.chi_limit is 0\.05, which has no effect with config\.cpng\.rule'
    ):
        grid.cells_of(plan_of('chi_limit', config), config, [0], tmp_path)


@pytest.fixture(scope='module')
def finished(tmp_path_factory, shrink):
    """Three arms with two seeds, run: the plan, its cells, the workdir and what was reported."""
    config, workdir = shrink(digits.get_config()), tmp_path_factory.mktemp('experiments')
    config.epochs, config.batch_size, config.data.per_class = 2, 128, 0  # enough for CPNG to move beta
    plan = plan_of('from_scratch', config)
    plan = plan._replace(arms=plan.arms[:3])
    cells = grid.cells_of(plan, config, [0, 1], workdir)
    reported = []
    grid.run_cells(cells, lambda cell, row: reported.append((cell, row)))
    return plan, cells, workdir, reported


def epochs(folder):
    return [row for row in metrics.read(folder) if row['event'] == 'epoch']


@pytest.mark.trains
def test_every_cell_is_run_once_and_kept(finished, monkeypatch):
    _, cells, _, reported = finished
    assert [cell for cell, _ in reported] == cells
    assert [cell.result() for cell in cells] == [row for _, row in reported]
    monkeypatch.setattr(loop, 'run', None)  # would fail if called
    grid.run_cells(cells, lambda *_: pytest.fail('a finished cell was run'))


@pytest.mark.trains
def test_a_cell_that_was_stopped_goes_on(finished):
    *_, cells, _, _ = finished
    cell = cells[0]
    before, rows = cell.result(), epochs(cell.folder)
    (cell.folder / 'result.json').unlink()
    grid.run_cells([cell], lambda *_: None)
    assert cell.result() == before
    assert epochs(cell.folder) == rows


@pytest.mark.trains
def test_results_are_those_of_the_runs(finished):
    _, cells, _, _ = finished
    for cell in cells:
        row, rows = cell.result(), epochs(cell.folder)
        assert row['test_accuracy'] == rows[-1]['test_accuracy']
        assert row['best_accuracy'] == max(line['test_accuracy'] for line in rows)
        assert row['beta_mean'] == pytest.approx(np.mean([*rows[-1]['beta'].values()]))
        assert row['images_per_second'] == rows[1]['images_per_second']
        assert row['epochs'] == 2
        assert row['diverged'] == ''
        assert 'epoch   2/2' in (cell.folder / 'train.log').read_text()


@pytest.mark.trains
def test_the_beta_that_another_run_found_comes_after_its_epochs(finished):
    _, cells, _, _ = finished
    of = lambda label, seed: next(cell for cell in cells if (cell.arm.label, cell.seed) == (label, seed))
    for seed in (0, 1):
        found, source = epochs(of('found, after 1 epochs', seed).folder), epochs(of('CPNG', seed).folder)
        assert found[0]['beta'] == found[1]['beta'] == source[-1]['beta']
        assert set(found[0]['beta'].values()) != {1.0}
        # With the beta of the others until then, the first epoch is theirs.
        assert found[0]['train_loss'] == epochs(of('fixed', seed).folder)[0]['train_loss']


@pytest.mark.trains
def test_the_csv_has_a_line_for_each_cell(finished):
    _, cells, workdir, reported = finished
    lines = list(csv.DictReader(tables.results_csv(reported, workdir).splitlines()))
    assert [(line['arm'], int(line['seed'])) for line in lines] == [(cell.arm.label, cell.seed) for cell in cells]
    for line, (cell, row) in zip(lines, reported, strict=True):
        assert float(line['test_accuracy']) == row['test_accuracy']
        assert line['warm_up'] == str(cell.arm.factors['warm_up'])
        assert workdir / line['folder'] == cell.folder


def test_the_table_has_mean_spread_and_paired_differences():
    arms = (Arm('fixed', FIXED, {}), Arm('CPNG', CPNG, {}, 'fixed'), Arm('other', {}, {}, 'fixed'))
    plan = Plan('A title', 'Table 3', arms)
    row = dict.fromkeys(('best_accuracy', 'beta_mean', 'chi_mean', 'images_per_second'), 0.5) | {'diverged': ''}
    row |= {'scale_mean': 0.25, 'gain_mean': 1.5}
    row['validation_accuracy'] = None
    accuracies = {'fixed': [0.5, 0.75], 'CPNG': [0.5625, 0.875]}
    rows = [
        (grid.Cell(arm, seed, pathlib.Path(), None), row | {'test_accuracy': value})
        for arm in arms[:2]
        for seed, value in enumerate(accuracies[arm.label])
    ]
    text = tables.results_markdown(plan, rows)
    assert '# A title (Table 3)' in text
    assert '| to | beta | scale | chi | gain | images/s |' in text
    measured = '0.50 ± 0.00 | 0.25 ± 0.00 | 0.50 ± 0.00 | 1.50 ± 0.00'
    assert f'| fixed | 2 | 62.50 ± 17.68 | 50.00 ± 0.00 |  |  | {measured} |' in text
    # Differences of 6.25 and 12.5 points.
    assert '| CPNG | 2 | 71.88 ± 22.10 | 50.00 ± 0.00 | +9.38 (+6.25 to +12.50) | fixed |' in text
    assert '| other' not in text
    assert 'diverged' not in text
    assert 'chosen on the test split' in text
    by_validation = [(cell, row | {'validation_accuracy': 0.6}) for cell, row in rows]
    assert 'chosen on a validation split' in tables.results_markdown(plan, by_validation)
    rows[0][1]['diverged'] = 'Training diverged'
    assert '1 runs diverged' in tables.results_markdown(plan, rows)
    # A seed that the baseline lacks is left out of the difference.
    assert '| CPNG | 2 | 71.88 ± 22.10 | 50.00 ± 0.00 | +12.50 | fixed |' in tables.results_markdown(plan, rows[1:])
    # Compared with CPNG, fixed has the difference and CPNG has none.
    other = tables.results_markdown(plans.compared_with(plan, 'CPNG'), rows)
    assert '| fixed | 2 | 62.50 ± 17.68 | 50.00 ± 0.00 | -9.38 (-12.50 to -6.25) | CPNG |' in other
    assert '| CPNG | 2 | 71.88 ± 22.10 | 50.00 ± 0.00 |  |  |' in other
    with pytest.raises(UserError, match=r"--baseline is 'CPGN'; the nearest is 'CPNG' of fixed; CPNG; other\."):
        plans.compared_with(plan, 'CPGN')


def test_results_of_older_versions_are_read(tmp_path):
    (tmp_path / 'result.json').write_text('{"test_accuracy": 0.5, "best_accuracy": 0.6, "diverged": ""}')
    row = grid.Cell(Arm('fixed', {}, {}), 0, tmp_path, digits.get_config()).result()
    assert row is not None
    assert (row['test_accuracy'], row['best_accuracy'], row['validation_accuracy']) == (0.5, 0.6, None)
    assert row['scale_mean'] == 1
    assert np.isnan(row['gain_mean'])


def test_of_the_gain_the_mean_is_geometric_over_the_layers_that_have_one(tmp_path, undisturbed):
    (last,) = epochs(undisturbed[0])[-1:]

    def row_of(**changes):
        with metrics.MetricsWriter(tmp_path) as writer:
            row = {key: value for key, value in (last | changes).items() if key not in ('event', 'step', 'without')}
            writer.write('epoch', last['step'], {key: row[key] for key in row if key not in changes.get('without', ())})
        return grid.measured(tmp_path)

    row = row_of(gain={'a': 4.0, 'b': 0.25, 'c': None, 'd': 8.0}, scale={'a': 0.5, 'b': 1.0})
    assert (row['gain_mean'], row['scale_mean']) == (pytest.approx(2), 0.75)
    assert np.isnan(row_of(gain={'a': None})['gain_mean'])
    row = row_of(without=('scale', 'gain'))  # of an older version
    assert row['scale_mean'] == 1
    assert np.isnan(row['gain_mean'])


@pytest.mark.trains
def test_a_training_that_diverges_is_a_result(tmp_path, monkeypatch, tiny_config):
    def diverge(config, folder, build):
        raise DivergedError('Training diverged: the loss became NaN')

    monkeypatch.setattr(loop, 'run', diverge)
    cells = grid.cells_of(plan_of('compare', tiny_config), tiny_config, [0], tmp_path)
    grid.run_cells(cells[:1], lambda *_: None)
    row = cells[0].result()
    assert row['diverged'] == 'Training diverged: the loss became NaN'
    assert row['epochs'] == 0
    assert np.isnan(row['test_accuracy'])
    assert 'nan' in tables.results_markdown(plan_of('compare'), [(cells[0], row)])


def test_a_cell_that_another_job_is_running_is_waited_for(tmp_path, monkeypatch, tiny_config, capsys):
    """The other finishes one; another it leaves unfinished, and that is run here."""
    monkeypatch.setattr(grid, '_PAUSE', 0.01)
    cells = grid.cells_of(plan_of('compare', tiny_config), tiny_config, [0], tmp_path)[:2]
    others, ran, done = contextlib.ExitStack(), [], []

    def run(config, folder, build):
        with held(folder, 'The run'):
            ran.append(folder)

    look, looks = grid._look_into, itertools.count()

    def look_into(folder):
        if next(looks) % 3 == 2:  # the other ends
            if folder == cells[0].folder:
                write_json(folder / 'result.json', {'other': True})
            others.close()
        look(folder)

    monkeypatch.setattr(loop, 'run', run)
    monkeypatch.setattr(grid, '_look_into', look_into)
    for cell in cells:
        cell.folder.mkdir(parents=True)
        others.enter_context(held(cell.folder, 'The run'))
        grid.run_cells([cell], lambda cell, row: done.append((cell, row)))
    assert [cell for cell, _ in done] == cells
    assert done[0][1]['other'] is True
    assert ran == [cells[1].folder]
    assert done[1][1]['epochs'] == 0
    out = capsys.readouterr().out
    assert out.count('is under way in this process') == out.count('This job waits.') == 2


def test_a_damaged_result_is_named(tmp_path, tiny_config):
    cell = grid.cells_of(plan_of('compare', tiny_config), tiny_config, [0], tmp_path)[0]
    cell.folder.mkdir(parents=True)
    (cell.folder / 'result.json').write_text('{"test')
    with pytest.raises(UserError, match=r'result\.json is damaged'):
        cell.result()


@pytest.mark.trains
def test_pictures(finished, tmp_path):
    plan, _, _, reported = finished
    side_by_side = figures.draw(plan, reported, tmp_path / 'side.png')
    by_factor = figures.draw(
        plan._replace(
            factor='beta',
            arms=tuple(a._replace(factors={'beta': b}) for a, b in zip(plan.arms, (np.nan, 1, 2), strict=True)),
        ),
        reported,
        tmp_path / 'factor.png',
    )
    for path in (side_by_side, by_factor, figures.draw(plan, [], tmp_path / 'none.png')):
        assert path.read_bytes().startswith(b'\x89PNG')


def test_a_picture_has_a_curve_for_each_rule(monkeypatch, tmp_path):
    plan, figure = plan_of('gain', values=[0.25, 0.5, 2.0]), []
    monkeypatch.setattr(figures, 'save', lambda drawn, path: figure.append(drawn) or path)
    accuracy = {arm.label: 0.5 + 0.01 * number for number, arm in enumerate(plan.arms)}
    rows = [
        (grid.Cell(arm, seed, tmp_path, digits.get_config()), {'test_accuracy': accuracy[arm.label] + 0.01 * seed})
        for arm in plan.arms
        for seed in (0, 1)
    ]
    figures.draw(plan, rows, tmp_path / 'gain.png')
    (axes,) = figure[0].axes
    curves = [line for line in axes.get_lines() if not line.get_label().startswith('_')]
    assert [line.get_label() for line in curves] == [
        'fixed',
        'CPNG',
        'coherence and gain',
        'chi and gain',
        'gain',
        'gain by the width',
        'Condition IV',
        'CPNG x gain',
    ]
    assert len({str(line.get_color()) for line in curves}) == len(curves)
    for line, first in zip(curves, range(0, 4 * len(curves), 4), strict=True):
        np.testing.assert_allclose(line.get_xdata(), [0.25, 0.5, 1, 2])
        np.testing.assert_allclose(line.get_ydata(), 50.5 + np.arange(first, first + 4))
    assert axes.get_xscale() == 'log'


def run(*arguments, workdir):
    return forked.run('-m', 'cpng_jax.experiments', *arguments, f'--workdir={workdir}')


TINY = [
    *('--seeds=1', '--config.epochs=1', '--config.batch_size=256', '--config.model.time_steps=1'),
    '--config.model.stages=((4,),)',
]


@pytest.mark.processes
def test_the_command_runs_shards_and_writes_results(tmp_path):
    arguments = ['chi_limit', '--values=0.3', *TINY]
    first = run(*arguments, '--shard=1/2', workdir=tmp_path)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[0] == f'chi_limit, Table 2: 2 cells, of which 0 are finished; {tmp_path}'
    assert lines[1].startswith('[1/2] fixed, seed 0: test ')
    second = run(*arguments, '--shard=2/2', workdir=tmp_path)
    assert '[2/2] chi_limit = 0.3, seed 0' in second.stdout
    one = run(*arguments, '--arm=chi_limit = 0.3', '--norun', workdir=tmp_path)
    assert '1 cells, of which 1 are finished' in one.stdout
    assert '| fixed |' not in one.stdout
    again = run(*arguments, '--seeds=2', '--norun', workdir=tmp_path)
    assert '4 cells, of which 2 are finished' in again.stdout
    assert '| chi_limit = 0.3 | 1 |' in again.stdout
    assert f'{tmp_path}: chi_limit.csv, chi_limit.md, chi_limit.png' in again.stdout
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob('cells/*/seed_0/result.json'))]
    assert len(results) == len(list(csv.DictReader((tmp_path / 'chi_limit.csv').read_text().splitlines()))) == 2
    other = run(*arguments, '--config.batch_size=128', workdir=tmp_path)
    assert other.returncode == 2
    assert 'batch_size: 256 -> 128' in other.stderr


@pytest.mark.processes
@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ([], 'cpng_jax.experiments: expected the name of one experiment, one of beta_sweep, chi_limit, '),
        (['beta_swep'], "there is no experiment 'beta_swep'; the nearest is 'beta_sweep'"),
        (
            ['compare', '--values=1,2'],
            '--values is for beta_sweep, chi_limit, frequency, gain, width, depth, table4; compare has fixed arms.',
        ),
        (['beta_sweep', '--values=1,two'], "--values is '1,two', expected numbers, such as 0.5,1,2."),
        (['beta_sweep', '--values=-1'], 'config.cpng.beta_init is -1.0, expected a number above 0.'),
        (['compare', '--shard=3/2'], "--shard is '3/2', expected a part of a whole, such as 3/8."),
        (
            ['compare', '--config.cpng.chi_limt=0'],
            "config has no key 'cpng.chi_limt'; the nearest is 'cpng.chi_limit'.",
        ),
        (['compare', '--seeds=0'], 'flag --seeds=0'),
        (['gain', '--baseline=CPNG'], "--baseline is 'CPNG'; the nearest is 'CPNG, beta = "),
        (['beta_sweep', '--norun'], 'there is finished: leave --norun out to run them.'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_what_a_user_can_get_wrong_is_one_sentence(arguments, sentence, tmp_path):
    process = run(*arguments, workdir=tmp_path / 'there')
    assert process.returncode != 0
    assert sentence in process.stderr
    assert 'Traceback' not in process.stderr
    assert not (tmp_path / 'there').exists()


@pytest.mark.processes
def test_a_file_in_the_place_of_the_workdir_is_one_sentence(tmp_path):
    (tmp_path / 'file').write_text('')
    process = run('beta_sweep', *TINY, workdir=tmp_path / 'file')
    assert process.returncode == 2
    assert process.stderr.startswith(f'cpng_jax.experiments: Cannot write to {tmp_path}/file/cells/')
    assert process.stderr.endswith('Not a directory.\n')
