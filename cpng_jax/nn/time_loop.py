"""The time loop of LIF neurons with a backward pass of its own, which keeps the currents and nothing else.

Differentiated by JAX, the loop of `neuron.lif_reference` keeps several arrays of all time steps. Here Eq. 7 and 8
are written out, and the potentials they need are computed again from the currents. A norm before the neurons is
applied inside the loop, so what is kept is what the norm was given, which its own gradient needs in any case.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cpng_jax.nn.statistics import Measured, measure
from cpng_jax.nn.surrogate import Array, Surrogate

# Time steps that the scan lays out one after the other, so that few kernels do the work of many. More than this only
# costs compile time.
_UNROLL = 10


class Neurons(NamedTuple):
    """What a layer of neurons is, apart from arrays.

    Attributes:
      surrogate: the shape of the surrogate gradient.
      detach_reset: drop the gradient through the reset, the last term of Eq. 8.
      time_steps: T; currents with one time step are those of every step.
      count: also measure how many potentials are near the threshold.
      per_channel: measure mean and variance of each channel, the last axis, by itself.
    """

    surrogate: Surrogate
    detach_reset: bool
    time_steps: int
    count: bool = False
    per_channel: bool = False

    @property
    def unroll(self) -> int:
        """Time steps that the scan lays out one after the other."""
        if self.time_steps <= _UNROLL:
            return self.time_steps
        # Several at a time of many cost a CPU two copies.
        return 1 if jax.default_backend() == 'cpu' else _UNROLL


class Affine(NamedTuple):
    """A map of each channel, `(values - mean) * gain + bias`; each broadcastable to the values of a step."""

    mean: Array
    gain: Array
    bias: Array


class Normalised(NamedTuple):
    """An array whose normalisation is still to be applied.

    Neurons apply it step by step, so that neither they nor the norm keep a normalised copy for the backward pass.

    Attributes:
      values: `[T, B, ...]`, or `[1, B, ...]` where all are the same at every step.
      affine: what to apply; None leaves the values as they are.
    """

    values: Array
    affine: Affine | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return self.values.shape

    def array(self) -> Array:
        """Applies the normalisation; the result has the dtype of the values."""
        return sum_of((self,)).astype(self.values.dtype)


Terms = tuple[Normalised, ...]
Values = tuple[Array, ...]


def sum_of(terms: Terms) -> Array:
    """Applies the normalisations and adds the terms, in at least float32."""
    total: Any = None
    for values, affine in terms:
        term = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        if affine is not None:
            term = (term - affine.mean) * affine.gain + affine.bias
        total = term if total is None else total + term
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def integrate(currents: Terms, beta: Array, tau: Array, v_th: Array, neurons: Neurons) -> tuple[Array, Measured]:
    """Runs the neurons over time (Eq. 2) and measures their potentials.

    Args:
      currents: pre-synaptic, a sum of terms, all with T time steps or all with one.
      beta: width of the surrogate gradient, broadcastable to `[B, ...]`.
      tau: decay, likewise.
      v_th: threshold, likewise.
      neurons: the rest of the description.

    Returns:
      `(spikes, measured)`: spikes in the dtype of the first values, and what is measured, in at least float32 like the
      membrane potential. No gradient flows through the latter.
    """
    del beta
    dtype = currents[0].values.dtype
    emit = lambda u, spike: (
        spike.astype(dtype),
        measure(u, v_th, count=neurons.count, per_channel=neurons.per_channel),
    )
    return _run(currents, tau, v_th, neurons, emit)


def potentials(currents: Terms, tau: Array, v_th: Array, neurons: Neurons) -> Array:
    """Membrane potentials before the reset (Eq. 2), in at least float32.

    Args:
      currents: as of `integrate`.
      tau: as of `integrate`.
      v_th: as of `integrate`.
      neurons: as of `integrate`.

    Returns:
      `[T, B, ...]`.
    """
    return _run(currents, tau, v_th, neurons, lambda u, _: u)


def _run(currents: Terms, tau: Array, v_th: Array, neurons: Neurons, emit: Callable[[Array, Array], Any]) -> Any:
    """Runs the loop and stacks what `emit` makes of potentials and spikes at each step."""
    same, steps = _over_time(currents, neurons)
    first = jax.eval_shape(sum_of, same)

    def step(kept: Array, values: Values | None) -> tuple[Array, Any]:
        current = sum_of(same if values is None else _with(currents, values))
        u = jnp.asarray(tau * kept + current, first.dtype)
        spike = u - v_th.astype(u.dtype) >= 0
        return jnp.where(spike, 0, u), emit(u, spike)

    rest = jnp.zeros(first.shape, first.dtype)
    return jax.lax.scan(step, rest, steps, length=neurons.time_steps, unroll=neurons.unroll)[1]


def _over_time(currents: Terms, neurons: Neurons) -> tuple[Terms, Values | None]:
    """The terms of the first step, and the values of all, or None where they are the same at each."""
    values = tuple(term.values for term in currents)
    first = _with(currents, tuple(array[0] for array in values))
    return first, None if len(values[0]) < neurons.time_steps else values


def _with(currents: Terms, values: Values) -> Terms:
    """The terms with other values."""
    return tuple(Normalised(array, term.affine) for array, term in zip(values, currents, strict=True))


def _forward(
    currents: Terms, beta: Array, tau: Array, v_th: Array, neurons: Neurons
) -> tuple[tuple[Array, Measured], tuple[Any, ...]]:
    outputs: Any = integrate(currents, beta, tau, v_th, neurons)
    return outputs, (currents, beta, tau, v_th)


def _backward(
    neurons: Neurons, residuals: tuple[Any, ...], cotangents: tuple[Array, Measured]
) -> tuple[Terms, Array, Array, Array]:
    # asarray: under jit JAX may hand a constant back as a Python number.
    currents, beta, tau, v_th = jax.tree.map(jnp.asarray, residuals)
    upstream, _ = cotangents
    u_of_all_steps = potentials(currents, tau, v_th, neurons)
    dtype = u_of_all_steps.dtype
    width, threshold, decay = (jnp.asarray(value, dtype) for value in (beta, v_th, tau))
    same, steps = _over_time(currents, neurons)
    # Where all steps share the values, their gradient is summed up over the steps.
    same = _with(same, tuple(term.values.astype(dtype) for term in same))

    def step(carry: tuple[Array, Any], now: tuple[Array, Array, Values | None]) -> tuple[Any, Any]:
        later, sums = carry
        u, d_spike, values = now
        d_spike = d_spike.astype(dtype)
        if not neurons.detach_reset:
            d_spike = d_spike - later * decay * u  # Eq. 8
        x = u - threshold
        through_spike = d_spike * neurons.surrogate.gradient(x, width)
        kept = jnp.where(x >= 0, 0, u)
        d_u = through_spike + jnp.where(x >= 0, 0, later * decay)  # Eq. 7
        (d_terms,) = jax.vjp(sum_of, same if values is None else _with(currents, values))[1](d_u)
        # Of each step's values by themselves, or of the values that all steps share summed up like the rest.
        d_values = None if values is None else tuple(term.values for term in d_terms)
        shared = d_terms if values is None else tuple(term.affine for term in d_terms)
        # The potential of the next step has tau times what is kept in it.
        new = shared, _sum_like(later * kept, tau), _sum_like(-through_spike, v_th)
        return (d_u, jax.tree.map(jnp.add, sums, new)), d_values

    end = jnp.zeros(u_of_all_steps.shape[1:], dtype)
    shared = same if steps is None else tuple(term.affine for term in currents)
    start = end, jax.tree.map(jnp.zeros_like, (shared, tau, v_th))
    (_, (shared, d_tau, d_v_th)), d_values = jax.lax.scan(
        step, start, (u_of_all_steps, upstream, steps), reverse=True, unroll=neurons.unroll
    )
    if d_values is None:
        d_values = tuple(d.values[None].astype(term.values.dtype) for d, term in zip(shared, currents, strict=True))
        shared = tuple(term.affine for term in shared)
    return tuple(map(Normalised, d_values, shared)), jnp.zeros_like(beta), d_tau, d_v_th


integrate.defvjp(_forward, _backward)


def _sum_like(x: Array, like: Array) -> Array:
    """Sums over the axes along which an array of the shape of `like` was broadcast."""
    x = jnp.sum(x, axis=tuple(range(x.ndim - like.ndim)))
    axes = tuple(axis for axis, size in enumerate(like.shape) if size == 1 and x.shape[axis] != 1)
    return jnp.sum(x, axis=axes, keepdims=True).astype(like.dtype)
