"""The systems of Table 4: measured once, written as tables, drawn."""

import csv
import shutil

import pytest

from configs import digits
from cpng_jax.experiments import grid, systems, table4
from cpng_jax.experiments.plan import keep_arms
from cpng_jax.runtime import metrics
from cpng_jax.runtime.errors import UserError

LABELS = ['CPNG', 'ANN, QCFS']
DIET = ['ANN without norms', 'Diet-SNN']


@pytest.fixture(scope='module')
def measured(shrink, tmp_path_factory):
    """Two systems with two seeds: the plan, the cells and the folder."""
    folder = tmp_path_factory.mktemp('table4')
    config = shrink(digits.get_config())
    plan = keep_arms(systems.table4(config, [4.0]), LABELS)
    cells = grid.cells_of(plan, config, [0, 1], folder)
    grid.run_cells(cells[: len(LABELS)], lambda cell, row: table4.measure(plan, cell, lambda line: None))
    for cell in cells[len(LABELS) :]:  # as if a second seed had done as the first
        shutil.copytree(cell.folder.with_name('seed_0'), cell.folder)
    return plan, cells, folder


def test_a_row_for_each_system_number_of_steps_and_seed(measured):
    _, cells, _ = measured
    rows = table4.rows_of(cells)
    found = {(row['system'], row['time_steps'], row['seed']) for row in rows}
    of_seed = [('CPNG', 2), ('ANN, QCFS', None), ('Bu et al., QCFS', 4)]
    assert found == {(*each, seed) for each in of_seed for seed in (0, 1)}
    assert len(rows) == len(found)
    for row in rows:
        assert 0.1 < row['test_accuracy'] <= 1 and row['training_seconds'] > 0 and row['operations'] > 0
        assert (row['firing_rate'] is None) == (row['time_steps'] is None)
        assert (row['conversion_seconds'] is None) == (row['system'] in LABELS)


def test_nothing_is_measured_twice(measured, monkeypatch):
    plan, cells, _ = measured
    for name in ('activity', 'restore'):
        monkeypatch.setattr(table4, name, None)
    monkeypatch.setattr(table4.convert, 'read', None)
    before = table4.rows_of(cells)
    for cell in cells:
        table4.measure(plan, cell, lambda line: None)
    assert table4.rows_of(cells) == before


def test_tables_and_picture(measured):
    plan, cells, folder = measured
    finished = [(cell, cell.result()) for cell in cells]
    written = table4.write('table4', plan, finished, folder)
    with written[0].open() as file:
        lines = [*csv.DictReader(file)]
    assert len(lines) == 6 and {line['seed'] for line in lines} == {'0', '1'}
    assert (folder / lines[0]['folder'] / 'metrics.jsonl').is_file()
    text = written[1].read_text()
    table = [line.split(' | ') for line in text.splitlines() if line.startswith('| ')][2:]
    assert [row[0].removeprefix('| ') for row in table] == ['CPNG', 'ANN, QCFS', 'Bu et al., QCFS']
    assert [row[1] for row in table] == ['2', '', '4']
    assert table[0][4] == '' and all(row[4] for row in table[1:])
    assert table4.draw(plan, table4.rows_of(cells), folder / 'table4.png').stat().st_size > 5_000


def test_diet_snn_goes_on_from_its_ann(shrink, tmp_path):
    config = shrink(digits.get_config())
    config.epochs = 1
    plan = keep_arms(systems.table4(config, [4.0]), DIET)
    cells = grid.cells_of(plan, config, [0], tmp_path)
    assert cells[1].needed == cells[0].folder.resolve()
    grid.run_cells(cells, lambda cell, row: table4.measure(plan, cell, lambda line: None))
    rows = {row['system']: row for row in table4.rows_of(cells)}
    assert rows['Diet-SNN']['time_steps'] == 2 and rows['ANN without norms']['time_steps'] is None
    start = metrics.read(cells[1].folder)[0]
    assert start['event'] == 'start' and 'convert/diet/T2' in start['source']
    with pytest.raises(UserError, match="'Diet-SNN' starts from 'ANN without norms': keep it, too"):
        keep_arms(systems.table4(config, None), ['Diet-SNN'])


def test_conversions_are_for_whole_numbers_of_steps():
    with pytest.raises(UserError, match=r'--values is 8,2\.5, expected numbers of time steps'):
        systems.table4(digits.get_config(), [8.0, 2.5])


def test_a_damaged_file_is_named(measured):
    _, cells, _ = measured
    path = cells[0].folder / 'systems.json'
    kept = path.read_text()
    path.write_text('[')
    with pytest.raises(UserError, match='is damaged'):
        table4.rows_of(cells)
    path.write_text(kept)
