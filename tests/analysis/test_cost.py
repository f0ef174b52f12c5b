"""Costs against counts by hand."""

import csv

import numpy as np
import pytest

from cpng_jax.analysis import cost

# 8 x 8 digits, a static image, through 4 and 8 channels and 10 outputs, at two time steps.
FIRST = 8 * 8 * 9 * 1 * 4  # convolved once
SECOND = 2 * 4 * 4 * 9 * 4 * 8
OUTPUT = 2 * (4 * 4 * 8) * 10
POTENTIALS = 2 * (8 * 8 * 4 + 4 * 4 * 8)


def read(path):
    return {row['quantity']: row for row in csv.DictReader(path.read_text().splitlines())}


@pytest.mark.trains
def test_counts_are_those_by_hand(run):
    written = cost.analyse(run)
    assert [path.name for path in written] == ['cost.csv', 'cost.md']
    rows = read(written[0])
    value = lambda quantity, column='with CPNG': float(rows[quantity][column])
    multiply_adds = FIRST + SECOND + OUTPUT
    assert value('multiply-adds of a forward pass, G') == pytest.approx(multiply_adds / 1e9)
    assert value('operations for the statistics, G') == pytest.approx(4 * POTENTIALS / 1e9)
    assert value('statistics to multiply-adds, %') == pytest.approx(100 * 4 * POTENTIALS / multiply_adds)
    assert 0 < value('spiking operations of a forward pass, G') < multiply_adds / 1e9
    seconds = np.median([row['seconds'] for row in run.epochs[1:]])
    other = np.median([row['seconds'] for row in run.versus.epochs[1:]])
    assert value('training of an epoch, s') == pytest.approx(seconds)
    assert value('training of an epoch, s', 'without CPNG') == pytest.approx(other)
    assert value('training of an epoch to that of the other run') == pytest.approx(seconds / other)
    assert value('Algorithm 1 in an epoch, times') == 1
    assert value('Algorithm 1 in an epoch, times', 'without CPNG') == 0
    once = value('Algorithm 1, once, s')
    assert 0 < once < 1
    assert value('Algorithm 1 to training of an epoch, %') == pytest.approx(100 * once / seconds)


@pytest.mark.trains
def test_the_papers_numbers_stand_beside(run):
    paper = {name: row[cost.PAPER] for name, row in read(cost.analyse(run)[0]).items()}
    assert float(paper['multiply-adds of a forward pass, G']) == 1.7
    assert float(paper['operations for the statistics, G']) == 5.59e-3
    assert float(paper['training of an epoch to that of the other run']) == pytest.approx(1.0157, abs=1e-4)


@pytest.mark.trains
def test_a_run_by_itself_has_one_column(run, workdir):
    alone = type(run)(workdir)
    rows = read(cost.analyse(alone)[0])
    assert list(next(iter(rows.values()))) == ['quantity', 'this run', cost.PAPER]
    assert 'training of an epoch to that of the other run' not in rows
