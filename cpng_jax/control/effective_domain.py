"""The effective domain indicator chi (Eq. 6) and its inverse, from the moments of the potentials or from counts."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr

from cpng_jax.control.layer_tree import PyTree, like, stats_vector, vector
from cpng_jax.nn.statistics import DISTANCES, MembraneDistances, MembraneStats
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate, get_surrogate

INTERVALS = ('paper', 'support')

_HALVINGS = 60
# Standard deviations past the mean at which the normal distribution has nothing left, in float64 too.
_TAIL = 10.0


def domain_half_width(surrogate: str | Surrogate = 'triangular', interval: str = 'paper') -> float:
    """Half the width of the effective domain, in units of 1/beta.

    Args:
      surrogate: 'triangular', 'rectangular', 'arctan' or a `Surrogate`.
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
    if interval == 'support' and not math.isinf(surrogate.support):
        return surrogate.support
    return surrogate.half_width


def beta_of_width(width: ArrayLike, surrogate: str | Surrogate) -> Array:
    """The width parameter at which a surrogate gradient is non-zero in an interval of a given width.

    That of arctan is non-zero everywhere: it gets the beta of the triangular one.

    Args:
      width: of the interval around the threshold, greater than 0, any shape.
      surrogate: 'triangular', 'rectangular', 'arctan' or a `Surrogate`.

    Returns:
      beta, at least float32, of the same shape.

    Raises:
      ValueError: unknown surrogate.
    """
    width = jnp.asarray(width)
    return 2 * domain_half_width(surrogate, 'support') / width.astype(jnp.promote_types(width.dtype, jnp.float32))


def _standardise(stats: MembraneStats, v_th: ArrayLike) -> tuple[Array, Array]:
    """Standard deviation, and distance of the mean from the threshold in units of it."""
    mean, variance = (jnp.asarray(value) for value in stats)
    dtype = jnp.promote_types(jnp.result_type(mean, variance), jnp.float32)
    sigma = jnp.sqrt(variance.astype(dtype))
    return sigma, jnp.abs(jnp.asarray(v_th, dtype) - mean.astype(dtype)) / sigma


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
    shares = jnp.broadcast_to(shares, (*radius.shape, shares.shape[-1]))
    upper = jnp.searchsorted(jnp.asarray(DISTANCES, radius.dtype), radius)
    low, high, share_low, share_high = _bin(shares, jnp.minimum(upper, len(DISTANCES) - 1))
    part = jnp.clip((radius - low) / (high - low), 0, 1)
    return share_low + (share_high - share_low) * part


def _counted_radius(shares: Array, target: Array) -> Array:
    """The inverse of `_counted_share`, of several solutions the smallest; NaN if there is none."""
    shares = jnp.broadcast_to(shares, (*target.shape, shares.shape[-1]))
    reached = shares >= target[..., None]
    low, high, share_low, share_high = _bin(shares, jnp.argmax(reached, axis=-1))
    radius = low + (high - low) * (target - share_low) / (share_high - share_low)
    solvable = (target > 0) & (target < 1) & jnp.any(reached, axis=-1)
    return jnp.where(solvable, radius, jnp.nan)


def chi(
    stats: MembraneStats | MembraneDistances,
    beta: ArrayLike,
    *,
    v_th: ArrayLike = 1.0,
    surrogate: str | Surrogate = 'triangular',
    interval: str = 'paper',
) -> Array:
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
      ends at a distance of 32: beyond, it is the share within that.

    Raises:
      ValueError: unknown surrogate or interval.
    """
    width = domain_half_width(surrogate, interval)
    if isinstance(stats, MembraneDistances):
        return _counted_share(stats.shares, _like_shares(stats.shares, width / jnp.asarray(beta, stats.shares.dtype)))
    sigma, distance = _standardise(stats, v_th)
    radius = width / jnp.asarray(beta, sigma.dtype)
    spread = sigma > 0
    constant = jnp.abs(jnp.asarray(v_th, sigma.dtype) - stats.mean) < radius
    share = jnp.where(spread, _mass(distance, radius / sigma), constant.astype(sigma.dtype))
    finite = jnp.isfinite(stats.mean) & jnp.isfinite(stats.variance)
    return jnp.where(finite, share, jnp.nan)


def beta_for_chi(
    target: ArrayLike,
    stats: MembraneStats | MembraneDistances,
    *,
    v_th: ArrayLike = 1.0,
    surrogate: str | Surrogate = 'triangular',
    interval: str = 'paper',
) -> Array:
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
      strictly between 0 and 1, the variance is 0, fewer potentials lie within a distance of 32, or a number is not
      finite. Never NaN.

    Raises:
      ValueError: unknown surrogate or interval.
    """
    width = domain_half_width(surrogate, interval)
    if isinstance(stats, MembraneDistances):
        beta = width / _counted_radius(stats.shares, _like_shares(stats.shares, target))
        return jnp.where(jnp.isfinite(beta), beta, 0)
    sigma, distance = _standardise(stats, v_th)
    target = jnp.asarray(target, sigma.dtype)
    sigma, distance, target = jnp.broadcast_arrays(sigma, distance, target)

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        reached = _mass(distance, middle) >= target
        return jnp.where(reached, low, middle), jnp.where(reached, middle, high)

    _, radius = jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(distance), distance + _TAIL))
    beta = width / (radius * sigma)
    solvable = (target > 0) & (target < 1) & (sigma > 0) & jnp.isfinite(distance) & jnp.isfinite(beta)
    return jnp.where(solvable, beta, 0)


@functools.partial(jax.jit, static_argnames=('v_th', 'surrogate', 'interval'))
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
