"""Condition IV of Herranz-Celotti and Rouat (arXiv 2202.00282): a width that is chosen once, before training.

The variance of a gradient is to be the same at each step and in each layer. With a decay tau, a reset to 0 that
passes no gradient, and n weights w to what follows, that is tau^2 (1 - r) + n E[w^2] E[f(u)^2] = 1, solved for the
sharpness of a surrogate gradient whose height at the threshold is given. The authors' code takes r = 1/2, which their
Condition I sees to, and potentials that are uniform over what the weights allow. Here r, Var(c) = n E[w^2] r (1 - r)
and the Gaussian potentials are those of the first batch, so that norms count. It is Eq. 9 of docs/gain.md over
endlessly many steps whose gradients are not correlated.
"""

import functools

import jax
import jax.numpy as jnp

from cpng_jax.control import fixed, gain
from cpng_jax.control.controller import Controller, Observed, Rule, Settings, State, Surrogates, moved
from cpng_jax.control.gradient_gain import in_vectors
from cpng_jax.control.layer_tree import like, vector
from cpng_jax.control.moments import moments_of
from cpng_jax.control.solve import Layers, in_layers, widest
from cpng_jax.nn.surrogate import Array, Surrogate, get_surrogate


def _make(settings: Settings) -> Controller:
    shape = get_surrogate(settings.surrogate)

    def start(observed: Observed, surrogates: Surrogates, state: State) -> tuple[Surrogates, State]:
        signals = gain.signals_of(observed, surrogates.beta, settings)
        stats, rest = in_vectors(signals, surrogates.beta, gain.gradients_of(settings))
        beta, scale = (vector('surrogates', tree, surrogates.beta) for tree in surrogates)
        given = (rest['currents'], rest['firing_rate'], rest['v_th'], rest['tau'], 0.0)
        layers, (peak,) = in_layers(stats, *given, beta * scale)
        beta, _ = moved(surrogates.beta, like(surrogates.beta, _width(layers, peak, shape)))
        kept = jax.tree.map(lambda old, new, scale: scale * old / new, surrogates.beta, beta, surrogates.scale)
        return Surrogates(beta, kept), state

    return fixed.RULE.make(settings)._replace(start=start, start_needs=gain.needs_of(settings))


@functools.partial(jax.jit, static_argnames='shape')
def _width(layers: Layers, peak: Array, shape: Surrogate) -> Array:
    """The beta of each layer, as a vector; 0 where there is none."""
    rate = layers.rate

    def over_passed(octave: Array) -> Array:
        """Rises with beta: a narrower surrogate gradient of that peak passes less."""
        of = moments_of(layers.stats, 2**octave, layers.v_th, shape)
        passed = jnp.square(peak / 2**octave) * of.ff * layers.currents / (rate * (1 - rate))
        return jnp.where(passed > 0, 1 / jnp.where(passed > 0, passed, 1), jnp.inf)

    return widest(over_passed, 1 / (1 - jnp.square(layers.tau) * (1 - rate)), layers)


RULE = Rule(
    "Herranz-Celotti and Rouat's Condition IV: the β that holds the variance of gradients before the first step, with "
    'the height at the threshold kept',
    make=_make,
    conflict=gain.conflict,
    heeds=(),
)
