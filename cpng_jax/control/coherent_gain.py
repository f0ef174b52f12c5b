"""A surrogate gradient that needs no tuning at any depth: its width by the coherence, its height by the gain.

The deeper a network, the wider: of a gradient that comes through all layers a share of 1e-4 is to be what their mean
derivatives make of it, whatever the number of layers and the shape (docs/surrogates.md). Compare `chi_gain`, whose
width is one share of the potentials for any network.
"""

from typing import Any

import jax

from cpng_jax.control import gain
from cpng_jax.control.coherence import beta_for_coherence_by_layer
from cpng_jax.control.controller import Controller, Observed, Rule, Settings, from_the_first_step, stateless
from cpng_jax.control.options import Option, number

# Narrower than this no width is better, however few the layers.
_LEAST = 0.4


def _make(settings: Settings) -> Controller:
    through, statistics = settings.options['coherence'], settings.statistics
    shape: dict[str, Any] = dict(v_th=settings.v_th, surrogate=settings.surrogate)

    def wanted(observed: Observed, beta: Any) -> Any:
        target = max(through ** (1 / len(jax.tree.leaves(beta))), _LEAST)
        return beta_for_coherence_by_layer(target, getattr(observed, statistics), beta, **shape)

    width = from_the_first_step(stateless(wanted, (statistics,)))
    return gain.held_behind(width, settings)


RULE = Rule(
    'the coherence sets the width, by the depth, and the gain the height: nothing to tune',
    make=_make,
    options=(
        Option(
            'coherence',
            1e-4,
            number(0, 1, open_low=True, open_high=True),
            'the share of the square of a gradient, through all layers, that their mean derivatives account for',
            '0.2',
        ),
        gain.TARGET,
    ),
    conflict=gain.conflict,
)
