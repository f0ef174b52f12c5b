"""The effective domain indicator chi (Eq. 6) and its inverse, from the moments of the potentials or from counts."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Float, Real

from cpng_jax.control.layer_tree import PyTree, like, stats_vector, vector
from cpng_jax.nn.statistics import DISTANCES, MembraneDistances, MembraneStats
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate, at_least_float32, get_surrogate
from cpng_jax.nn.varying import varying_alike

INTERVALS = ('paper', 'support')

_HALVINGS = 60
# Standard deviations past the mean at which the normal distribution has nothing left, in float64 too.
_TAIL = 10.0


def domain_half_width(surrogate: str | Surrogate = 'triangular', interval: str = 'paper') -> float:
    """Half the width of the effective domain, in units of 1/beta.

    Args:
      surrogate: 'triangular', 'rectangular', 'arctan', 'dspike' or a `Surrogate`.
      interval: 'paper' takes the surrogate's `half_width`, 1 for every shape of the paper
        (Sec. 5.2); 'support' takes where its gradient is non-zero (1/2 for rectangular), or
        `half_width` where that is everywhere.

    Returns:
      The half-width r times beta.

    Raises:
      ValueError: unknown surrogate or interval.
    """
    surrogate = get_surrogate(surrogate)
    if interval not in INTERVALS:
        raise ValueError(f'interval must be one of {", ".join(INTERVALS)}, got {interval!r}.')
    return surrogate.extent if interval == 'support' else surrogate.half_width


def domain_radius(beta: ArrayLike, surrogate: str | Surrogate = 'triangular', interval: str = 'paper') -> Array:
    """Half the width of the effective domain, in units of the membrane potential.

    Args:
      beta: width parameter, at least 0, any shape.
      surrogate: see `domain_half_width`, as what follows.
      interval: 'paper' or 'support'.

    Returns:
      r, at least float32, of the shape of beta: `domain_half_width` over beta, infinite where beta is 0, and at most
      the reach of the shape, which for the three of the paper is infinite.

    Raises:
      ValueError: unknown surrogate or interval.
    """
    beta = jnp.asarray(beta)
    beta = beta.astype(at_least_float32(beta.dtype))
    positive = beta != 0
    radius = jnp.where(positive, domain_half_width(surrogate, interval) / jnp.where(positive, beta, 1), jnp.inf)
    return jnp.minimum(radius, get_surrogate(surrogate).reach)


def _gaussian(
    stats: MembraneStats, v_th: ArrayLike, other: ArrayLike
) -> tuple[Array, Array, Array, tuple[Array, Array]]:
    """Standard deviation, distance of the mean from the threshold, and another value, of one shape and dtype.

    And, of that shape, whether the two first are usable: spread out, and finite. Where they are not they are 1 and 0,
    so that neither a result nor a gradient is made of what has no meaning.
    """
    values = (*stats, v_th, other)
    dtype = at_least_float32(max((jnp.asarray(value).dtype for value in stats), key=lambda kind: kind.itemsize))
    mean, variance, v_th, other = varying_alike(
        tuple(jnp.broadcast_arrays(*(jnp.asarray(value).astype(dtype) for value in values)))
    )
    finite = jnp.isfinite(mean) & jnp.isfinite(variance) & jnp.isfinite(v_th)
    spread = finite & (variance > 0)
    sigma = jnp.sqrt(jnp.where(spread, variance, 1))
    distance = jnp.abs(jnp.where(finite, v_th - mean, 0))
    return sigma, distance, other, (spread, finite)


def _mass(distance: Array, half_width: Array) -> Array:
    """Standard normal mass within `half_width` of a point `distance` >= 0 from the mean.

    Both bounds are written as lower tails, where `ndtr` keeps its relative precision.
    """
    return ndtr(half_width - distance) - ndtr(-half_width - distance)


def _like_shares(shares: Array, value: ArrayLike) -> Array:
    """A value for each layer of `shares`, `[..., K]`, or more where it broadcasts with them."""
    value = jnp.asarray(value, shares.dtype)
    return jnp.broadcast_to(value, jnp.broadcast_shapes(value.shape, shares.shape[:-1]))


def _bin(shares: Array, upper: Array) -> tuple[Array, Array, Array, Array]:
    """The bin that ends with edge number `upper`: its two distances and the shares of potentials within them."""
    distances = jnp.asarray([0.0, *DISTANCES], shares.dtype)
    # No potential counts as being at the threshold itself.
    shares = jnp.concatenate([jnp.zeros_like(shares[..., :1]), shares], axis=-1)
    at = lambda index: jnp.take_along_axis(shares, index[..., None], axis=-1)[..., 0]
    return distances[upper], distances[upper + 1], at(upper), at(upper + 1)


def _counted_share(shares: Array, radius: Array) -> Array:
    """The share of potentials within a radius of the threshold, linear between the distances that were counted."""
    radius = jnp.minimum(radius, float(DISTANCES[-1]))
    shares = jnp.broadcast_to(shares, (*radius.shape, shares.shape[-1]))
    upper = jnp.searchsorted(jnp.asarray(DISTANCES, radius.dtype), radius)
    low, high, share_low, share_high = _bin(shares, jnp.minimum(upper, len(DISTANCES) - 1))
    return share_low + (share_high - share_low) * ((radius - low) / (high - low))


def _counted_radius(shares: Array, target: Array) -> tuple[Array, Array]:
    """The inverse of `_counted_share`, of several solutions the smallest; and whether there is one, or it is 1."""
    shares = jnp.broadcast_to(shares, (*target.shape, shares.shape[-1]))
    reached = shares >= target[..., None]
    low, high, share_low, share_high = _bin(shares, jnp.argmax(reached, axis=-1))
    solvable = (target > 0) & (target < 1) & jnp.any(reached, axis=-1)
    rise = jnp.where(solvable, share_high - share_low, 1)
    return jnp.where(solvable, low + (high - low) * (target - share_low) / rise, 1), solvable


def chi(
    stats: MembraneStats | MembraneDistances,
    beta: Real[ArrayLike, '*#layers'],
    *,
    v_th: Real[ArrayLike, '*#layers'] = 1.0,
    surrogate: str | Surrogate = 'triangular',
    interval: str = 'paper',
) -> Float[Array, '*layers']:
    """The share of membrane potentials in the surrogate's effective domain (Eq. 6).

    With the potentials of a layer taken as Gaussian, `chi = Phi((v_th + r - mean) / sigma) -
    Phi((v_th - r - mean) / sigma)`, r = 1/beta. Eq. 6 prints sqrt(2 pi sigma) where the density needs
    sqrt(2 pi) sigma; this is the density.

    Or counted instead, without taking them as Gaussian: exact at the distances of `MembraneDistances`, linear between.

    Args:
      stats: `MembraneStats` of one layer or of many, any shape; or `MembraneDistances`, for the share that was counted.
      beta: width parameter, at least 0; broadcasts with the statistics.
      v_th: threshold; broadcasts with the statistics. Counts are from the threshold of the layer and need none.
      surrogate: the shape, see `domain_half_width`.
      interval: 'paper' or 'support', see `domain_half_width`.

    Returns:
      chi in 0 to 1, at least float32, of the broadcast shape. Where the variance is 0 it is 1 or 0: all
      potentials lie inside the open interval or none do. NaN where the statistics are not finite. A count
      ends at a distance of 32: beyond, it is the share within that. Differentiable by all of its numbers; where the
      variance is 0 it is constant, with derivatives of 0.

    Raises:
      ValueError: unknown surrogate or interval.
    """
    if isinstance(stats, MembraneDistances):
        beta = _like_shares(stats.shares, beta)
        return _counted_share(stats.shares, domain_radius(beta, surrogate, interval))
    sigma, distance, beta, (spread, finite) = _gaussian(stats, v_th, beta)
    radius = domain_radius(beta, surrogate, interval)
    share = jnp.where(spread, _mass(distance / sigma, radius / sigma), (distance < radius).astype(sigma.dtype))
    return jnp.where(finite, share, jnp.nan)


def beta_for_chi(
    target: Real[ArrayLike, '*#layers'],
    stats: MembraneStats | MembraneDistances,
    *,
    v_th: Real[ArrayLike, '*#layers'] = 1.0,
    surrogate: str | Surrogate = 'triangular',
    interval: str = 'paper',
) -> Float[Array, '*layers']:
    """The width parameter at which chi takes a given value: the inverse of `chi`, by bisection.

    chi grows with r = 1/beta from 0 to 1, so the solution is unique. In units of sigma it lies below the
    distance of the mean from v_th plus ten, which is the bracket that 60 halvings narrow. In float32
    chi at the result is within 1e-6 of the target while the mean is within 8 sigma of v_th, and within
    2e-6 up to 16 sigma: float32 itself is no finer. Counts are inverted in one go, by the same lines between the
    distances as those of `chi`.

    Args:
      target: wanted chi; broadcasts with the statistics.
      stats: `MembraneStats` of one layer or of many, any shape; or `MembraneDistances`.
      v_th: threshold; broadcasts with the statistics.
      surrogate: the shape, see `domain_half_width`.
      interval: 'paper' or 'support', see `domain_half_width`.

    Returns:
      beta, at least float32, of the broadcast shape. 0 says that no beta gives that chi: the target is not
      strictly between 0 and 1, the variance is 0, fewer potentials lie within a distance of 32 or within the reach of
      the shape, or a number is not finite. Never NaN. Differentiable by all of its numbers, as an implicit function;
      where it is 0, so are its derivatives.

    Raises:
      ValueError: unknown surrogate or interval.
    """
    width = domain_half_width(surrogate, interval)
    if isinstance(stats, MembraneDistances):
        radius, solvable = _counted_radius(stats.shares, _like_shares(stats.shares, target))
    else:
        sigma, distance, target, (spread, _) = _gaussian(stats, v_th, target)
        solvable = spread & (target > 0) & (target < 1) & jnp.isfinite(distance / sigma)
        ask = lambda value, other: jnp.where(solvable, value, other)
        radius = _radius_in_sigma(ask(distance / sigma, 0), ask(target, 0.5)) * sigma
    # So small a radius that beta would be infinite is none, nor is one that no beta has.
    solvable &= (radius > width / jnp.finfo(radius.dtype).max) & (radius < get_surrogate(surrogate).reach)
    return jnp.where(solvable, width / jnp.where(solvable, radius, 1), 0)


@jax.custom_jvp
@jax.jit  # once, not at each call
def _radius_in_sigma(distance: Array, target: Array) -> Array:
    """The half-width at which `_mass` is the target, by bisection; its derivative is that of an implicit function."""

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        reached = _mass(distance, middle) >= target
        return jnp.where(reached, low, middle), jnp.where(reached, middle, high)

    return jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(distance), distance + _TAIL))[1]


@_radius_in_sigma.defjvp
def _radius_tangent(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (distance, target), (d_distance, d_target) = primals, tangents
    radius = _radius_in_sigma(distance, target)
    # Densities at the two ends: the mass grows by both with the radius, and by their difference with the distance.
    near, far = (
        jnp.exp(-0.5 * jnp.square(end)) / math.sqrt(2 * math.pi) for end in (radius - distance, radius + distance)
    )
    return radius, (d_target + (near - far) * d_distance) / (near + far)


@functools.partial(jax.jit, static_argnames=('surrogate', 'interval'))
def chi_by_layer(
    stats: PyTree,
    beta: PyTree,
    *,
    v_th: float = 1.0,
    surrogate: str | Surrogate = 'triangular',
    interval: str = 'paper',
) -> PyTree:
    """The share of membrane potentials in the effective domain, for all layers at once.

    Args:
      stats: pytree like `beta` with a `MembraneStats`, or a `MembraneDistances`, for each leaf.
      beta: pytree of floating arrays, one leaf per layer.
      v_th: threshold.
      surrogate: the shape, see `domain_half_width`.
      interval: 'paper' or 'support', see `domain_half_width`.

    Returns:
      chi, see `chi`, laid out like beta.

    Raises:
      ValueError: `stats` does not fit the layers of `beta`, or unknown surrogate or interval.
    """
    measured = chi(
        stats_vector(stats, beta), vector('beta', beta, beta), v_th=v_th, surrogate=surrogate, interval=interval
    )
    return like(beta, measured)


@functools.partial(jax.jit, static_argnames=('surrogate', 'interval'))
def beta_for_chi_by_layer(
    target: ArrayLike,
    stats: PyTree,
    beta: PyTree,
    *,
    v_th: float = 1.0,
    surrogate: str | Surrogate = 'triangular',
    interval: str = 'paper',
) -> PyTree:
    """The width parameters at which chi has a given value, for all layers at once.

    Args:
      target: wanted chi.
      stats: pytree like `beta` with a `MembraneStats`, or a `MembraneDistances`, for each leaf.
      beta: pytree of floating arrays, one leaf per layer; only its layers and shapes count.
      v_th: threshold.
      surrogate: the shape, see `domain_half_width`.
      interval: 'paper' or 'support', see `domain_half_width`.

    Returns:
      The width parameters, see `beta_for_chi`, laid out like beta; 0 where there is none.

    Raises:
      ValueError: `stats` does not fit the layers of `beta`, or unknown surrogate or interval.
    """
    found = beta_for_chi(target, stats_vector(stats, beta), v_th=v_th, surrogate=surrogate, interval=interval)
    return like(beta, found)
