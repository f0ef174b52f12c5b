"""python -m cpng_jax.analysis as a user meets it."""

import functools
import json
import pathlib
import shutil

import pytest

from cpng_jax.analysis.run import Run, labels
from tests import forked

analyse = functools.partial(forked.run, '-m', 'cpng_jax.analysis')


@pytest.fixture
def folders(tmp_path, workdir):
    """Folders that are not what an analysis needs, by name."""
    made = {name: tmp_path / name for name in ('empty', 'unfinished', 'damaged', 'no_checkpoint')}
    for folder in made.values():
        folder.mkdir()
    shutil.copy(workdir / 'config.json', made['unfinished'])
    (made['damaged'] / 'config.json').write_text('{')
    shutil.copy(workdir / 'config.json', made['no_checkpoint'])
    shutil.copy(workdir / 'metrics.jsonl', made['no_checkpoint'])
    occupied = shutil.copytree(workdir, tmp_path / 'occupied')
    for name in ('chi.csv', 'chi.tmp', 'chi.png'):
        (occupied / 'analysis' / name).mkdir(parents=True)
    return made | {'run': workdir, 'nowhere': tmp_path / 'nowhere', 'occupied': occupied}


@pytest.mark.trains
@pytest.mark.processes
@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ([], 'expected the name of an analysis, one of membrane, chi, beta, cost, '),
        (
            ['membran', '--workdir={run}'],
            "there is no analysis 'membran'; the nearest is 'membrane' of membrane, chi, ",
        ),
        (['chi'], 'expected --workdir, the folder of a run.'),
        (['chi', '--workdir={nowhere}'], 'There is no run in {nowhere}: it has no config.json.'),
        (['membrane', '--workdir={empty}'], 'There is no run in {empty}: it has no config.json.'),
        (['beta', '--workdir={unfinished}'], 'The run in {unfinished} has not finished an epoch: train it first.'),
        (['membrane', '--workdir={no_checkpoint}'], 'There is no checkpoint in {no_checkpoint}: train at least'),
        (['chi', '--workdir={damaged}'], 'config.json is damaged'),
        (['chi', '--workdir={run}', '--versus={empty}'], 'There is no run in {empty}: it has no config.json.'),
        (['chi', '--workdir={run}', '--versus={run}'], 'the run of --workdir itself: expected another.'),
        (['report', '--workdir={nowhere}'], 'There is nothing to report in {nowhere}: expected the folder of a run or'),
        (['chi', '--workdir={run}', '--checkpoint=first'], 'latest|best'),
        (
            ['saliency', '--workdir={run}', '--option=image=2'],
            "--option is 'image=2', expected KEY=VALUE with a key of",
        ),
        (['saliency', '--workdir={run}', '--option=images'], "--option is 'images', expected KEY=VALUE with a key of"),
        (
            ['chi', '--workdir={run}', '--option=images=2'],
            'a key of chi: none, which only gradients, gain, direction, saliency, landscape, raster and energy take',
        ),
        (
            ['saliency', '--workdir={run}', '--option=images=few'],
            "--option is images='few', expected a value like that",
        ),
        (['saliency', '--workdir={run}', '--option=beta=wide'], 'wide'),
        (['chi', '--workdir={occupied}'], 'Cannot read or write {occupied}/analysis/chi.'),
        (['landscape', '--workdir={run}', '--option=count=3'], 'count is 3, expected at least 5'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_what_a_user_can_get_wrong_is_one_sentence(arguments, sentence, folders):
    process = analyse(*(argument.format(**folders) for argument in arguments))
    assert process.returncode != 0
    assert sentence.format(**folders) in process.stderr
    assert 'Traceback' not in process.stderr
    assert not (folders['empty'] / 'analysis').exists()


@pytest.mark.trains
@pytest.mark.processes
def test_all_of_it_at_once(workdir, fixed_workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / 'run')
    process = analyse('membrane', 'chi', 'beta', 'cost', 'report', f'--workdir={run}', f'--versus={fixed_workdir}')
    assert process.returncode == 0, process.stderr
    written = [pathlib.Path(line) for line in process.stdout.splitlines()]
    names = ['membrane.png', 'membrane.csv', 'membrane.md', 'chi.png', 'chi.csv', 'beta.png', 'beta.csv', 'beta.md']
    assert [path.name for path in written] == [*names, 'cost.csv', 'cost.md', 'report.html']
    assert sorted(written) == sorted((run / 'analysis').iterdir())


@pytest.mark.trains
def test_runs_are_named_by_what_differs(workdir, fixed_workdir, tmp_path):
    assert labels(Run(workdir), Run(fixed_workdir)) == ('with CPNG', 'without CPNG')
    config = json.loads((workdir / 'config.json').read_text())
    config['cpng']['chi_limit'] = 0.1
    (tmp_path / 'config.json').write_text(json.dumps(config))
    assert labels(Run(tmp_path), Run(workdir)) == ('cpng.chi_limit=0.1', 'cpng.chi_limit=0.2')
    config['cpng']['chi_limit'] = 0.2
    config['log']['every_steps'] = 77
    (tmp_path / 'config.json').write_text(json.dumps(config))
    assert labels(Run(tmp_path), Run(workdir)) == (str(tmp_path), str(workdir))


@pytest.mark.trains
@pytest.mark.processes
def test_saliency_and_landscape_take_their_options(workdir):
    options = ['images=3', 'samples=2', 'beta=trained', 'count=5', 'lines_drawn=2', 'radius=0.5']
    process = analyse('saliency', 'landscape', f'--workdir={workdir}', *(f'--option={option}' for option in options))
    assert process.returncode == 0, process.stderr
    written = [pathlib.Path(line) for line in process.stdout.splitlines()]
    names = ['saliency.png', 'landscape_1d.png', 'landscape_2d.png', 'landscape.csv']
    assert [path.name for path in written] == names
    assert all(path.stat().st_size for path in written)
    assert len((workdir / 'analysis' / 'landscape.csv').read_text().splitlines()) == 1 + 2 * 5 + 5 * 5
