"""The time loop of LIF neurons with a backward pass of its own, which keeps the currents and nothing else.

Differentiated by JAX, the loop of `neuron.lif_reference` keeps several arrays of all time steps. Here Eq. 7 and 8
are written out, and the potentials they need are computed again from the currents. A norm before the neurons is
applied inside the loop, so what is kept is what the norm was given, which its own gradient needs in any case. On a CPU,
many time steps go in segments of a few, `nn/segments.py`, and the state before each is kept as well.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cpng_jax.nn import segments
from cpng_jax.nn.packing import Unpacked, packed
from cpng_jax.nn.scheduling import apart
from cpng_jax.nn.statistics import Measured, firing_rate, measure
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate, at_least_float32, of_rank
from cpng_jax.nn.terms import Affine, Normalised, Terms, Values, packed_terms, sum_of, unpacked_terms, with_values
from cpng_jax.nn.varying import on_cpu, varying_alike

# Time steps that the scan lays out one after the other, so that XLA fuses them into few kernels. More than this only
# costs compile time, and on a CPU more than that falls out of its caches.
_UNROLL, _UNROLL_CPU = 10, 8
# Bytes of a step from which on that is faster on a CPU. For less it only makes a larger program.
_LAID_OUT = 2**20


class Neurons(NamedTuple):
    """What a layer of neurons is, apart from arrays: hashable, and another program for each value.

    Attributes:
      surrogate: the shape of the surrogate gradient.
      detach_reset: drop the gradient through the reset, the last term of Eq. 8.
      time_steps: T; currents with one time step are those of every step.
      count: also measure how many potentials are near the threshold.
      per_channel: measure mean and variance of each channel, the last axis, by itself.
      currents: also measure mean and variance of the currents.
      rate: also measure the firing rate.
      kept: what makes numbers of what is kept of each term's values; () where all are kept as they are.
    """

    surrogate: Surrogate
    detach_reset: bool
    time_steps: int
    count: bool = False
    per_channel: bool = False
    currents: bool = False
    rate: bool = False
    kept: tuple[Unpacked, ...] = ()

    def unroll(self, u: Array) -> int:
        """Time steps that the scan lays out one after the other, for potentials `u` of a step."""
        if jax.default_backend() != 'cpu':
            return min(self.time_steps, _UNROLL)
        return min(self.time_steps, _UNROLL_CPU) if u.size * u.dtype.itemsize >= _LAID_OUT else 1


class Parameters(NamedTuple):
    """The numbers of a layer of neurons, which may be traced: changing them never recompiles.

    Attributes:
      beta: width parameter of the surrogate gradient, a scalar or broadcastable to `[B, ...]`.
      tau: decay of the membrane potential per time step, 0 to 1, of such a shape.
      v_th: threshold, of such a shape.
      scale: factor of the surrogate gradient, of such a shape.
    """

    beta: ArrayLike
    tau: ArrayLike
    v_th: ArrayLike
    scale: ArrayLike = 1.0


def integrate(
    currents: Terms, parameters: Parameters, neurons: Neurons, state: Array | None = None
) -> tuple[Array, Measured, Array]:
    """Runs the neurons over time (Eq. 2) and measures their potentials; backward Eq. 7 and 8.

    Args:
      currents: pre-synaptic, the terms of a sum, `[T, B, ...]`, or `[1, B, ...]` for the same at every step.
      parameters: floating arrays; those of beta and scale get a cotangent of zero.
      neurons: the rest of the description.
      state: what the reset has left of the potentials before the first step, `[B, ...]`; None for 0.

    Returns:
      `(spikes, measured, state)`: spikes 0 or 1, `[T, B, ...]`, in the dtype of the first values; what is measured, in
      at least float32 like the membrane potential, through which no gradient flows; the state after the last step.
    """
    return _integrate(*varying_alike((currents, parameters, state)), neurons)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _integrate(
    currents: Terms, parameters: Parameters, state: Array | None, neurons: Neurons
) -> tuple[Array, Measured, Array]:
    return _forward(currents, parameters, state, neurons)[0]


@functools.partial(apart, static=(3,))
def _run(
    currents: Terms, parameters: Parameters, state: Array | None, neurons: Neurons
) -> tuple[tuple[Array, Measured, Array], Array | None]:
    """What `integrate` returns, with spikes as they are kept; and the state before each segment, if there are some."""
    currents = unpacked_terms(currents, neurons.kept)
    v_th, (pack, unpack) = jnp.asarray(parameters.v_th), _spikes_as_kept(currents, neurons)
    # Measured inside the loop, where the potentials are at hand: afterwards all of them would have to be kept.
    emit = lambda u, spike, current: (
        pack(spike),
        measure(u, v_th, current if neurons.currents else None, count=neurons.count, per_channel=neurons.per_channel),
    )
    (spikes, measured), left, before = _scan(currents, parameters, state, neurons, emit)
    if neurons.rate:
        measured = measured._replace(rate=firing_rate(unpack(spikes), neurons.per_channel))
    return (spikes, measured, left), before


def _spikes_as_kept(currents: Terms, neurons: Neurons) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """What keeps spikes, and what makes floats of that, in the dtype of the currents.

    On a CPU they are bytes, which is then what XLA keeps; in segments, unpacking them would be one pass more.
    """
    dtype = currents[0].values.dtype
    if jax.default_backend() == 'cpu' and not _in_segments(currents, neurons):
        return packed, Unpacked(1.0, dtype)
    return lambda spikes: spikes.astype(dtype), lambda kept: kept


def potentials(currents: Terms, parameters: Parameters, neurons: Neurons, state: Array | None = None) -> Array:
    """Computes the membrane potentials before the reset (Eq. 2).

    Args:
      currents: pre-synaptic, the terms of a sum, `[T, B, ...]`, or `[1, B, ...]` for the same at every step.
      parameters: floating arrays, of which beta and scale have no part in this.
      neurons: the rest of the description.
      state: what the reset has left of the potentials before the first step, `[B, ...]`; None for 0.

    Returns:
      `[T, B, ...]`, in at least float32.
    """
    return _scan(*varying_alike((currents, parameters, state)), neurons, lambda u, *_: u)[0]


def _scan(
    currents: Terms,
    parameters: Parameters,
    state: Array | None,
    neurons: Neurons,
    emit: Callable[[Array, Array, Array], Any],
) -> tuple[Any, Array, Array | None]:
    """Runs Eq. 2 and stacks what `emit` makes of the potentials before the reset, spikes and currents of each step.

    Beside that, what the last reset leaves; and the state before each segment, if there are segments.
    """
    first, values_of_all_steps = _by_step(currents, neurons)
    # At rest, an array of the very type that a step makes, which a scan asks for: also inside `jax.shard_map`.
    rest = jnp.zeros_like(sum_of(first)) if state is None else state
    charge = _charging(currents, parameters, neurons, rest.dtype)

    def step(u_after_reset: Array, values: Values | None) -> tuple[Array, Any]:
        u, spike, current, u_after_reset = charge(u_after_reset, values)
        return u_after_reset, emit(u, spike, current)

    if not _in_segments(currents, neurons):
        left, stacked = jax.lax.scan(
            step, rest, values_of_all_steps, length=neurons.time_steps, unroll=neurons.unroll(rest)
        )
        return stacked, left, None

    def segment(start: Array, values: list[Values | None], _: None) -> tuple[Array, list[Any], Array]:
        u_after_reset, emitted = start, []
        for now in values:
            u_after_reset, given = step(u_after_reset, now)
            emitted.append(given)
        return u_after_reset, emitted, start

    left, stacked, before = segments.scan(segment, rest, values_of_all_steps, time_steps=neurons.time_steps)
    return stacked, left, before


def _charging(
    currents: Terms, parameters: Parameters, neurons: Neurons, dtype: Any
) -> Callable[[Array, Values | None], tuple[Array, Array, Array, Array]]:
    """Eq. 2: maps what a reset has left, and values of a step, to potential, spike, current, and what is left then."""
    first, _ = _by_step(currents, neurons)
    # In the dtype of the carry, which a scan must hand on as it got it.
    tau, v_th = (jnp.asarray(value, dtype) for value in (parameters.tau, parameters.v_th))

    def charge(u_after_reset: Array, values: Values | None) -> tuple[Array, Array, Array, Array]:
        current = sum_of(first if values is None else with_values(currents, values))
        u = tau * u_after_reset + current
        # The difference that the surrogate gradient takes, so that both passes round alike at the threshold.
        spike = u - v_th >= 0
        return u, spike, current, jnp.where(spike, 0, u)

    return charge


def _in_segments(currents: Terms, neurons: Neurons) -> bool:
    """Whether the time steps are taken in segments: on a CPU, where they are too many to be laid out."""
    return neurons.time_steps > _UNROLL_CPU and all(on_cpu(term.values) for term in currents)


def _by_step(currents: Terms, neurons: Neurons) -> tuple[Terms, Values | None]:
    """The terms of the first step, and the values of all steps for a scan, or None where they are the same at each."""
    values = tuple(term.values for term in currents)
    first = with_values(currents, tuple(array[0] for array in values))
    return first, None if len(values[0]) < neurons.time_steps else values


# What was given, and the state before each segment, if there are segments.
Residuals = tuple[Terms, Parameters, Array | None, Array | None]


def _forward(
    currents: Terms, parameters: Parameters, state: Array | None, neurons: Neurons
) -> tuple[tuple[Array, Measured, Array], Residuals]:
    kept = packed_terms(currents, neurons.kept)
    (spikes, measured, left), before = _run(kept, parameters, state, neurons)
    unpack = _spikes_as_kept(currents, neurons)[1]
    return (unpack(spikes), measured, left), (kept, parameters, state, before)


def _backward(
    neurons: Neurons, residuals: Residuals, cotangents: tuple[Array, Measured, Array]
) -> tuple[Terms, Parameters, Array | None]:
    d_currents, d_maps, d_parameters, d_state = _through_time(neurons, residuals, cotangents)
    # Outside, where XLA takes it together with what a norm adds to it.
    dtypes = [unpack.dtype for unpack in neurons.kept] or [term.values.dtype for term in residuals[0]]
    d_terms = map(functools.partial(_through_map, d_currents), residuals[0], d_maps, dtypes)
    return tuple(d_terms), d_parameters, d_state


@functools.partial(apart, static=(0,))
def _through_time(
    neurons: Neurons, residuals: Residuals, cotangents: tuple[Array, Measured, Array]
) -> tuple[Array, tuple[tuple[Array, Array] | None, ...], Parameters, Array | None]:
    """The gradients by the currents, by gain and bias of each map, by the parameters and by the state."""
    # asarray: under jit JAX may hand a constant back as a Python number.
    kept, parameters, state, before = jax.tree.map(jnp.asarray, residuals)
    currents = unpacked_terms(kept, neurons.kept)
    beta, tau, v_th, scale = parameters
    upstream, _, d_left = cotangents
    dtype = d_left.dtype
    width, threshold, decay, height = (jnp.asarray(value, dtype) for value in (beta, v_th, tau, scale))
    _, values_of_all_steps = _by_step(currents, neurons)
    zeros = jnp.zeros_like(d_left)

    def step(carry: tuple[Array, Array, Any], now: tuple[Array, Array, Values | None]) -> tuple[Any, Any]:
        # Gradients of the next step's potential, and of what this step's reset leaves: tau times that, but at the end.
        d_u_next, d_u_after_reset, sums = carry
        u, d_spike, values = now
        d_spike = d_spike.astype(dtype)
        if not neurons.detach_reset:
            d_spike = d_spike - d_u_after_reset * u  # Eq. 8
        x = u - threshold
        through_spike = d_spike * (height * neurons.surrogate.gradient(x, width))
        u_after_reset = jnp.where(x >= 0, 0, u)
        d_u = through_spike + jnp.where(x >= 0, 0, d_u_after_reset)  # Eq. 7
        # d_u is also the gradient of this step's currents: stacked, or summed up where all steps share them, which low
        # precision would blur. The next potential is tau times what the reset left of this one.
        d_current, d_shared = (d_u.astype(values[0].dtype), None) if values is not None else (None, d_u)
        new = d_shared, sum_like(d_u_next * u_after_reset, tau), sum_like(-through_spike, v_th)
        return (d_u, d_u * decay, jax.tree.map(jnp.add, sums, new)), d_current

    shared = zeros if values_of_all_steps is None else None
    start = zeros, d_left, (shared, jnp.zeros_like(tau), jnp.zeros_like(v_th))
    if before is None:
        # Computed again, and not kept from the forward pass.
        now = potentials(currents, parameters, neurons, state), upstream, values_of_all_steps
        carry, d_currents = jax.lax.scan(step, start, now, reverse=True, unroll=neurons.unroll(d_left))
    else:
        carry, d_currents, _ = segments.scan(
            functools.partial(_segment_backward, _charging(currents, parameters, neurons, dtype), step),
            start,
            (upstream, values_of_all_steps),
            before,
            time_steps=neurons.time_steps,
            reverse=True,
        )
    d_u, d_state, (d_shared, d_tau, d_v_th) = carry
    d_currents = d_shared[None] if d_currents is None else d_currents
    d_maps = tuple(term.affine and _by_map(term.values, term.affine, d_currents) for term in currents)
    if state is not None:
        d_tau = d_tau + sum_like(d_u * state, tau)
    d_parameters = Parameters(jnp.zeros_like(beta), d_tau, d_v_th, jnp.zeros_like(scale))
    return d_currents, d_maps, d_parameters, None if state is None else d_state


def _by_map(values: Array, affine: Affine, d: Array) -> tuple[Array, Array]:
    """From the gradient of `sum_of`, of all time steps, those of gain and bias."""
    mean, gain, bias = affine
    applied = lambda gain, bias: sum_of((Normalised(values, Affine(mean, gain, bias)),))
    return jax.vjp(applied, gain, bias)[1](d.astype(at_least_float32(d.dtype)))


def _through_map(d: Array, term: Normalised, d_map: tuple[Array, Array] | None, dtype: Any) -> Normalised:
    """From the gradient of `sum_of` and those of gain and bias that of a whole term."""
    if term.affine is None or d_map is None:
        return Normalised(d.astype(dtype), None)
    d_gain, d_bias = d_map
    # A mean is taken off before the gain, and so its gradient is that of the bias times minus the gain.
    gain, wide = term.affine.gain, d.astype(at_least_float32(d.dtype))
    return Normalised((wide * of_rank(gain, d.ndim)).astype(dtype), Affine(-gain * d_bias, d_gain, d_bias))


def _segment_backward(
    charge: Callable[..., tuple[Array, Array, Array, Array]],
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    now: list[tuple[Array, Values | None]],
    u_after_reset: Array,
) -> tuple[Any, list[Any], None]:
    """Goes back through a segment, whose potentials are computed again from the state before it."""
    u_of_steps, d_values = [], []
    for _, values in now:
        u, _, _, u_after_reset = charge(u_after_reset, values)
        u_of_steps.append(u)
    u_of_steps = jax.lax.optimization_barrier(u_of_steps)
    for u, given in zip(reversed(u_of_steps), reversed(now), strict=True):
        carry, d_of_step = step(carry, (u, *given))
        d_values.insert(0, d_of_step)
    return carry, d_values, None


_integrate.defvjp(_forward, _backward)


def sum_like(x: Array, like: Array) -> Array:
    """Sums over the axes along which an array of the shape of `like` was broadcast: the gradient of broadcasting.

    Args:
      x: gradient by what was broadcast.
      like: what was; its dtype is that of the result.

    Returns:
      The gradient by `like`.
    """
    x = jnp.sum(x, axis=tuple(range(x.ndim - like.ndim)))
    axes = tuple(axis for axis, size in enumerate(like.shape) if size == 1 and x.shape[axis] != 1)
    return jnp.sum(x, axis=axes, keepdims=True).astype(like.dtype)
