import csv

import pytest

from cpng_jax.analysis import beta, chi
from cpng_jax.analysis.run import Run
from cpng_jax.runtime import metrics
from cpng_jax.runtime.errors import UserError


@pytest.mark.trains
def test_chi_of_every_epoch_is_in_the_table(run):
    drawing, table = chi.analyse(run)
    assert drawing.name == 'chi.png'
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 2 * 3 * 2  # runs, epochs, layers
    found = {(row['run'], int(row['epoch']), row['layer']): float(row['chi']) for row in rows}
    for each in (run, run.versus):
        for row in metrics.read_epochs(each.workdir):
            for layer, value in row['chi'].items():
                assert found[str(each.workdir), row['epoch'], layer] == value


@pytest.mark.trains
def test_final_beta_of_both_runs_is_in_the_table(run):
    _, table, text = beta.analyse(run)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    last = run.epochs[-1]['beta']
    assert {row['layer']: float(row['β with CPNG']) for row in rows} == last
    assert {row['β without CPNG'] for row in rows} == {'1.0'}
    assert f'| conv01/lif | {last["conv01/lif"]:.4g} | 1 |' in text.read_text()


@pytest.mark.trains
def test_runs_of_different_networks_have_no_pairs(run, tmp_path):
    other = Run(tmp_path)
    (tmp_path / 'config.json').write_text((run.workdir / 'config.json').read_text())
    row = '{"event": "epoch", "step": 1, "epoch": 1, "beta": {"conv01/lif": 1.0}}'
    (tmp_path / 'metrics.jsonl').write_text(f'{row}\n')
    with pytest.raises(UserError, match=r'has 1 layers .* and that in .* 2, .* --versus takes a run of the same'):
        beta.analyse(Run(run.workdir, versus=other))
