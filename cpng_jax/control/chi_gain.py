"""A surrogate gradient that needs no tuning: its width by the share of potentials inside, its height by the gain.

Both follow the potentials, so that neither the start nor the scale of the currents matters, and a share means the same
in every layer and, nearly, for every shape (docs/surrogates.md). Compare `cpng_gain`, which narrows the width as far as
the smallest share so far allows.
"""

from typing import Any

from cpng_jax.control import gain
from cpng_jax.control.controller import Controller, Rule, Settings, from_the_first_step, stateless
from cpng_jax.control.effective_domain import beta_for_chi_by_layer
from cpng_jax.control.options import Option, number


def _make(settings: Settings) -> Controller:
    target, statistics = settings.options['chi_target'], settings.statistics
    domain: dict[str, Any] = dict(v_th=settings.v_th, surrogate=settings.surrogate, interval=settings.interval)
    wanted = lambda observed, beta: beta_for_chi_by_layer(target, getattr(observed, statistics), beta, **domain)
    width = from_the_first_step(stateless(wanted, (statistics,)))
    return gain.held_behind(width, settings)


RULE = Rule(
    'χ sets the width and the gain the height: nothing to tune',
    make=_make,
    options=(
        Option(
            'chi_target',
            0.7,
            number(0, 1, open_low=True, open_high=True),
            'the share of potentials inside the domain that the width is set by',
            '0.2',
        ),
        gain.TARGET,
    ),
    conflict=gain.conflict,
)
