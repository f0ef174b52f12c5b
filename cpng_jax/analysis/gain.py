"""The gain of the neurons of each layer: what docs/gain.md predicts against what probes of the gradient measure.

Of a layer with currents c, spikes s and firing rate r, S = sum (dL/dc)^2 Var(c) and Q = sum (dL/ds)^2 r (1 - r), over
all time steps, examples and neurons. The gain is S / Q. From a layer to the one before it the norm of a gradient grows
by its square root, and by that of the Q of a layer over the S of the next, which is 1 where what lies between conserves
it.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cpng_jax.analysis.compared import Compared, check_betas, check_comparable, check_options, state_with
from cpng_jax.analysis.probes import AS_RUN, Layers, errors, gains, settings_of
from cpng_jax.control.gradient_gain import Gradients
from cpng_jax.control.layer_tree import layer_paths
from cpng_jax.runtime import plots, tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_NOTE = (
    'The factor by which the norm of a gradient grows through the neurons of a layer on its way back, predicted and '
    'measured by probes, on {images} training images without augmentation, normalised as in training. `setting` is the '
    'beta of all layers, at height 1. `u_mean`, `u_variance`: of the potentials; `currents`: variance of the '
    'currents; `correlation`: of the gradients by the spikes of a neuron at two time steps. `predicted` takes it as '
    '{assumed:g}, `informed` as it was measured. `between`: the factor of what lies between a layer '
    'and the one after it, 1 where it conserves the gradient; below 1 at an average pool.\n\n{errors}'
)
_GROWTH = ('predicted', 'informed', 'measured', 'between')
# What the axes of growth factors may have a tick at.
_TICKS = [digit * 10.0**power for power in range(-4, 5) for digit in (1, 1.5, 2, 3, 5, 7)]


def draw(
    runs: Sequence[Compared],
    folder: pathlib.Path,
    *,
    betas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 3.0),
    weights: str = 'start',
    images: int = 64,
) -> list[pathlib.Path]:
    """Draws the growth of gradients through the neurons of each layer, as predicted and as measured, run below run.

    Args:
      runs: one or more, on the same data.
      folder: where the results go; made when missing.
      betas: width parameters, each for all layers, with scale 1; the widths and heights that the run has besides.
      weights: 'start', those that training began with, or 'trained'.
      images: of the training split, at even distances; all of them, if they are fewer.

    Returns:
      `gain.png`, `gain.csv` and `gain.md`.

    Raises:
      UserError: the runs have different data, neurons without a fixed threshold, or an option lies outside its range.
    """
    check_comparable(runs)
    check_options(images=(images, 1))
    check_betas(betas)
    states = [state_with(run, weights) for run in runs]
    found: list[dict[str, Layers]] = []
    for run, state in zip(runs, states, strict=True):
        settings = settings_of(state, betas)
        found.append(dict(zip(settings, gains(run, state, list(settings.values()), images), strict=True)))
    rows = []
    for run, state, by_setting in zip(runs, states, found, strict=True):
        names = layer_paths(state.surrogate)
        for setting, layers in by_setting.items():
            for name, numbers in zip(names, _rows(layers), strict=True):
                rows.append(
                    ({'run': run.label} if len(runs) > 1 else {}) | {'setting': setting, 'layer': name} | numbers
                )
    title = (
        f'Growth of gradients through neurons, {"trained weights" if weights == "trained" else "weights at the start"}'
    )
    note = _NOTE.format(
        images=min(images, len(runs[0].setup.dataset.train)),
        assumed=Gradients().correlation,
        errors=_errors_in_words([layers for by_setting in found for layers in by_setting.values()]),
    )
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _picture(runs, found, title, folder / 'gain.png'),
        *tables.write(folder / 'gain', rows, title=title, note=note),
    ]


def _rows(layers: Layers) -> list[dict[str, float | None]]:
    """Numbers of each layer by column, gains as growth factors."""
    columns = layers._asdict()
    for name in _GROWTH:
        columns[name] = np.sqrt(columns[name])
    known = lambda value: float(value) if np.isfinite(value) else None
    return [
        {name: known(value) for name, value in zip(columns, row, strict=True)}
        for row in np.transpose([*columns.values()])
    ]


def _errors_in_words(layers: Sequence[Layers]) -> str:
    found, total = errors(layers), sum(len(each.measured) for each in layers)
    if not found.size:
        return 'No layer passes a gradient.'
    without = f'; {total - found.size} of {total} pass none' if found.size < total else ''
    return (
        f'Over layers and settings `predicted` is off by {np.median(found):.1%} of `measured` in the median, by '
        f'{np.percentile(found, 90):.1%} at the 90th percentile{without}.'
    )


def _picture(
    runs: Sequence[Compared], found: Sequence[Mapping[str, Layers]], title: str, path: pathlib.Path
) -> pathlib.Path:
    """Draws for each run the factors by layer and, beside it, predicted against measured."""
    figure = plots.new_figure(10.5, 0.5 + 4.2 * len(runs))
    panels = figure.subplots(len(runs), 2, squeeze=False, width_ratios=(1.35, 1))
    for (by_layer, square), run, by_setting in zip(panels, runs, found, strict=True):
        factors = [np.sqrt((each.predicted, each.measured)) for each in by_setting.values()]
        defined = np.concatenate([each.ravel() for each in factors])
        defined = defined[np.isfinite(defined) & (defined > 0)]
        low, high = (defined.min() / 1.15, defined.max() * 1.15) if defined.size else (0.5, 2.0)
        low, high = min(low, 0.85), max(high, 1.18)
        _draw_by_layer(by_layer, by_setting, factors)
        _draw_square(square, by_setting, factors, (low, high))
        for axis in (by_layer.yaxis, square.xaxis, square.yaxis):
            _factor_axis(axis, low, high)
        config = run.setup.config
        by_layer.set_title(run.label if len(runs) > 1 else f'{config.model.name} on {config.data.name}', fontsize=10)
    figure.suptitle(title, fontsize=11)
    return plots.save(figure, path)


def _colours(settings: Sequence[str]) -> list[Any]:
    """One for each beta, the wider the darker; the run's own stands out."""
    from matplotlib import colormaps

    betas = len([setting for setting in settings if setting != AS_RUN])
    return [
        plots.ACCENT if setting == AS_RUN else colormaps['viridis'](0.9 * index / max(betas - 1, 1))
        for index, setting in enumerate(settings)
    ]


