"""Draws one image on its way through a network: a row for each layer, spikes on the left, potentials on the right."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cpng_jax.analysis.histograms import DOMAIN
from cpng_jax.runtime.plots import ACCENT, GREY, QUIET, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

# Of the neurons whose potentials are drawn: what they are known by, and how they are marked among the spikes.
_TRACES = (('most spikes', '#1b4965'), ('few spikes', '#3f8f6b'), ('lowest', '#8e5ea2'))
# Characters of the name of a class below a time step, and steps that have room for names.
_NAME, _NAMED_STEPS = 10, 12


class Layer(NamedTuple):
    """What the neurons of a layer do.

    Attributes:
      name: of the layer.
      spikes: bool `[T, N]`.
      potentials: before the reset, `[T, N]`.
      currents: `[T, N]`.
      threshold: `[T]`.
      radius: half the width of the effective domain, `[T, 1]`, or `[T, channels]`, where neuron n is of channel n %
        channels.
    """

    name: str
    spikes: np.ndarray
    potentials: np.ndarray
    currents: np.ndarray
    threshold: np.ndarray
    radius: np.ndarray

    @property
    def silent(self) -> float:
        """Share of the neurons without a spike."""
        return float(np.mean(~self.spikes.any(axis=0)))


class Drawn(NamedTuple):
    """A layer with the indices of neurons whose spikes, and of those whose potentials too, are drawn."""

    layer: Layer
    neurons: np.ndarray
    traced: np.ndarray


class Passage(NamedTuple):
    """An image and what the network answers.

    Attributes:
      image: uint8 `[H, W, C]`, or events `[T, H, W, C]`.
      label: true class.
      outputs: `[T, classes]`, whose mean over time decides.
      names: of the classes.
    """

    image: np.ndarray
    label: int
    outputs: np.ndarray
    names: list[str]

    @property
    def decided(self) -> np.ndarray:
        """The class decided by the outputs up to each step, `[T]`."""
        return np.argmax(np.cumsum(self.outputs, axis=0), axis=1)

    def in_words(self) -> str:
        """What the image is taken for, what it is, and since when."""
        decided = self.decided
        last = decided[-1]
        since = 1 + int(np.max(np.flatnonzero(decided != last), initial=-1)) + 1
        right = 'rightly' if last == self.label else f'truly {self.names[self.label]}'
        return f'taken for {self.names[last]}, {right}, by the mean output from step {since} on'


def draw(passage: Passage, layers: Sequence[Drawn], title: str) -> 'Figure':
    """Draws the image and the outputs, and below them a row for each layer.

    Args:
      passage: the image and the outputs.
      layers: the layers, first to last.
      title: of the figure.

    Returns:
      The figure.
    """
    columns = 1 + len(_TRACES)
    figure = new_figure(9.6, 2.4 + 1.25 * len(layers))
    grid = figure.add_gridspec(
        1 + len(layers), columns, height_ratios=[1.3, *[1] * len(layers)], width_ratios=[1.4, 1, 1, 1]
    )
    _show_image(figure.add_subplot(grid[0, 0]), passage.image)
    _draw_outputs(figure.add_subplot(grid[0, 1:]), passage)
    for row, drawn in enumerate(layers, start=1):
        last = row == len(layers)
        _draw_spikes(figure.add_subplot(grid[row, 0]), drawn, labelled=last)
        _draw_traces(figure, grid, row, drawn, last=last)
    handles, names = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, names, loc='outside lower center', ncols=len(names), frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def _show_image(axes: 'Axes', image: np.ndarray) -> None:
    """Shows an image; of events all frames, side by side."""
    events = image.ndim == 4
    if events:
        # Polarities summed; rows and columns of frames, with black lines between.
        frames = np.pad(image.sum(axis=-1, dtype=np.float64), ((0, 0), (0, 1), (0, 1)))
        columns = len(frames) if len(frames) < 4 else -(-len(frames) // 2)
        frames = np.concatenate([frames, np.zeros((-len(frames) % columns, *frames.shape[1:]))])
        image = np.block([[*frames[start : start + columns]] for start in range(0, len(frames), columns)])[..., None]
    axes.imshow(image if image.shape[-1] == 3 else image.sum(axis=-1), cmap='gray')
    axes.set_title('frames' if events else 'image', fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _draw_outputs(axes: 'Axes', passage: Passage) -> None:
    """Draws the output of each class at each step, and names the class decided so far below it."""
    steps = np.arange(1, len(passage.outputs) + 1)
    decided = passage.decided
    axes.plot(steps, passage.outputs, color='#c5ccd6', linewidth=0.8, marker='.', markersize=3)
    if decided[-1] != passage.label:
        axes.plot(steps, passage.outputs[:, passage.label], 'k.--', linewidth=1.2)
    axes.plot(steps, passage.outputs[:, decided[-1]], color=ACCENT, linewidth=1.6, marker='.')
    if len(steps) <= _NAMED_STEPS:
        names = [passage.names[place][:_NAME] for place in decided]
        axes.set_xticks(steps, [f'{step}\n{name}' for step, name in zip(steps, names, strict=True)])
    axes.set_xlim(0.5, len(steps) + 0.5)
    axes.tick_params(labelsize=7)
    axes.set_title(f'outputs by class; below, the class by their mean so far: {_answer(passage)}', fontsize=8)
    axes.spines[['top', 'right']].set_visible(False)


def _answer(passage: Passage) -> str:
    """The class decided at the end, and what it should be."""
    last = passage.decided[-1]
    name = passage.names[last]
    return f'{name} (right)' if last == passage.label else f'{name} (wrong; dashed: {passage.names[passage.label]})'


def _draw_spikes(axes: 'Axes', drawn: Drawn, *, labelled: bool) -> None:
    """Draws the spikes: a line for each neuron, and marks beside those whose potentials are drawn."""
    spikes, steps = drawn.layer.spikes[:, drawn.neurons], len(drawn.layer.spikes)
    count = len(drawn.neurons)
    axes.imshow(
        spikes.T,
        cmap='Greys',
        vmin=-0.05,
        vmax=1,
        aspect='auto',
        interpolation='nearest',
        extent=(0.5, steps + 0.5, count - 0.5, -0.5),
    )
    axes.vlines(np.arange(1, steps) + 0.5, -0.5, count - 0.5, color='white', linewidth=1.5)
    for neuron, (_, colour) in zip(drawn.traced, _TRACES, strict=False):
        place = int(np.searchsorted(drawn.neurons, neuron))
        axes.plot(steps + 0.5, place, marker='<', color=colour, markersize=5, clip_on=False, zorder=3)
    rate = float(drawn.layer.spikes.mean())
    spiking = f'{rate:.0%}' if rate == 0 or rate >= 0.005 else 'below 1%'
    axes.set_title(f'{drawn.layer.name}: {spiking} spike, {drawn.layer.silent:.0%} silent', fontsize=8)
    axes.set_ylabel(f'{count} of\n{drawn.layer.spikes.shape[1]:,}', fontsize=7)
    axes.set_yticks([])
    _step_axis(axes, steps, labelled=labelled)


def _draw_traces(figure: 'Figure', grid: 'GridSpec', row: int, drawn: Drawn, *, last: bool) -> None:
    """Draws potentials and currents of a layer's traced neurons, with one vertical axis."""
    layer = drawn.layer
    values = np.concatenate(
        [layer.potentials[:, drawn.traced].ravel(), layer.currents[:, drawn.traced].ravel(), layer.threshold, [0.0]]
    )
    low, high = np.min(values), np.max(values)
    room = 0.1 * (high - low)
    for column, (neuron, (name, colour)) in enumerate(zip(drawn.traced, _TRACES, strict=False), start=1):
        axes = figure.add_subplot(grid[row, column])
        _draw_trace(axes, layer, int(neuron), colour)
        axes.set_ylim(low - room, high + room)
        axes.tick_params(labelsize=7, labelleft=column == 1)
        axes.set_title(f'{name}: neuron {neuron}' if row == 1 else f'neuron {neuron}', fontsize=7, color=colour)
        _step_axis(axes, len(layer.spikes), labelled=last)


