"""Thresholds of neurons that take the place of an ANN's: what their answers are rounded and clipped to."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from cpng_jax.nn.surrogate import Array

# Shares of the largest activation that are tried: 1, 0.99 and so on down to 0.06.
_CANDIDATES = 95


def largest(activations: Float[Array, '*neurons']) -> Float[Array, '']:
    """The largest activation as the threshold: nothing is clipped.

    Args:
      activations: of a layer of an ANN on a batch, 0 or more.

    Returns:
      A scalar.
    """
    return jnp.max(activations)


@jax.custom_jvp
def _floor(x: Array) -> Array:
    return jnp.floor(x)


@_floor.defjvp
def _straight_through(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return jnp.floor(primals[0]), tangents[0]


def clipped_and_floored(x: Float[Array, '*neurons'], threshold: Array, time_steps: int) -> Float[Array, '*neurons']:
    """What neurons say in T steps of a constant current: `V / T * clip(floor(x T / V), 0, T)`.

    Gradients go straight through the floor.

    Args:
      x: currents.
      threshold: V, scalar.
      time_steps: T.

    Returns:
      The shape of `x`.

    Source: Li et al. (2021), Eq. 6.
    """
    return threshold / time_steps * jnp.clip(_floor(x * (time_steps / threshold)), 0, time_steps)


def mmse(activations: Float[Array, '*neurons'], time_steps: int) -> Float[Array, '']:
    """The threshold at which what neurons can say in T steps has the least square error.

    Args:
      activations: of a layer of an ANN on a batch, 0 or more.
      time_steps: T.

    Returns:
      A scalar: of 0.06 to 1 times the largest activation, in steps of 0.01, the best; of equals the larger.

    Source: Li et al. (2021), Sec. 4.1, with the candidates of their code.
    """
    candidates = jnp.max(activations) * (1 - 0.01 * jnp.arange(_CANDIDATES))
    error = lambda v: jnp.mean(jnp.square(activations - clipped_and_floored(activations, v, time_steps)))
    return candidates[jnp.argmin(jax.lax.map(error, candidates))]
