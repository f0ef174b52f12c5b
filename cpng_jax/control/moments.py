"""Expectations of a surrogate gradient over the potentials of a layer, and how much of a gradient it passes back."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cpng_jax.nn.statistics import DISTANCES, MembraneDistances, MembraneStats
from cpng_jax.nn.surrogate import Array, Surrogate, of_rank

# Nodes of the quadrature on either side of the threshold, and standard deviations after which a Gaussian has nothing.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
_TAIL = 8.0
# Of a bin of `DISTANCES`, within which potentials are taken as evenly spread.
_BIN_NODES, _BIN_WEIGHTS = np.polynomial.legendre.leggauss(4)


class Moments(NamedTuple):
    """Expectations over the potentials u of products of f(u), at height 1, with u and s = [u >= v_th]."""

    f: Array
    ff: Array
    uf: Array
    below_f: Array  # (1 - s) f
    below_uf: Array
    uff: Array
    uuff: Array


def _gaussian_points(stats: MembraneStats, v_th: Array, support: Array, width: Array) -> tuple[Array, Array]:
    """Distances from the threshold, `[..., K]`, and the share of Gaussian potentials that each stands for."""
    sigma = jnp.sqrt(stats.variance)
    mean = stats.mean - v_th
    nodes, weights = (of_rank(jnp.asarray(each, mean.dtype), mean.ndim + 1) for each in (_NODES, _WEIGHTS))

    def side(low: Array, high: Array) -> tuple[Array, Array]:
        # Evenly in asinh(x / width): as fine as the surrogate gradient near the threshold, and as the Gaussian far off.
        low, high = jnp.arcsinh(low / width), jnp.arcsinh(high / width)
        half = jnp.maximum(high - low, 0)[..., None] / 2
        z = low[..., None] + half * (1 + nodes)
        x = width[..., None] * jnp.sinh(z)
        density = jnp.exp(-0.5 * jnp.square((x - mean[..., None]) / sigma[..., None])) / sigma[..., None]
        step = half * weights * width[..., None] * jnp.cosh(z)
        return x, density * step / math.sqrt(2 * math.pi)

    low, high = mean - _TAIL * sigma, mean + _TAIL * sigma
    below = side(jnp.maximum(low, -support), jnp.minimum(high, 0))
    above = side(jnp.maximum(low, 0), jnp.minimum(high, support))
    return jnp.concatenate([below[0], above[0]], -1), jnp.concatenate([below[1], above[1]], -1)


def _counted_points(stats: MembraneDistances, support: Array) -> tuple[Array, Array]:
    """The same of potentials that were counted, as many on either side of the threshold."""
    shares = stats.shares
    edges = jnp.asarray([0.0, *DISTANCES], shares.dtype)
    in_bin = jnp.diff(shares, prepend=jnp.zeros_like(shares[..., :1]))
    # A bin that the end of the domain cuts counts for the part that lies inside.
    rank = support.ndim + 1
    low, length = (of_rank(each, rank) for each in (edges[:-1], jnp.diff(edges)))
    inside = jnp.clip(support[..., None] - low, 0, length)
    share = in_bin * inside / length
    nodes, weights = (of_rank(jnp.asarray(each, shares.dtype), rank + 1) for each in (_BIN_NODES, _BIN_WEIGHTS))
    x = low[..., None] + inside[..., None] * (1 + nodes) / 2
    mass = share[..., None] * weights / 4
    x, mass = (array.reshape(*array.shape[:-2], -1) for array in jnp.broadcast_arrays(x, mass))
    return jnp.concatenate([-x, x], -1), jnp.concatenate([mass, mass], -1)


def moments_of(stats: MembraneStats | MembraneDistances, beta: Array, v_th: Array, surrogate: Surrogate) -> Moments:
    """Takes the expectations over the potentials of layers.

    Args:
      stats: of Gaussian potentials, or of those that were counted, with as many on either side of the threshold.
      beta: width parameter, of the shape of the statistics.
      v_th: threshold, of that shape.
      surrogate: the shape of the surrogate gradient.

    Returns:
      The expectations, each of that shape; for a surrogate gradient that is smooth on either side of the threshold
      within 3e-6 of themselves in float32, 1e-7 in float64, while the threshold is within 5 standard deviations of the
      mean. From 8 on the Gaussian is taken as 0.
    """
    # Infinite by itself: inf / beta would have a derivative that is not finite either.
    support = jnp.full_like(beta, surrogate.reach)
    if not math.isinf(surrogate.support):
        support = jnp.minimum(support, surrogate.support / beta)
    width = surrogate.half_width / beta
    if isinstance(stats, MembraneDistances):
        x, mass = _counted_points(stats, support)
    else:
        x, mass = _gaussian_points(stats, v_th, support, width)
    f = surrogate.gradient(x, jnp.broadcast_to(beta[..., None], x.shape))
    u, below = v_th[..., None] + x, (x < 0).astype(x.dtype)
    products = (f, f * f, u * f, below * f, below * u * f, u * f * f, (u * f) ** 2)
    # In one sum, which XLA compiles faster than seven.
    return Moments(*jnp.sum(mass[None] * jnp.stack(products), -1))


def passed_back(
    of: Moments, scale: Array, rate: Array, tau: Array, time_steps: int, correlation: Array, detach_reset: bool
) -> Array:
    """How much of a gradient a layer of neurons passes back, by Eq. 7 and 8 with its steps taken as independent.

    Args:
      of: expectations over the potentials at height 1.
      scale: height.
      rate: share of neurons and time steps that spike.
      tau: decay.
      time_steps: T.
      correlation: of the gradients by a neuron's spikes at two time steps.
      detach_reset: no gradient flows through the reset.

    Returns:
      E[(dL/dc)^2] / E[(dL/ds)^2], in the mean over the time steps.
    """
    reset = 0.0 if detach_reset else scale
    # dL/du[t] = f dL/ds[t] + q dL/du[t + 1] with q = tau (1 - s) - tau u f.
    q = tau * (1 - rate - reset * of.uf)
    qq = jnp.square(tau) * (1 - rate - 2 * reset * of.below_uf + reset * reset * of.uuff)
    fq = scale * tau * (of.below_f - reset * of.uff)
    f, ff = scale * of.f, jnp.square(scale) * of.ff

    def earlier(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        with_spikes, square, total = carry  # E[dL/du dL/ds] and E[(dL/du)^2] of the step after
        square = ff + 2 * fq * with_spikes + qq * square
        return correlation * f + q * with_spikes, square, total + square

    zeros = jnp.zeros_like(ff + qq + correlation)
    return jax.lax.fori_loop(0, time_steps, earlier, (zeros, zeros, zeros))[2] / time_steps
