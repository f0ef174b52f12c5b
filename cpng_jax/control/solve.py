"""What gain and coherence share with their inverses: layers whose numbers are sound, and the search for a value."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cpng_jax.nn.statistics import MembraneDistances, MembraneStats
from cpng_jax.nn.surrogate import Array, ArrayLike, at_least_float32
from cpng_jax.nn.varying import varying_alike

# Doublings to either side within which an inverse is looked for, points to a doubling, and halvings of what is found.
DOUBLINGS = 12
_PER_DOUBLING = 4
_HALVINGS = 40


class Layers(NamedTuple):
    """What is computed from, all of one shape, with harmless numbers where `usable` is False."""

    stats: MembraneStats | MembraneDistances
    currents: Array
    rate: Array
    v_th: Array
    tau: Array
    correlation: Array
    usable: Array


def in_layers(
    stats: MembraneStats | MembraneDistances,
    currents: ArrayLike,
    firing_rate: ArrayLike,
    v_th: ArrayLike,
    tau: ArrayLike,
    correlation: ArrayLike,
    *others: ArrayLike,
) -> tuple[Layers, tuple[Array, ...]]:
    """Checks and broadcasts; the others are those that are greater than 0 where a layer is usable."""
    counted = isinstance(stats, MembraneDistances)
    leaves = [jnp.asarray(leaf) for leaf in stats]
    dtype = at_least_float32(max((leaf.dtype for leaf in leaves), key=lambda kind: kind.itemsize))
    first = leaves[0][..., 0] if counted else leaves[0]
    values = (first, *leaves[1:], currents, firing_rate, v_th, tau, correlation, *others)
    values = varying_alike(tuple(jnp.broadcast_arrays(*(jnp.asarray(value).astype(dtype) for value in values))))
    finite = [jnp.isfinite(value) for value in values]
    first, *rest = values
    of_stats, (currents, rate, v_th, tau, correlation, *positive) = rest[: len(leaves) - 1], rest[len(leaves) - 1 :]
    usable = jnp.all(jnp.stack(finite), 0) & (rate > 0) & (rate < 1)
    for value in (*of_stats, currents, *positive):
        usable &= value > 0
    if counted:
        shares = leaves[0].astype(dtype)
        usable &= jnp.all(jnp.isfinite(shares), -1)
        even = jnp.arange(1, shares.shape[-1] + 1, dtype=dtype) / shares.shape[-1]
        shares, even = (jnp.broadcast_to(each, (*usable.shape, shares.shape[-1])) for each in (shares, even))
        shares = jnp.where(usable[..., None], shares, even)
        safe: MembraneStats | MembraneDistances = MembraneDistances(shares)
    else:
        safe = MembraneStats(jnp.where(usable, first, 0), jnp.where(usable, of_stats[0], 1))
    ask = lambda value, other: jnp.where(usable, value, other)
    layers = Layers(safe, ask(currents, 1), ask(rate, 0.25), ask(v_th, 1), ask(tau, 0), ask(correlation, 0), usable)
    return layers, tuple(ask(value, 1) for value in positive)


def solution(function: Callable[[Array], Array], target: Array, bracket: tuple[Array, Array], usable: Array) -> Array:
    """Two to the power at which a function takes a value, by bisection; its derivative is that of an implicit one."""

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        reached = function(middle) >= target
        return jnp.where(reached, low, middle), jnp.where(reached, middle, high)

    octave = jax.lax.stop_gradient(jax.lax.fori_loop(0, _HALVINGS, halve, jax.lax.stop_gradient(bracket))[1])
    # A step of Newton's: next to nothing in value, and in the derivative what the implicit function has.
    value, slope = jax.jvp(function, (octave,), (jnp.ones_like(octave),))
    slope = jax.lax.stop_gradient(slope)
    usable &= (slope > 0) & jnp.isfinite(slope)
    step = (value - target) / jnp.where(usable, slope, 1)
    return jnp.where(usable, 2 ** jnp.where(usable, octave - step, 0), 0)


def widest(function: Callable[[Array], Array], target: Array, layers: Layers) -> Array:
    """The smallest beta, the widest domain, at which a function takes a value that it reaches from below.

    Args:
      function: of the logarithm of beta to the base 2, of the shape of the layers.
      target: the value.
      layers: whose potentials' spread says where to look.

    Returns:
      beta; 0 where none within a factor of 2^12 of one over the spread is found. Differentiable as an implicit
      function.
    """
    measured = layers.stats
    spread = jnp.sqrt(measured.variance) if isinstance(measured, MembraneStats) else jnp.ones_like(target)
    # The first of many points that reaches the target, and the one before it.
    first = jax.lax.stop_gradient(-jnp.log2(spread) - DOUBLINGS)
    ahead = jnp.arange(2 * DOUBLINGS * _PER_DOUBLING + 1, dtype=first.dtype) / _PER_DOUBLING
    points = first[None] + ahead.reshape(-1, *[1] * first.ndim)
    reached = jax.lax.map(function, points) >= target[None]
    index = jnp.argmax(reached, 0)
    usable = layers.usable & jnp.any(reached, 0) & (index > 0)
    high = first + index.astype(first.dtype) / _PER_DOUBLING
    return solution(function, target, (high - 1 / _PER_DOUBLING, high), usable)
