"""Leaky integrate-and-fire neurons: the time loop (Eq. 2) and its linen module."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from cpng_jax.surrogate import Array, ArrayLike, Surrogate, get_surrogate, spike

# Time steps that the scan lays out one after the other: XLA then fuses them, which saves memory and time.
# More than this only costs compile time.
_UNROLL = 10


class MembraneStats(NamedTuple):
    """Mean and variance of a layer's membrane potential before the reset (Sec. 4.1).

    Attributes:
      mean: float32 (float64 for float64 input), in units of the threshold's scale.
      variance: likewise, biased (divided by the number of potentials), never negative.
    """

    mean: Array
    variance: Array


def membrane_stats(u: ArrayLike) -> MembraneStats:
    """Measures the mean and the variance of membrane potentials over all axes.

    Under `jit` with a sharded batch both are global. The variance is taken about a first
    estimate of the mean and then corrected, so it is right where |mean| is far above the
    standard deviation.

    Args:
      u: membrane potential before the reset, any shape with at least one element.

    Returns:
      Scalars in at least float32. No gradient flows through them: they are measurements.
    """
    u = jnp.asarray(u)
    u = jax.lax.stop_gradient(u).astype(jnp.promote_types(u.dtype, jnp.float32))
    shift = jnp.mean(u)
    deviation = u - shift
    correction = jnp.mean(deviation)
    variance = jnp.mean(jnp.square(deviation)) - jnp.square(correction)
    # Rounding may leave a hair below 0. jnp.maximum hands NaN on, so a layer that diverged does not look constant.
    return MembraneStats(shift + correction, jnp.maximum(variance, 0))


def lif(
    currents: ArrayLike,
    beta: ArrayLike,
    *,
    tau: ArrayLike = 0.5,
    v_th: ArrayLike = 1.0,
    surrogate: str | Surrogate = 'triangular',
    detach_reset: bool = False,
) -> tuple[Array, MembraneStats]:
    """Runs a layer of leaky integrate-and-fire neurons over time (Eq. 2).

    `u[t] = tau * u[t-1] * (1 - s[t-1]) + c[t]`, `s[t] = H(u[t] - v_th)`, from `u = 0`. Its gradient
    is Eq. 7 and 8. The membrane potential is kept in at least float32.

    Args:
      currents: pre-synaptic input c, floating, `[T, ...]` with T >= 1.
      beta: width of the surrogate gradient, scalar or broadcastable to `[...]`.
      tau: decay of the membrane potential per time step, 0 to 1; 1 is integrate-and-fire without leak.
      v_th: threshold, scalar or broadcastable to `[...]`.
      surrogate: 'triangular', 'rectangular', 'arctan' or a `Surrogate`.
      detach_reset: drop the gradient through the reset, the last term of Eq. 8.

    Returns:
      `(spikes, stats)`: spikes 0 or 1 with the shape and dtype of `currents`, and the
      `MembraneStats` of the pre-reset potential over all T and all neurons.

    Raises:
      TypeError: `currents` is not floating.
      ValueError: `currents` has no time step, or tau lies outside 0 to 1.
    """
    currents = jnp.asarray(currents)
    if not jnp.issubdtype(currents.dtype, jnp.floating):
        raise TypeError(f'currents must be floating, got dtype {currents.dtype}.')
    if currents.ndim == 0 or currents.shape[0] == 0:
        raise ValueError(f'currents must be [T, ...] with at least one time step, got shape {currents.shape}.')
    if isinstance(tau, int | float) and not 0 <= tau <= 1:
        raise ValueError(f'tau must lie in 0 to 1, got {tau}.')
    surrogate = get_surrogate(surrogate)
    potential_dtype = jnp.promote_types(currents.dtype, jnp.float32)

    def step(carry: tuple[Array, Array], current: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        u, s = carry
        kept = 1 - (jax.lax.stop_gradient(s) if detach_reset else s)
        u = jnp.asarray(tau * u * kept + current, potential_dtype)
        s = spike(u, beta, v_th, surrogate)
        return (u, s), (u, s.astype(currents.dtype))

    rest = jnp.zeros(currents.shape[1:], potential_dtype)
    _, (potentials, spikes) = jax.lax.scan(step, (rest, rest), currents, unroll=min(currents.shape[0], _UNROLL))
    return spikes, membrane_stats(potentials)


class LIF(nn.Module):
    """A layer of LIF neurons with a surrogate width of its own.

    The width is the variable `beta` of the mutable collection `surrogate`, a float32 scalar. When the
    collections `membrane` and `firing_rate` are mutable, the layer writes there, under the same
    name `beta`, its `MembraneStats` and the share of neurons and time steps that spiked: the three
    collections have one layout, so `jax.tree.map` pairs each beta with its statistics.

    Give every activation a LIF of its own: two activations that share one would share one beta. The spikes
    bear the name `spikes` for policies of `jax.checkpoint`.

    Attributes:
      tau: decay of the membrane potential per time step; 1 is integrate-and-fire.
      v_th: threshold.
      surrogate: 'triangular', 'rectangular', 'arctan' or a `Surrogate`.
      beta_init: width at initialisation.
      detach_reset: drop the gradient through the reset.
    """

    tau: float = 0.5
    v_th: float = 1.0
    surrogate: str | Surrogate = 'triangular'
    beta_init: float = 1.0
    detach_reset: bool = False

    @nn.compact
    def __call__(self, currents: Array) -> Array:
        """Returns the spikes for pre-synaptic currents `[T, B, ...]`, in their shape and dtype."""
        if not self.beta_init > 0:
            raise ValueError(f'beta_init must be greater than 0, got {self.beta_init}.')
        beta = self.variable('surrogate', 'beta', lambda: jnp.asarray(self.beta_init, jnp.float32))
        spikes, stats = lif(
            currents,
            beta.value,
            tau=self.tau,
            v_th=self.v_th,
            surrogate=self.surrogate,
            detach_reset=self.detach_reset,
        )
        spikes = checkpoint_name(spikes, 'spikes')
        if not self.is_initializing():
            if self.is_mutable_collection('membrane'):
                self.put_variable('membrane', 'beta', stats)
            if self.is_mutable_collection('firing_rate'):
                rate = jnp.mean(jax.lax.stop_gradient(spikes), dtype=jnp.float32)
                self.put_variable('firing_rate', 'beta', rate)
        return spikes
