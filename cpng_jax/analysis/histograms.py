"""Draws the distribution of membrane potentials, a panel for each layer (Fig. 2, 11 to 13)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np

from cpng_jax.control.effective_domain import domain_radius
from cpng_jax.nn.surrogate import get_surrogate
from cpng_jax.runtime.plots import ACCENT, GREY, QUIET, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOMAIN = '#fde3d3'


class Layer(NamedTuple):
    """The distribution of the membrane potentials of a layer.

    Attributes:
      name: its path.
      beta: width parameter; the mean where each channel has one.
      count: number of potentials.
      mean: of the potentials.
      std: standard deviation, biased.
      skewness: third standardised moment; 0 for a Gaussian, NaN where all potentials are equal.
      chi_gaussian: Eq. 6, from mean and std.
      chi_counted: share of the potentials that lie in the effective domain.
      edges: of the bins, `[B + 1]`.
      bins: number of potentials in each, `[B]`.
    """

    name: str
    beta: float
    count: int
    mean: float
    std: float
    skewness: float
    chi_gaussian: float
    chi_counted: float
    edges: np.ndarray
    bins: np.ndarray


def draw(layers: Sequence[Layer], v_th: float, surrogate: str, interval: str = 'paper') -> 'Figure':
    """Draws the potentials of each layer with the Gaussian of Eq. 6, the surrogate gradient and its effective domain.

    Args:
      layers: their distributions.
      v_th: threshold.
      surrogate: name of the shape.
      interval: which one chi counts, see `effective_domain.domain_half_width`.

    Returns:
      A figure with a panel for each layer.
    """
    columns = min(len(layers), 4 if len(layers) <= 40 else 6)
    rows = -(-len(layers) // columns)
    figure = new_figure(2.5 * columns + 0.3, 2.0 * rows + 0.9)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, layer in zip(panels, layers, strict=False):
        _draw_layer(axes, layer, v_th, surrogate, interval)
    for axes in panels[len(layers) :]:
        axes.set_visible(False)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc='outside lower center', ncols=min(len(names), 2 * columns), frameon=False)
    return figure


def _draw_layer(axes: 'Axes', layer: Layer, v_th: float, surrogate: str, interval: str) -> None:
    """Draws a panel; densities share the vertical axis, the surrogate gradient is scaled to their height."""
    radius = float(domain_radius(layer.beta, surrogate, interval))
    low, high = _limits(layer, v_th, radius)
    axes.axvspan(max(v_th - radius, low), min(v_th + radius, high), color=DOMAIN, linewidth=0, label='domain')
    density = layer.bins / (layer.count * np.diff(layer.edges))
    axes.stairs(density, layer.edges, fill=True, color=QUIET, label='potentials')
    x = np.linspace(low, high, 400)
    peak = density.max()
    if layer.std > 0:
        gaussian = np.exp(-0.5 * ((x - layer.mean) / layer.std) ** 2) / (layer.std * np.sqrt(2 * np.pi))
        axes.plot(x, gaussian, color='black', linewidth=1, label='Gaussian')
        # A spike of equal potentials, those of neurons without input, would make all else flat.
        peak = min(peak, 3 * gaussian.max())
    slope = np.asarray(get_surrogate(surrogate).gradient(jnp.asarray([*(x - v_th), 0.0]), jnp.asarray(layer.beta)))
    axes.plot(x, slope[:-1] * (0.9 * peak / slope[-1]), color=ACCENT, linewidth=1.2, label='surrogate gradient')
    axes.axvline(v_th, color=GREY, linestyle='--', linewidth=0.8, label='threshold')
    axes.set_xlim(low, high)
    axes.set_ylim(0, 1.1 * peak)
    axes.set_yticks([])
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(labelsize=8)
    name = layer.name.removesuffix('/lif')
    axes.set_title(f'{name}\nχ {layer.chi_gaussian:.3f}, counted {layer.chi_counted:.3f}', fontsize=8)


def _limits(layer: Layer, v_th: float, radius: float) -> tuple[float, float]:
    """Limits of the horizontal axis: the potentials and the domain, of a very wide domain only the near part."""
    spread = layer.std or 1.0
    low, high = layer.mean - 4 * spread, layer.mean + 4 * spread
    far = 4 * spread
    return (
        min(low, max(v_th - 1.1 * radius, low - far), v_th - 0.1 * spread),
        max(high, min(v_th + 1.1 * radius, high + far), v_th + 0.1 * spread),
    )
