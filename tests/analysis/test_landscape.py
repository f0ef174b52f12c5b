import csv

import numpy as np
import pytest
from matplotlib.image import imread

from cpng_jax.analysis import landscape
from cpng_jax.analysis.compared import Compared
from cpng_jax.runtime.errors import UserError
from cpng_jax.training.evaluate import evaluate_split
from cpng_jax.training.setup import build


@pytest.fixture
def run(tiny_config):
    setup = build(tiny_config)
    return Compared('fixed', setup, setup.initial_state())


@pytest.mark.trains
def test_the_loss_in_the_centre_is_that_of_the_evaluation(run):
    loss = landscape.loss_of(run, images=10_000)(run.state.params)
    assert loss == pytest.approx(evaluate_split(run.setup, run.state).loss, rel=1e-6)
    few = landscape.loss_of(run, split='train', images=70)(run.state.params)
    assert few != pytest.approx(loss, rel=1e-6)


@pytest.mark.trains
def test_pictures_and_a_table_with_all_numbers(run, tmp_path):
    runs = [run, run._replace(label='CPNG')]
    paths = landscape.draw(runs, tmp_path / 'new', count=5, lines_drawn=3, images=40)
    assert [path.name for path in paths] == ['landscape_1d.png', 'landscape_2d.png', 'landscape.csv']
    for path in paths[:2]:
        height, width, _ = imread(path).shape
        assert 500 < height < 800
        assert 900 < width < 1600
    with paths[2].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (3 * 5 + 5 * 5)
    assert list(rows[0]) == ['run', 'drawing', 'direction_1', 'direction_2', 'direction_3', 'loss']
    # The plane's axes are the first two lines, and the same run gives the same numbers again.
    numbers = {}
    for row in rows:
        point = tuple(float(row[f'direction_{index}']) for index in (1, 2, 3))
        assert float(row['loss']) == pytest.approx(numbers.setdefault(point, float(row['loss'])), rel=1e-5)
    assert len(numbers) == 5 * 5 + 4


@pytest.mark.parametrize('losses', [np.full(25, np.log(10)), np.where(np.arange(25) < 3, np.inf, np.arange(25) / 25)])
def test_level_and_infinite_losses_are_drawn_too(losses, tmp_path):
    measured = [landscape.Measured('dead', losses[5:15].reshape(2, 5), losses.reshape(5, 5))] * 2
    for draw in (landscape.draw_lines, landscape.draw_plane):
        assert np.std(imread(draw(measured, 1.0, tmp_path / 'picture.png'))) > 0.02, 'an empty picture'


@pytest.mark.trains
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'count': 3}, 'count is 3, expected at least 5'),
        ({'count': 6}, 'count must be odd and at least 3, got 6'),
        ({'radius': -1.0}, 'radius must be above 0, got -1.0'),
        ({'lines_drawn': 1}, 'lines_drawn is 1, expected at least 2'),
        ({'images': 0}, 'images is 0, expected at least 1'),
    ],
)
def test_options_out_of_range_are_errors_of_the_user(run, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        landscape.draw([run], tmp_path, **options)
