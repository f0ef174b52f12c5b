"""A width that grows with the threshold that would suit the membrane potentials: DS-ATGO's backward half.

Jiang et al., "DS-ATGO: Dual-Stage Synergistic Learning via Forward Adaptive Threshold and Backward Gradient
Optimization for Spiking Neural Networks", AAAI 2026. Eq. 5, of the true distribution: the adaptive threshold is
f_c (mean + standard deviation), with f_c = 1; Eq. 7: width = (1 + tanh(adaptive threshold - v_th)) times the width at
the start, which is one line for both of its cases.

Adapted: this half alone is what their ablation calls w/ TGO. In the forward pass the threshold stays v_th; the neurons
of `nn.adaptive_neuron` have both halves. Their published code leaves the mean out of Eq. 7; here it is as printed.
They take each time step by itself, from that step itself; here a layer has one beta, and the statistics are those of
all T and serve from the next step on.
"""

import jax
import jax.numpy as jnp

from cpng_jax.control.controller import Controller, Rule, Settings, goes_by_moments, stateless
from cpng_jax.nn.statistics import MembraneStats, is_stats
from cpng_jax.nn.surrogate import Array


def beta_of(stats: MembraneStats, *, beta_init: float = 1.0, v_th: float = 1.0) -> Array:
    """Beta of the width that Eq. 7 gives.

    Args:
      stats: `MembraneStats`, any shape.
      beta_init: beta at the start, whose width Eq. 7 scales.
      v_th: threshold of the neurons.

    Returns:
      beta, at least float32, of the shape of the statistics.

    Source: their Eq. 5 and 7.
    """
    mean, variance = (jnp.asarray(value) for value in stats)
    adaptive_threshold = mean + jnp.sqrt(variance)
    return beta_init / (1 + jnp.tanh(adaptive_threshold - v_th))


def _make(settings: Settings) -> Controller:
    of_layer = lambda stats: beta_of(stats, beta_init=settings.beta_init, v_th=settings.v_th)
    return stateless(lambda observed, _: jax.tree.map(of_layer, observed.membrane, is_leaf=is_stats), ('membrane',))


RULE = Rule(
    'DS-ATGO, backward half: (1 + tanh(mean + sigma - v_th)) times the width at the start (Jiang et al., AAAI 2026)',
    make=_make,
    conflict=lambda settings: goes_by_moments(settings, 'ds_atgo'),
)
