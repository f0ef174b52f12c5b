"""The gain held by the width of the surrogate gradients, whose area stays 1, as it is in the paper."""

from cpng_jax.control import gain
from cpng_jax.control.controller import (
    Controller,
    Observed,
    Report,
    Rule,
    Settings,
    State,
    Surrogates,
    from_the_first_step,
    moved,
)
from cpng_jax.control.gradient_gain import beta_by_layer


def _make(settings: Settings) -> Controller:
    gradients, target, needs = gain.gradients_of(settings), settings.options['gain_target'], gain.needs_of(settings)

    def update(observed: Observed, surrogates: Surrogates, state: State) -> tuple[Surrogates, State, Report]:
        signals = gain.kept_alive(gain.signals_of(observed, surrogates.beta, settings))
        beta, report = moved(surrogates.beta, beta_by_layer(target, signals, surrogates.scale, gradients))
        return surrogates._replace(beta=beta), state, report

    return from_the_first_step(Controller(lambda beta: (), update, needs))


RULE = Rule(
    'gain by the width: the β at which a layer passes gradients back as it passes signals forward',
    make=_make,
    options=(gain.TARGET,),
    conflict=gain.conflict,
)