def _draw_trace(axes: 'Axes', layer: Layer, neuron: int, colour: str) -> None:
    steps = np.arange(1, len(layer.spikes) + 1)
    radius = layer.radius[:, neuron % layer.radius.shape[1]]
    edges = np.append(steps - 0.5, steps[-1] + 0.5)
    hold = lambda values: np.append(values, values[-1])
    axes.fill_between(
        edges,
        hold(layer.threshold - radius),
        hold(layer.threshold + radius),
        step='post',
        color=DOMAIN,
        linewidth=0,
        label='domain',
    )
    axes.step(edges, hold(layer.threshold), where='post', color=GREY, linestyle='--', linewidth=0.8, label='threshold')
    axes.bar(steps, layer.currents[:, neuron], 0.35, color=QUIET, alpha=0.6, label='current')
    u, fired = layer.potentials[:, neuron], layer.spikes[:, neuron]
    axes.plot(steps, u, color=colour, linewidth=1, marker='o', markersize=3, markerfacecolor='white', label='potential')
    axes.plot(steps[fired], u[fired], color=ACCENT, marker='D', markersize=5, linestyle='', label='spike')
    axes.axhline(0, color='#dddddd', linewidth=0.6, zorder=0)
    axes.spines[['top', 'right']].set_visible(False)


def _step_axis(axes: 'Axes', steps: int, *, labelled: bool) -> None:
    """An axis of whole time steps, whose numbers stand at the lowest row alone."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0.5, steps + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(min(steps, 10), integer=True, min_n_ticks=1))
    axes.tick_params(labelsize=7, labelbottom=labelled)
    if labelled:
        axes.set_xlabel('time step', fontsize=7)
