"""Summaries over seeds against SciPy and numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from cpng_jax.experiments.statistics import mean_and_std, paired_difference

accuracies = st.floats(0, 1, allow_nan=False)


@given(values=st.lists(accuracies, min_size=2, max_size=9))
def test_mean_and_std_are_those_of_numpy(values):
    mean, std = mean_and_std([*values, float('nan')])
    assert mean == pytest.approx(np.mean(values))
    assert std == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_of_one_value_there_is_no_spread_and_of_none_no_mean():
    assert mean_and_std([0.5])[0] == 0.5
    assert np.isnan(mean_and_std([0.5])[1])
    assert np.isnan(mean_and_std([float('nan')])).all()


def test_the_interval_is_the_percentile_bootstrap():
    rng = np.random.default_rng(3)
    values, baseline = rng.normal(0.9, 0.01, 12), rng.normal(0.89, 0.01, 12)
    mine = paired_difference(values, baseline)
    theirs = bootstrap(
        (values - baseline,), np.mean, n_resamples=20_000, method='percentile', rng=np.random.default_rng(1)
    ).confidence_interval
    assert mine.mean == pytest.approx((values - baseline).mean())
    assert mine.count == 12
    width = theirs.high - theirs.low
    assert mine[1:3] == pytest.approx((theirs.low, theirs.high), abs=0.05 * width)


@given(
    values=st.lists(accuracies, min_size=2, max_size=8),
    shift=st.floats(-0.5, 0.5),
)
def test_a_shift_moves_the_interval_and_a_swap_mirrors_it(values, shift):
    baseline = [0.5] * len(values)
    interval = paired_difference(values, baseline)
    assert interval.low <= interval.mean + 1e-9
    assert interval.mean - 1e-9 <= interval.high
    moved = paired_difference([value + shift for value in values], baseline)
    assert moved[:3] == pytest.approx([value + shift for value in interval[:3]], abs=1e-9)
    swapped = paired_difference(baseline, values)
    assert swapped.mean == pytest.approx(-interval.mean, abs=1e-9)


def test_pairs_without_a_result_are_left_out():
    nan = float('nan')
    assert paired_difference([0.5, nan, 0.75], [0.25, 0.5, 0.5])[:4] == (0.25, 0.25, 0.25, 2)
    assert paired_difference([nan], [0.5]).count == 0
    single = paired_difference([0.5], [0.25])
    assert single.mean == 0.25
    assert np.isnan(single.low)
    with pytest.raises(ValueError, match='one length, got 2 and 1'):
        paired_difference([0.5, 0.5], [0.5])


def test_coverage_with_five_pairs_is_as_the_docstring_says():
    rng = np.random.default_rng(0)
    intervals = [paired_difference(rng.normal(size=5), np.zeros(5)) for _ in range(1000)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert covered == pytest.approx(0.84, abs=0.03)
