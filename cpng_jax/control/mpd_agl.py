"""Two standard deviations of the membrane potential as the width of the surrogate gradient.

Jiang et al., "Adaptive Gradient Learning for Spiking Neural Networks by Exploiting Membrane Potential Dynamics", IJCAI
2025, Theorem 2: width = 2 gamma v_th at the first time step and 2 sqrt(1 + tau^2) gamma v_th later, gamma being the
mean scale of the tdBN before the neurons. By their Theorem 1 that is twice the standard deviation of the potentials.

Adapted: the standard deviation is measured, not estimated from tau and gamma, so that it holds for any network. They
differentiate by a rectangle and take each time step by itself, from that step itself; here any shape lies over the same
interval, a layer has one beta, and the statistics are those of all T and serve from the next step on. As published
it is a kind of neuron, `nn.deviation_neuron`.
"""

import jax
import jax.numpy as jnp

from cpng_jax.control.controller import Controller, Rule, Settings, goes_by_moments, sets_the_support, stateless
from cpng_jax.nn.statistics import MembraneStats, is_stats
from cpng_jax.nn.surrogate import Array, Surrogate, beta_of_width


def beta_of(stats: MembraneStats, *, surrogate: str | Surrogate = 'triangular') -> Array:
    """Beta at which the surrogate gradient is non-zero within one standard deviation of the threshold.

    Args:
      stats: `MembraneStats`, any shape.
      surrogate: of the network.

    Returns:
      beta, at least float32, of the shape of the statistics; infinite where the potentials are constant.

    Raises:
      ValueError: unknown surrogate.

    Source: their Theorem 2.
    """
    return beta_of_width(2 * jnp.sqrt(jnp.asarray(stats.variance)), surrogate)


def _make(settings: Settings) -> Controller:
    of_layer = lambda stats: beta_of(stats, surrogate=settings.surrogate)
    return stateless(lambda observed, _: jax.tree.map(of_layer, observed.membrane, is_leaf=is_stats), ('membrane',))


RULE = Rule(
    'MPD-AGL: 2 sigma as the width (Jiang et al., IJCAI 2025, Theorems 1 and 2)',
    make=_make,
    conflict=lambda settings: goes_by_moments(settings, 'mpd_agl') or sets_the_support(settings, 'mpd_agl'),
)
