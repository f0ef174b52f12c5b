"""Draws an experiment: accuracy against a factor, or the arms side by side with the differences to their baselines."""

import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from cpng_jax.experiments.plan import Plan
from cpng_jax.experiments.statistics import mean_and_std
from cpng_jax.experiments.tables import Finished, difference, of_arm
from cpng_jax.runtime.plots import ACCENT, GREY, QUIET, new_figure, save, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES = {'beta': 'β at the start, the same in every layer', 'chi_limit': 'χ limit', 'layers': 'spiking layers'}


def draw(plan: Plan, finished: Finished, path: pathlib.Path) -> pathlib.Path:
    """Draws an experiment.

    Args:
      plan: the experiment.
      finished: its finished cells with their results.
      path: of the PNG.

    Returns:
      The path.
    """
    if plan.factor is not None:
        figure = new_figure(6.4, 4.2)
        _against_factor(figure.subplots(), plan, finished)
    else:
        figure = new_figure(10.5, 1.3 + 0.42 * len(plan.arms))
        left, right = figure.subplots(1, 2, sharey=True)
        _side_by_side(left, right, plan, finished)
    seeds = len({cell.seed for cell, _ in finished})
    figure.suptitle(f'{plan.title} ({plan.source}); {seeds} seed{"s" if seeds != 1 else ""}', fontsize=11)
    return save(figure, path)


def _against_factor(axes: 'Axes', plan: Plan, finished: Finished) -> None:
    """Draws each run as a dot and means joined by a line; arms whose factor is NaN, such as fixed, as a dashed line."""
    assert plan.factor is not None
    names = list(dict.fromkeys(arm.factors.get(plan.series or '') for arm in plan.arms))
    for name, colour in zip(names, _colours(len(names)), strict=True):
        points, means = [], []
        for arm in plan.arms:
            if arm.factors.get(plan.series or '') != name:
                continue
            accuracies = [100 * value for value in of_arm(finished, arm.label, 'test_accuracy').values()]
            mean, _ = mean_and_std(accuracies)
            value = arm.factors[plan.factor]
            if np.isfinite(value):
                points += [(value, accuracy) for accuracy in accuracies]
                means.append((value, mean))
            elif np.isfinite(mean):
                axes.axhline(mean, color=GREY, linestyle='--', linewidth=1, label=f'{arm.label}: {mean:.2f}')
        if points:
            one = name is None  # curve: its dots in a colour of their own
            dots: dict[str, Any] = {'color': QUIET, 'label': 'a run'} if one else {'color': colour, 'alpha': 0.35}
            axes.plot(*zip(*points, strict=True), 'o', markersize=4, **dots)
            axes.plot(*zip(*means, strict=True), color=colour, marker='o', label='mean' if one else name)
    if plan.factor == 'beta' and plan.series:
        axes.set_xscale('log', base=2)
        axes.xaxis.set_major_formatter('{x:g}')
    axes.set_xlabel(_AXES.get(plan.factor, plan.factor))
    axes.set_ylabel('test accuracy, last epoch [%]')
    axes.legend(frameon=False)
    tidy(axes)


def _colours(count: int) -> list[Any]:
    """Colours of curves: the accent for one, and the more that can be told apart, also by those who see no red."""
    from matplotlib import colormaps

    return [ACCENT] if count == 1 else [colormaps['viridis'](0.92 * index / (count - 1)) for index in range(count)]


def _side_by_side(left: 'Axes', right: 'Axes', plan: Plan, finished: Finished) -> None:
    """Draws the runs of each arm, from top to bottom, and beside them the difference to the arm's baseline."""
    for place, arm in enumerate(plan.arms):
        accuracies = [100 * value for value in of_arm(finished, arm.label, 'test_accuracy').values()]
        left.plot(accuracies, [place] * len(accuracies), 'o', color=QUIET, markersize=4)
        left.plot(mean_and_std(accuracies)[0], place, '|', color=ACCENT, markersize=16, markeredgewidth=2)
        interval = difference(finished, arm)
        if interval is not None:
            right.plot(100 * interval.mean, place, 'o', color=ACCENT)
            right.plot([100 * interval.low, 100 * interval.high], [place, place], color=ACCENT, linewidth=1.5)
    left.set_yticks(range(len(plan.arms)), [arm.label for arm in plan.arms])
    left.set_ylim(len(plan.arms) - 0.5, -0.5)  # from top to bottom
    left.set_xlabel('test accuracy, last epoch [%]: runs, mean')
    right.axvline(0, color=GREY, linestyle='--', linewidth=1)
    right.set_xlabel('difference to its baseline [points]: mean, 95 % interval')
    for axes in (left, right):
        tidy(axes)
