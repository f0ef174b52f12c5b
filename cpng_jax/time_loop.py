"""The time loop of LIF neurons with a backward pass of its own, which keeps the membrane potential and nothing else.

Differentiated by JAX, the loop of `neuron.lif_reference` keeps several arrays of all time steps. Here Eq. 7 and 8
are written out, so that one is enough: spikes and surrogate gradient follow from the potential.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cpng_jax.surrogate import Array, Surrogate

# Time steps that the scan lays out one after the other. A GPU then runs them as few kernels; more than this only costs
# compile time. A CPU has nothing to gain from it and would copy the arrays of all steps together at the end.
_UNROLL = 10


class Neurons(NamedTuple):
    """What a layer of neurons is, apart from arrays.

    Attributes:
      surrogate: the shape of the surrogate gradient.
      detach_reset: drop the gradient through the reset, the last term of Eq. 8.
      time_steps: T; currents with one time step are those of every step.
    """

    surrogate: Surrogate
    detach_reset: bool
    time_steps: int

    @property
    def unroll(self) -> int:
        """Time steps that the scan lays out one after the other."""
        return 1 if jax.default_backend() == 'cpu' else min(self.time_steps, _UNROLL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def integrate(currents: Array, beta: Array, tau: Array, v_th: Array, neurons: Neurons) -> tuple[Array, Array]:
    """Runs the neurons over time (Eq. 2).

    Args:
      currents: `[T, ...]`, or `[1, ...]` for the same at every step.
      beta: width of the surrogate gradient, broadcastable to `[...]`.
      tau: decay, broadcastable to `[...]`.
      v_th: threshold, broadcastable to `[...]`.
      neurons: the rest of the description.

    Returns:
      `(spikes, potentials)`: spikes in the dtype of `currents`, and the membrane potentials before the reset, in at
      least float32. Potentials are measurements: no gradient flows through them.
    """
    del beta
    dtype = jnp.promote_types(currents.dtype, jnp.float32)
    threshold, constant = v_th.astype(dtype), len(currents) < neurons.time_steps

    def step(kept: Array, current: Array | None) -> tuple[Array, Array]:
        u = jnp.asarray(tau * kept + (currents[0] if current is None else current), dtype)
        return jnp.where(u - threshold >= 0, 0, u), u

    rest = jnp.zeros(currents.shape[1:], dtype)
    steps = None if constant else currents
    _, potentials = jax.lax.scan(step, rest, steps, length=neurons.time_steps, unroll=neurons.unroll)
    return (potentials - threshold >= 0).astype(currents.dtype), potentials


def _forward(
    currents: Array, beta: Array, tau: Array, v_th: Array, neurons: Neurons
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    outputs: Any = integrate(currents, beta, tau, v_th, neurons)
    # Of the currents, their shape alone.
    return outputs, (outputs[1], beta, tau, v_th, jnp.zeros((len(currents), 0)))


def _backward(
    neurons: Neurons, residuals: tuple[Array, ...], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array]:
    # asarray: under jit JAX may hand a constant back as a Python number.
    potentials, beta, tau, v_th, given = map(jnp.asarray, residuals)
    upstream, _ = cotangents
    dtype = potentials.dtype
    width, threshold, decay = (jnp.asarray(value, dtype) for value in (beta, v_th, tau))
    constant = len(given) < neurons.time_steps

    def step(carry: tuple[Array, Array | None], now: tuple[Array, Array]) -> tuple[Any, Array]:
        later, total = carry
        u, d_spike = now
        d_spike = d_spike.astype(dtype)
        if not neurons.detach_reset:
            d_spike = d_spike - later * decay * u  # Eq. 8
        x = u - threshold
        d_u = d_spike * neurons.surrogate.gradient(x, width) + jnp.where(x >= 0, 0, later * decay)  # Eq. 7
        return (d_u, None if total is None else total + d_u), d_u

    end = jnp.zeros(potentials.shape[1:], dtype)
    start = (end, end if constant else None)
    (_, total), d_u = jax.lax.scan(step, start, (potentials, upstream), reverse=True, unroll=neurons.unroll)
    # What tau and v_th get is computed only where somebody asks for it.
    kept = jnp.where(potentials - threshold >= 0, 0, potentials)
    later = jnp.concatenate([d_u[1:], end[None]])
    through_spike = d_u - jnp.where(potentials - threshold >= 0, 0, later * decay)
    d_tau, d_v_th = _sum_like(later * kept, tau), _sum_like(-through_spike, v_th)
    d_currents = d_u if total is None else total[None]
    return d_currents.astype(upstream.dtype), jnp.zeros_like(beta), d_tau, d_v_th


integrate.defvjp(_forward, _backward)


def _sum_like(x: Array, like: Array) -> Array:
    """Sums over the axes along which an array of the shape of `like` was broadcast."""
    x = jnp.sum(x, axis=tuple(range(x.ndim - like.ndim)))
    axes = tuple(axis for axis, size in enumerate(like.shape) if size == 1 and x.shape[axis] != 1)
    return jnp.sum(x, axis=axes, keepdims=True).astype(like.dtype)
