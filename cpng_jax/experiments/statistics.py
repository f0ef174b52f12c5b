"""Statistics over seeds: mean, standard deviation, and paired differences with a bootstrap interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean with a 95 % interval; the interval is NaN where there is a single value.

    Attributes:
      mean: of the values.
      low: its lower end.
      high: its upper end.
      count: number of values.
    """

    mean: float
    low: float
    high: float
    count: int


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of a sample.

    Args:
      values: at least one; NaN, of runs without a result, are left out.

    Returns:
      `(mean, std)`; std divides by n - 1 and is NaN for a single value; both are NaN where nothing is left.
    """
    finite = np.asarray([value for value in values if np.isfinite(value)], np.float64)
    if not len(finite):
        return float('nan'), float('nan')
    return float(finite.mean()), float(finite.std(ddof=1)) if len(finite) > 1 else float('nan')


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Mean of the differences of pairs, with a percentile bootstrap interval of 95 %.

    The pairs are resampled, 10,000 times, with the same random numbers each time. With few pairs such an interval is
    too short: of five it covers the true mean in about 84 % of cases where differences are normal.

    Args:
      values: one for each seed.
      baseline: of the same seeds. Pairs with a NaN are left out.

    Returns:
      The `Interval`, in the units of the values.

    Raises:
      ValueError: the two are not of one length.
    """
    if len(values) != len(baseline):
        raise ValueError(f'values and baseline must have one length, got {len(values)} and {len(baseline)}.')
    differences = np.subtract(values, baseline, dtype=np.float64)
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return Interval(*[float('nan')] * 3, count=0)
    mean = float(differences.mean())
    if len(differences) == 1:
        return Interval(mean, float('nan'), float('nan'), 1)
    draws = np.random.default_rng(0).integers(len(differences), size=(_RESAMPLES, len(differences)))
    low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
    return Interval(mean, float(low), float(high), len(differences))
