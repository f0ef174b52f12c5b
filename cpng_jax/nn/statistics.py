"""Statistics of membrane potentials: mean and variance, or how near they are to the threshold.

They are taken inside the time loop, by example and step, and put together after it: devices that share a batch then
have nothing to tell each other at each step, and no potential is kept for them.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cpng_jax.nn.surrogate import Array, ArrayLike, at_least_float32, of_rank
from cpng_jax.nn.varying import explicit_spec

# Distances from the threshold within which potentials are counted: from 1/32 to 32, four to each doubling.
_PER_DOUBLING = 4
DISTANCES = 2.0 ** (np.arange(-5 * _PER_DOUBLING, 5 * _PER_DOUBLING + 1) / _PER_DOUBLING)


class MembraneStats(NamedTuple):
    """Mean and variance of a layer's membrane potential before the reset (Sec. 4.1).

    Attributes:
      mean: float32 (float64 for float64 input), in units of the threshold's scale.
      variance: biased (divided by the number of potentials), never negative, in the dtype of the mean.
    """

    mean: Float[Array, '*layers']
    variance: Float[Array, '*layers']


class MembraneDistances(NamedTuple):
    """How near a layer's membrane potentials before the reset are to the threshold: the distribution of `|u - v_th|`.

    Attributes:
      shares: float32 (float64 for float64 input), `[..., K]`, the share of potentials within each of the K distances
        `DISTANCES` from the threshold, which grow from 1/32 to 32 by the fourth root of 2. NaN where
        a potential is not finite.
    """

    shares: Float[Array, '*layers distances']


Stats = MembraneStats | MembraneDistances


def is_stats(node: Any) -> bool:
    """Whether a node of a pytree is statistics, of one layer or of many: a leaf for `jax.tree.map`."""
    return isinstance(node, MembraneStats | MembraneDistances)


def nothing_measured(collection: str, beta: Any) -> Any:
    """Makes statistics of zeros, in the layout of a collection of measurements.

    Args:
      collection: 'membrane', 'currents', 'distances' or 'firing_rate'.
      beta: pytree of arrays, one leaf per layer.

    Returns:
      The pytree with a `MembraneStats`, a `MembraneDistances` or a rate in the place of each beta; no two arrays are
      one.

    Raises:
      ValueError: no collection of statistics has that name.
    """
    zeros = lambda *more: jax.tree.map(lambda leaf: jnp.zeros((*leaf.shape, *more), jnp.float32), beta)
    if collection in ('membrane', 'currents'):
        return jax.tree.map(MembraneStats, zeros(), zeros())
    if collection == 'distances':
        return jax.tree.map(MembraneDistances, zeros(len(DISTANCES)))
    if collection == 'firing_rate':
        return zeros()
    raise ValueError(f"collection must be 'membrane', 'currents', 'distances' or 'firing_rate', got {collection!r}.")


def membrane_stats(u: Float[ArrayLike, '*potentials'], per_channel: bool = False) -> MembraneStats:
    """Measures the mean and the variance of membrane potentials over all axes, or all but the last.

    Under `jit` with a sharded batch both are global; inside `jax.shard_map` they are of the device's own potentials.
    The variance is taken about a first estimate of the mean and then corrected, so it is right where `|mean|` is far
    above the standard deviation.

    Args:
      u: membrane potential before the reset, any shape with at least one element.
      per_channel: measure each channel, the last axis, by itself.

    Returns:
      Scalars, or `[C]` per channel, in at least float32. No gradient flows through them: they are measurements.
    """
    u = jnp.asarray(u)
    u = jax.lax.stop_gradient(u).astype(at_least_float32(u.dtype))
    axes = tuple(range(u.ndim - per_channel))
    shift = jnp.mean(u, axes)
    deviation = u - of_rank(shift, u.ndim)
    correction = jnp.mean(deviation, axes)
    variance = jnp.mean(jnp.square(deviation), axes) - jnp.square(correction)
    # Rounding may leave a hair below 0. jnp.maximum hands NaN on, so a layer that diverged does not look constant.
    return MembraneStats(shift + correction, jnp.maximum(variance, 0))


class Measured(NamedTuple):
    """What is measured of each example at each step.

    Attributes:
      membrane: of the potentials before the reset, `[T, B]`, or `[T, B, C]` of each channel.
      shares: `[T, B, K]`, of potentials within each of the K `DISTANCES` from the threshold; None where not asked for.
      currents: of the currents, of the shapes of `membrane`; None where not asked for.
      rate: the firing rate of the layer, over all examples and steps, see `firing_rate`; None where not asked for.
    """

    membrane: MembraneStats
    shares: Array | None = None
    currents: MembraneStats | None = None
    rate: Array | None = None


def measure(
    u: Array, v_th: Array, current: Array | None = None, *, count: bool = False, per_channel: bool = False
) -> Measured:
    """Measures the potentials of one time step, each example by itself.

    Args:
      u: membrane potentials before the reset, `[B, ...]`.
      v_th: threshold, broadcastable to `u`.
      current: the currents of the step, `[B, ...]`, to measure them too.
      count: also measure how many potentials are near the threshold.
      per_channel: mean and variance of each channel, the last axis, by itself.

    Returns:
      `Measured`, of `[B]` or `[B, C]`.
    """
    shares = _shares(jnp.abs(u - v_th.astype(u.dtype))) if count else None
    currents = None if current is None else _of_each_example(current, per_channel)
    return Measured(_of_each_example(u, per_channel), shares, currents)


def _of_each_example(x: Array, per_channel: bool) -> MembraneStats:
    axes = tuple(range(1, x.ndim - per_channel))
    mean = jnp.mean(x, axes, keepdims=True)
    return MembraneStats(jnp.squeeze(mean, axes), jnp.mean(jnp.square(x - mean), axes))


def _shares(distance: Array) -> Array:
    """The share of each example's elements that is at most each of `DISTANCES`; `[B, ...]` to `[B, K]`.

    NaN where an element is not finite: what has diverged must not look far from the threshold.
    """
    spec = explicit_spec(distance)
    if spec is None:
        return _counted(distance)
    # Of indexing JAX would ask how each result is shared out: XLA may see to it.
    by_xla: Any = jax.sharding.auto_axes(_counted, out_sharding=jax.sharding.PartitionSpec(spec[0]))
    return by_xla(distance)


def _counted(distance: Array) -> Array:
    flat = distance.reshape(len(distance), -1)
    # What is in bin i is above low[i] and at most high[i]. The logarithm is right but for rounding at their ends.
    low, high = (jnp.asarray(values, flat.dtype) for values in ([-1, *DISTANCES], [*DISTANCES, math.inf]))
    index = jnp.ceil(_PER_DOUBLING * (jnp.log2(flat) - math.log2(DISTANCES[0])))
    index = jnp.clip(index, 0, len(DISTANCES)).astype(jnp.int32)
    index = index + (flat > high[index]).astype(jnp.int32) - (flat <= low[index]).astype(jnp.int32)
    count = lambda bins: jnp.zeros(len(DISTANCES) + 1, jnp.int32).at[bins].add(1)
    near = jnp.cumsum(jax.vmap(count)(index), axis=-1)[:, :-1]
    finite = jnp.isfinite(jnp.sum(flat, axis=-1, keepdims=True))
    return jnp.where(finite, near.astype(flat.dtype) / flat.shape[-1], jnp.nan)


def firing_rate(spikes: Array, per_channel: bool = False) -> Array:
    """The share of neurons, time steps and examples that spiked.

    Args:
      spikes: 0 or 1, `[T, B, ...]`.
      per_channel: of each channel, the last axis, by itself.

    Returns:
      float32, a scalar, or `[C]` per channel. No gradient flows through it.
    """
    return jnp.mean(jax.lax.stop_gradient(spikes), tuple(range(spikes.ndim - per_channel)), dtype=jnp.float32)


def pooled(parts: MembraneStats, per_channel: bool = False) -> MembraneStats:
    """Mean and variance of all potentials, from those of parts of equal size: the law of total variance.

    Args:
      parts: of each example at each time step, or of each channel.
      per_channel: of each channel by itself.

    Returns:
      Scalars, or `[C]` per channel. No gradient flows through them.
    """
    # As whole arrays: XLA would take what was stacked apart again, and make a sum and a kernel for each step.
    means, variances = jax.lax.optimization_barrier(jax.lax.stop_gradient(tuple(parts)))
    axes = tuple(range(means.ndim - per_channel))
    mean = jnp.mean(means, axes)
    return MembraneStats(mean, jnp.mean(variances + jnp.square(means - of_rank(mean, means.ndim)), axes))


def join_layers(old: Any, new: Any, share: ArrayLike) -> Any:
    """Statistics of two sets of potentials taken together, layer by layer.

    Args:
      old: pytree with a `MembraneStats`, a `MembraneDistances` or a mean for each layer.
      new: the same of other potentials.
      share: of `new` in the whole, 0 to 1.

    Returns:
      The same pytree, of both sets.
    """
    return jax.tree.map(lambda a, b: _join(a, b, share), old, new, is_leaf=is_stats)


def _join(old: Any, new: Any, share: ArrayLike) -> Any:
    if not isinstance(old, MembraneStats):
        return jax.tree.map(lambda a, b: a + (b - a) * share, old, new)
    difference = new.mean - old.mean
    variance = old.variance + (new.variance - old.variance) * share + share * (1 - share) * jnp.square(difference)
    return MembraneStats(old.mean + difference * share, variance)
