"""The gain held by the height of the surrogate gradients: a rule of its own, or behind any rule that sets the width.

A layer of neurons then passes gradients back as it passes signals forward (docs/gain.md), so that their norms neither
grow nor vanish from layer to layer, whatever the width. The width is free for what else it is to do.
"""

import jax
import jax.numpy as jnp

from cpng_jax.control import fixed
from cpng_jax.control.controller import Controller, Observed, PyTree, Report, Rule, Settings, State, Surrogates, moved
from cpng_jax.control.gradient_gain import Gradients, Signals, scale_by_layer
from cpng_jax.control.lsg import decays_of
from cpng_jax.control.options import Option, number

# The share of neurons and time steps, spiking or silent, that a layer is taken to have at least. One with less is about
# to fall out of the network or to come back, and gradients as weak as its signals are would keep it out.
_LEAST_SHARE = 0.05


def gradients_of(settings: Settings) -> Gradients:
    """What the settings of a run say of the gradients of its network."""
    return Gradients(
        surrogate=settings.surrogate,
        v_th=settings.v_th,
        tau=settings.tau,
        time_steps=settings.time_steps,
        detach_reset=settings.detach_reset,
    )


def signals_of(observed: Observed, beta: PyTree, settings: Settings) -> Signals:
    """What the gain is computed from, out of what a controller is shown."""
    tau = jax.tree.map(jax.nn.sigmoid, decays_of(observed.params, beta)) if settings.decay_learnt else None
    return Signals(getattr(observed, settings.statistics), observed.currents, observed.firing_rate, tau)


def needs_of(settings: Settings) -> tuple[str, ...]:
    """Names of the fields of `Observed` that `signals_of` reads."""
    return (settings.statistics, 'currents', 'firing_rate', *(('params',) if settings.decay_learnt else ()))


def kept_alive(signals: Signals) -> Signals:
    """Has rules take layers that are nearly silent, or nearly saturated, as firing in one of twenty cases.

    Args:
      signals: as measured.

    Returns:
      The same with firing rates of 0.05 to 0.95; those of 0 and of 1, which have no gain, as they are.

    Source: docs/gain.md, "Layers that are nearly silent".
    """
    inside = lambda rate: jnp.where((rate > 0) & (rate < 1), jnp.clip(rate, _LEAST_SHARE, 1 - _LEAST_SHARE), rate)
    return signals._replace(firing_rate=jax.tree.map(inside, signals.firing_rate))


def held_behind(width: Controller, settings: Settings) -> Controller:
    """Lets a controller set the width, and then holds the gain by the height.

    Args:
      width: what sets beta.
      settings: with the option `gain_target`.

    Returns:
      The controller, with the state of `width`. A layer that is silent, saturated or constant keeps its height. Before
      the first step it sets the heights by a forward pass.
    """
    gradients, target = gradients_of(settings), settings.options['gain_target']

    def hold(observed: Observed, surrogates: Surrogates) -> tuple[Surrogates, Report]:
        signals = kept_alive(signals_of(observed, surrogates.beta, settings))
        scale, report = moved(surrogates.scale, scale_by_layer(target, signals, surrogates.beta, gradients))
        return surrogates._replace(scale=scale), report

    def update(observed: Observed, surrogates: Surrogates, state: State) -> tuple[Surrogates, State, Report]:
        surrogates, state, of_width = width.update(observed, surrogates, state)
        surrogates, of_height = hold(observed, surrogates)
        return surrogates, state, Report(jax.tree.map(jnp.logical_or, of_width.skipped, of_height.skipped))

    def start(observed: Observed, surrogates: Surrogates, state: State) -> tuple[Surrogates, State]:
        if width.start is not None:
            surrogates, state = width.start(observed, surrogates, state)
        return hold(observed, surrogates)[0], state

    needs = needs_of(settings)
    both = lambda names: tuple(dict.fromkeys((*names, *needs)))
    return width._replace(update=update, start=start, needs=both(width.needs), start_needs=both(width.start_needs))


def conflict(settings: Settings) -> str | None:
    """Says what does not go together with a rule that goes by the gain."""
    if settings.fixed_threshold:
        return None
    return (
        'config.cpng.rule goes by the gain, which the potentials tell where threshold and width stay over the time '
        'steps: expected config.neuron.kind lif with it.'
    )


TARGET = Option(
    'gain_target',
    1.0,
    number(0, open_low=True),
    'the gain of each layer that rules by the gain aim at; at 1 gradients neither grow nor vanish',
    '0.2',
)

RULE = Rule(
    'gain: the height at which a layer passes gradients back as it passes signals forward; the width stays',
    make=lambda settings: held_behind(fixed.RULE.make(settings), settings),
    options=(TARGET,),
    conflict=conflict,
)
