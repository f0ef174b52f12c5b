"""The coherence of a surrogate gradient: how much of what it passes back is the same whatever the potentials.

A neuron multiplies a gradient by f(u). The mean of f over the potentials is the same factor for every neuron, example
and time step; the rest varies with them, and after some layers points anywhere. Of the square of a gradient that passes
a layer the mean accounts for the share E[f]^2 / E[f^2], near 1 where the domain is wide and small where it is narrow,
and over L layers for that to the power of L. docs/gain.md says what that has to do with the best width.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, Real

from cpng_jax.control.layer_tree import PyTree, like, stats_vector
from cpng_jax.control.moments import moments_of
from cpng_jax.control.solve import Layers, in_layers, widest
from cpng_jax.nn.statistics import MembraneDistances, MembraneStats
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate, get_surrogate


def coherence(
    stats: MembraneStats | MembraneDistances,
    beta: Real[ArrayLike, '*#layers'],
    *,
    v_th: Real[ArrayLike, '*#layers'] = 1.0,
    surrogate: str | Surrogate = 'triangular',
) -> Float[Array, '*layers']:
    """The share of the mean square of a surrogate gradient that its mean accounts for, E[f(u)]^2 / E[f(u)^2].

    Args:
      stats: `MembraneStats` of the potentials before the reset, which are taken as Gaussian then; or
        `MembraneDistances`, for those that were counted, with as many on either side of the threshold. One layer or
        many, any shape.
      beta: width parameter; broadcasts with the statistics. The height does not matter.
      v_th: threshold; broadcasts with the statistics.
      surrogate: 'triangular', 'rectangular', 'arctan', 'dspike' or a `Surrogate`.

    Returns:
      The coherence, 0 to 1, at least float32, of the broadcast shape. NaN where the potentials are constant, none lies
      where the surrogate gradient is not 0, or a number is not finite. Differentiable by all of its numbers.

    Raises:
      ValueError: unknown surrogate.

    Source: docs/gain.md, Eq. 10.
    """
    layers, (beta,) = _layers(stats, v_th, beta)
    return _coherence(layers, beta, shape=get_surrogate(surrogate))


def beta_for_coherence(
    target: Real[ArrayLike, '*#layers'],
    stats: MembraneStats | MembraneDistances,
    *,
    v_th: Real[ArrayLike, '*#layers'] = 1.0,
    surrogate: str | Surrogate = 'triangular',
) -> Float[Array, '*layers']:
    """The width parameter at which the coherence takes a given value.

    The coherence falls as beta rises; of several solutions, where the threshold is far from all potentials, this is
    the smallest, the widest domain.

    Args:
      target: wanted coherence, above 0 and below 1; broadcasts with the statistics.
      stats: see `coherence`, as all that follow.
      v_th: threshold.
      surrogate: the shape.

    Returns:
      beta, at least float32, of the broadcast shape; the coherence there is within 1e-5 of the target, by its size. 0
      says that none within a factor of 2^12 of one over the spread of the potentials has that coherence, or that it is
      not defined. Never NaN. Differentiable by all of its numbers, as an implicit function; where it is 0, so are its
      derivatives.

    Raises:
      ValueError: unknown surrogate.
    """
    layers, (target,) = _layers(stats, v_th, target)
    return _beta_for_coherence(layers, target, shape=get_surrogate(surrogate))


def _layers(
    stats: MembraneStats | MembraneDistances, v_th: ArrayLike, positive: ArrayLike
) -> tuple[Layers, tuple[Array, ...]]:
    return in_layers(stats, 1.0, 0.5, v_th, 0.0, 0.0, positive)  # of currents, rate and time nothing depends


# Compiled once for a shape, so that calls between the epochs of a loop cost nothing.
_compiled = functools.partial(jax.jit, static_argnames='shape')


@_compiled
def _coherence(layers: Layers, beta: Array, *, shape: Surrogate) -> Array:
    inverse = _inverse(layers, beta, shape)
    defined = layers.usable & jnp.isfinite(inverse) & (inverse > 0)
    return jnp.where(defined, 1 / jnp.where(defined, inverse, 1), jnp.nan)


@_compiled
def _beta_for_coherence(layers: Layers, target: Array, *, shape: Surrogate) -> Array:
    beta = widest(lambda octave: _inverse(layers, 2**octave, shape), 1 / target, layers)
    return jnp.where(target < 1, beta, 0)  # which a wide domain reaches by rounding alone


def _inverse(layers: Layers, beta: Array, shape: Surrogate) -> Array:
    """One over the coherence, which rises with beta; infinite where no potential lies inside."""
    of = moments_of(layers.stats, beta, layers.v_th, shape)
    some = of.f > 0
    return jnp.where(some, of.ff / jnp.where(some, of.f, 1) ** 2, jnp.inf)


@functools.partial(jax.jit, static_argnames='surrogate')
def beta_for_coherence_by_layer(
    target: ArrayLike, stats: PyTree, beta: PyTree, *, v_th: ArrayLike = 1.0, surrogate: str | Surrogate = 'triangular'
) -> PyTree:
    """The width parameters at which the coherence has a given value, for all layers at once.

    Args:
      target: wanted coherence.
      stats: pytree like `beta` with a `MembraneStats`, or a `MembraneDistances`, for each leaf.
      beta: pytree of floating arrays, one leaf per layer; only its layers and shapes count.
      v_th: threshold.
      surrogate: the shape.

    Returns:
      The width parameters, see `beta_for_coherence`, laid out like beta; 0 where there is none.

    Raises:
      ValueError: `stats` does not fit the layers of `beta`, or unknown surrogate.
    """
    return like(beta, beta_for_coherence(target, stats_vector(stats, beta), v_th=v_th, surrogate=surrogate))
