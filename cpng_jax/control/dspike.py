"""The rule of Dspike: between epochs, take the width whose gradient points most nearly where finite differences do.

Li et al., "Differentiable Spike: Rethinking Gradient-Descent for Training Spiking Neural Networks", NeurIPS 2021.
Spikes have no useful derivative, but the loss has finite differences. Those of the weights of the first layer, which
has few, tell which of three temperatures has the best gradient: the one so far, one a step lower, one a step higher.

Adapted: the temperature of their own shape, a scaled tanh, is here the beta of any shape of `surrogate`. The shift of a
weight is in units of the root mean square of the layer's weights, since behind a norm their scale is without effect.
Neither that shift nor the step of beta is theirs: their values are not known to us.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from cpng_jax.control.controller import Controller, Observed, PyTree, Rule, Settings, stateless
from cpng_jax.control.options import Option, number
from cpng_jax.nn.surrogate import Array

Loss = Callable[[Array, PyTree], Array]
"""Maps weights of a layer, and beta of all layers, to a scalar."""


def finite_differences(loss: Callable[[Array], Array], weights: Array, shift: Array) -> Array:
    """Central differences of a loss by each weight, one weight after the other, so that they need no more memory.

    Args:
      loss: maps weights to a scalar.
      weights: any shape, N of them; the loss is computed 2 N times.
      shift: of a weight to either side, a scalar greater than 0.

    Returns:
      `(loss(w + shift) - loss(w - shift)) / (2 shift)` for each weight w, of the shape of `weights`.
    """
    flat = weights.ravel()

    def one(index: Array) -> Array:
        moved = lambda by: loss(flat.at[index].add(by).reshape(weights.shape))
        return (moved(shift) - moved(-shift)) / (2 * shift)

    return jax.lax.map(one, jnp.arange(flat.size)).reshape(weights.shape)


def cosine(a: Array, b: Array) -> Array:
    """Cosine of the angle between two arrays of one shape, taken as vectors; NaN where one is 0 or not finite."""
    return jnp.sum(a * b) / (jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel()))


def best_beta(loss: Loss, weights: Array, beta: PyTree, *, epsilon: float, step: float) -> PyTree:
    """Finds which of three widths has the surrogate gradient that is most like finite differences. Pure, and jittable.

    Args:
      loss: of the weights of the first layer and beta of all layers.
      weights: of the first layer.
      beta: pytree of floating arrays greater than 0.
      epsilon: shift of a weight for the differences, in units of the root mean square of `weights`.
      step: of beta, up or down, the same in all layers.

    Returns:
      beta as it is, lower by a step if that leaves it above 0, or higher by a step: the one with the greatest cosine,
      in the dtypes of `beta`. NaN where there is none to tell by: differences or gradients are 0 or not finite.
    """
    shift = epsilon * jnp.sqrt(jnp.mean(jnp.square(weights)))
    reference = finite_differences(lambda moved: loss(moved, beta), weights, shift)
    moves = jnp.array([0.0, -step, step])
    moved = lambda by: jax.tree.map(lambda leaf: (leaf + by).astype(leaf.dtype), beta)

    def likeness(by: Array) -> Array:
        candidate = moved(by)
        positive = jnp.all(ravel_pytree(candidate)[0] > 0)
        value = cosine(jax.grad(loss)(weights, candidate), reference)
        return jnp.where(positive & jnp.isfinite(value), value, -jnp.inf)

    likenesses = jax.lax.map(likeness, moves)
    best = moves[jnp.argmax(likenesses)]
    return moved(jnp.where(jnp.all(jnp.isinf(likenesses)), jnp.nan, best))


def _make(settings: Settings) -> Controller:
    epsilon, step = (settings.options[name] for name in ('dspike_epsilon', 'dspike_step'))

    def wanted(observed: Observed, beta: PyTree) -> PyTree:
        first = observed.first_layer
        if first is None:
            raise ValueError('observed.first_layer must be given: Dspike tries its weights.')
        return best_beta(first.loss, first.weights, beta, epsilon=epsilon, step=step)

    return stateless(wanted, ('first_layer',))


def _conflict(settings: Settings) -> str | None:
    if settings.every == 'epoch':
        return None
    return (
        f'config.cpng.rule is dspike and config.cpng.every is {settings.every}, expected epoch with it: its finite '
        'differences compute the loss twice for each weight of the first layer.'
    )


RULE = Rule(
    'Dspike: a step to where the gradient is most like finite differences (Li et al., NeurIPS 2021)',
    make=_make,
    options=(
        Option(
            'dspike_epsilon',
            0.3,
            number(0, open_low=True),
            'shift of a weight for the finite differences, by the root mean square of the weights',
            '0.2',
        ),
        Option('dspike_step', 0.1, number(0, open_low=True), 'step of beta, up or down', '0.2'),
    ),
    conflict=_conflict,
    heeds=('every',),  # a step is that of all layers
)