def _draw_by_layer(axes: 'Axes', by_setting: Mapping[str, Layers], factors: Sequence[np.ndarray]) -> None:
    """A line of predictions and dots of measurements for each setting."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    colours = _colours(list(by_setting))
    for colour, (predicted, measured) in zip(colours, factors, strict=True):
        depth = np.arange(1, len(measured) + 1)
        # A line of one point would not show.
        axes.plot(depth, predicted, color=colour, linewidth=1.4, marker='_' if len(depth) == 1 else None, markersize=30)
        axes.plot(depth, np.where(measured > 0, measured, np.nan), 'o', color=colour, markersize=4)
    axes.axhline(1, color=plots.GREY, linestyle='--', linewidth=1)
    axes.set_xlabel('depth of the layer')
    axes.set_ylabel('growth of the gradient through the neurons')
    axes.set_xlim(0.5, len(factors[0][0]) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    kinds = [
        Line2D([], [], color=plots.GREY, label='predicted'),
        Line2D([], [], color=plots.GREY, marker='o', linestyle='', markersize=4, label='measured'),
    ]
    names = [setting.replace('beta', 'β =') for setting in by_setting]
    widths = [
        Line2D([], [], color=colour, linewidth=4, label=name) for colour, name in zip(colours, names, strict=True)
    ]
    axes.legend(handles=widths[::-1] + kinds, frameon=False, fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
    plots.tidy(axes)


def _draw_square(
    axes: 'Axes', by_setting: Mapping[str, Layers], factors: Sequence[np.ndarray], limits: tuple[float, float]
) -> None:
    """Measured against predicted, with the diagonal and what is within a tenth of it."""
    ends = np.array(limits)
    axes.fill_between(ends, 0.9 * ends, 1.1 * ends, color='#e8e8e8', linewidth=0, label='±10 %')
    axes.plot(ends, ends, color=plots.GREY, linewidth=1)
    for colour, (predicted, measured) in zip(_colours(list(by_setting)), factors, strict=True):
        axes.plot(predicted, np.where(measured > 0, measured, np.nan), 'o', color=colour, markersize=4, alpha=0.8)
    found = errors(list(by_setting.values()))
    if found.size:
        axes.set_title(f'off by {np.median(found):.1%} in the median', fontsize=10)
    axes.set_xlabel('predicted')
    axes.set_ylabel('measured')
    axes.legend(frameon=False, fontsize=8, loc='upper left')
    axes.set_box_aspect(1)
    plots.tidy(axes)


def _factor_axis(axis: 'Axis', low: float, high: float) -> None:
    """A logarithmic axis with ticks that a reader knows."""
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

    axes, name = axis.axes, cast(Any, axis).axis_name
    axes.set(**{f'{name}scale': 'log', f'{name}lim': (low, high)})
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axis.set_major_locator(FixedLocator(ticks[:: 1 + len(ticks) // 12]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FormatStrFormatter('%g'))
