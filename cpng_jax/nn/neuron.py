"""Leaky integrate-and-fire neurons as functions of their currents (Eq. 2); `neuron_layer` has their linen module."""

from typing import Any, Literal, NamedTuple, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real

from cpng_jax.nn import time_loop
from cpng_jax.nn.currents import Currents, as_kept, as_state, as_terms, check_decay, number_of_steps
from cpng_jax.nn.statistics import MembraneDistances, MembraneStats, firing_rate, membrane_stats, pooled
from cpng_jax.nn.surrogate import TRIANGULAR, Array, ArrayLike, Surrogate, broadcastable, get_surrogate, spike
from cpng_jax.nn.terms import Terms, sum_of
from cpng_jax.nn.time_loop import Neurons, Parameters

IMPLEMENTATIONS = ('auto', 'scan', 'pallas')


@overload
def lif(
    currents: Currents,
    beta: Real[ArrayLike, '*#neurons'],
    *,
    tau: Real[ArrayLike, '*#neurons'] = 0.5,
    v_th: Real[ArrayLike, '*#neurons'] = 1.0,
    surrogate: str | Surrogate = 'triangular',
    detach_reset: bool = False,
    time_steps: int | None = None,
    implementation: str = 'scan',
    per_channel: bool = False,
    scale: Real[ArrayLike, '*#neurons'] = 1.0,
    initial_state: Float[ArrayLike, '*neurons'] | None = None,
    return_state: Literal[False] = False,
) -> tuple[Float[Array, 'T *neurons'], MembraneStats]: ...
@overload
def lif(
    currents: Currents,
    beta: Real[ArrayLike, '*#neurons'],
    *,
    tau: Real[ArrayLike, '*#neurons'] = 0.5,
    v_th: Real[ArrayLike, '*#neurons'] = 1.0,
    surrogate: str | Surrogate = 'triangular',
    detach_reset: bool = False,
    time_steps: int | None = None,
    implementation: str = 'scan',
    per_channel: bool = False,
    scale: Real[ArrayLike, '*#neurons'] = 1.0,
    initial_state: Float[ArrayLike, '*neurons'] | None = None,
    return_state: Literal[True],
) -> tuple[Float[Array, 'T *neurons'], MembraneStats, Float[Array, '*neurons']]: ...
def lif(
    currents: Currents,
    beta: Real[ArrayLike, '*#neurons'],
    *,
    tau: Real[ArrayLike, '*#neurons'] = 0.5,
    v_th: Real[ArrayLike, '*#neurons'] = 1.0,
    surrogate: str | Surrogate = 'triangular',
    detach_reset: bool = False,
    time_steps: int | None = None,
    implementation: str = 'scan',
    per_channel: bool = False,
    scale: Real[ArrayLike, '*#neurons'] = 1.0,
    initial_state: Float[ArrayLike, '*neurons'] | None = None,
    return_state: bool = False,
) -> (
    tuple[Float[Array, 'T *neurons'], MembraneStats]
    | tuple[Float[Array, 'T *neurons'], MembraneStats, Float[Array, '*neurons']]
):
    """Runs a layer of leaky integrate-and-fire neurons over time (Eq. 2).

    `u[t] = tau * u[t-1] * (1 - s[t-1]) + c[t]`, `s[t] = H(u[t] - v_th)`, from `u = 0`. Its gradient
    is Eq. 7 and 8. The membrane potential is kept in at least float32.

    A long stream goes in chunks: each gets the state that the one before it returned, and all together give the spikes
    of the whole, and its gradient.

    Under `jit` with arrays shared over devices, also by the axes of an explicit mesh, the statistics are of all
    neurons on all devices. Inside `jax.shard_map` they are of the device's own: over shards of one size,
    `mean = pmean(m)` and `variance = pmean(v + (m - mean)**2)`.

    It can be differentiated backwards alone (`jax.grad`, `jax.vjp`), as all that has a `jax.custom_vjp`: forwards
    (`jax.jvp`, `jax.jacfwd`) JAX raises a TypeError.

    Args:
      currents: pre-synaptic input c, floating, `[T, ...]` with T >= 1, usually `[T, B, ...]`; or `Normalised`; or a
        sequence of such terms of one shape, which are added.
      beta: width of the surrogate gradient, scalar or broadcastable to `[...]`; spikes do not depend on it, so its
        gradient is 0.
      tau: decay of the membrane potential per time step, 0 to 1; 1 is integrate-and-fire without leak.
      v_th: threshold, scalar or broadcastable to `[...]`.
      surrogate: 'triangular', 'rectangular', 'arctan', 'dspike' or a `Surrogate`.
      detach_reset: drop the gradient through the reset, the last term of Eq. 8.
      time_steps: T, if `currents` are those of one time step, `[1, ...]`, and the same at each.
      implementation: 'scan'; 'pallas' for the kernels of `pallas_loop`, which are for one GPU and take numbers for tau
        and v_th; or 'auto' for these where a GPU is all there is and they can do what is asked for, and else the scan.
      per_channel: measure each channel, the last axis of `currents`, by itself.
      scale: factor of the surrogate gradient: its height apart from its width, scalar or broadcastable to `[...]`; like
        beta it may be traced, and its gradient is 0. 1 is the paper's. `scale_for_gain` finds one.
      initial_state: what the reset has left of the membrane potentials before the first step, `[...]`: the state that
        the chunk before returned; 0 if not given.
      return_state: also return the state after the last step.

    Returns:
      `(spikes, stats)`: spikes 0 or 1, `[T, ...]` in the dtype of `currents`, and the `MembraneStats` of the pre-reset
      potential over all T and all neurons, or all neurons of a channel. With `return_state` `(spikes, stats, state)`:
      the membrane potential after the last reset, `u[T] * (1 - s[T])`, `[...]`, in at least float32. Gradients flow
      through spikes and state; the statistics are measurements.

    Raises:
      TypeError: `currents` or `initial_state` is not floating.
      ValueError: `currents` has no time step or neither 1 nor `time_steps`, tau lies outside 0 to 1, the state has
        another shape than a time step, there is no such implementation, or it cannot measure channels or take states.
    """
    terms = as_terms(currents)
    neurons = Neurons(
        get_surrogate(surrogate),
        detach_reset,
        number_of_steps(terms, time_steps),
        per_channel=per_channel,
        kept=as_kept(currents, terms),
    )
    parameters, streams = Parameters(beta, tau, v_th, scale), return_state or initial_state is not None
    ran = run_layer(terms, parameters, neurons, implementation, as_state(initial_state, terms), streams=streams)
    return (ran.spikes, ran.stats, cast(Array, ran.state)) if return_state else (ran.spikes, ran.stats)


class Ran(NamedTuple):
    """What a layer did: spikes, what was measured, the state it is left in; None of what was not asked for."""

    spikes: Array
    stats: MembraneStats
    distances: MembraneDistances | None = None
    currents: MembraneStats | None = None
    state: Array | None = None
    rate: Array | None = None


def run_layer(
    terms: Terms,
    parameters: Parameters,
    neurons: Neurons,
    implementation: str,
    state: Array | None,
    *,
    streams: bool,
) -> Ran:
    """Runs a layer by one of the implementations; `streams` says that it takes a state or gives one."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f'implementation is {implementation!r}, expected one of {", ".join(IMPLEMENTATIONS)}.')
    check_decay(parameters.tau)
    if implementation == 'auto':
        implementation = 'pallas' if not streams and _kernels_are_faster(terms, parameters, neurons) else 'scan'
    if implementation == 'pallas':
        if streams:
            raise ValueError("implementation is 'pallas', expected 'scan' with initial_state or return_state.")
        return _run_kernels(terms, parameters, neurons)
    spikes, measured, state = time_loop.integrate(terms, as_arrays(parameters, terms), neurons, state)
    measured = jax.lax.stop_gradient(measured)
    # All parts are of one size, so that the share among all potentials is the mean of theirs.
    distances = None if measured.shares is None else MembraneDistances(jnp.mean(measured.shares, axis=(0, 1)))
    of_currents = None if measured.currents is None else pooled(measured.currents, neurons.per_channel)
    return Ran(spikes, pooled(measured.membrane, neurons.per_channel), distances, of_currents, state, measured.rate)


def _kernels_are_faster(terms: Terms, parameters: Parameters, neurons: Neurons) -> bool:
    """Whether the Pallas kernels can run a layer, on what they are faster on: a GPU, which nothing is shared with."""
    if jax.default_backend() != 'gpu' or jax.device_count() > 1 or neurons.count or neurons.per_channel:
        return False
    numbers = all(isinstance(value, int | float) for value in (parameters.tau, parameters.v_th))
    scalars = all(np.ndim(value) == 0 for value in (parameters.beta, parameters.scale))
    return numbers and scalars and terms[0].values.dtype.itemsize <= 4


def _run_kernels(terms: Terms, parameters: Parameters, neurons: Neurons) -> Ran:
    """The same by the Pallas kernels."""
    if neurons.count or neurons.per_channel:
        raise ValueError(
            "implementation is 'pallas', expected 'scan': its kernels measure mean and variance of whole layers."
        )
    from cpng_jax.nn import pallas_loop  # here, since importing Pallas takes long and little else needs it

    total = sum_of(terms).astype(terms[0].values.dtype)
    beta, tau, v_th, scale = parameters
    spikes, mean, variance = pallas_loop.integrate(
        total, beta, cast(float, tau), cast(float, v_th), neurons, scale=scale
    )
    # The kernels have no use for the currents' moments: measured by XLA, in a pass of its own, as the rate is.
    of_currents = membrane_stats(total) if neurons.currents else None
    rate = firing_rate(spikes) if neurons.rate else None
    return Ran(spikes, MembraneStats(mean, variance), currents=of_currents, rate=rate)


def as_arrays(parameters: Parameters, terms: Terms) -> Parameters:
    """The parameters as floating arrays, each checked to broadcast to the potentials of a step."""
    u = terms[0].values[0]
    return Parameters(*(broadcastable(name, value, u) for name, value in parameters._asdict().items()))


def potentials(
    currents: Currents,
    *,
    tau: Real[ArrayLike, '*#neurons'] = 0.5,
    v_th: Real[ArrayLike, '*#neurons'] = 1.0,
    time_steps: int | None = None,
    initial_state: Float[ArrayLike, '*neurons'] | None = None,
) -> Float[Array, 'T *neurons']:
    """Computes the membrane potentials that `lif` has before the reset, at every time step (Eq. 2).

    Args:
      currents: pre-synaptic input, floating, `[T, ...]`; or `Normalised`; or a sequence of such terms, which are added.
      tau: decay of the membrane potential per time step, 0 to 1.
      v_th: threshold, scalar or broadcastable to `[...]`.
      time_steps: T, if `currents` are those of one time step, `[1, ...]`, and the same at each.
      initial_state: as of `lif`.

    Returns:
      `[T, ...]`, in at least float32.

    Raises:
      TypeError: `currents` or `initial_state` is not floating.
      ValueError: `currents` has no time step or neither 1 nor `time_steps`, tau lies outside 0 to 1, or the state has
        another shape than a time step.
    """
    terms = as_terms(currents)
    check_decay(tau)
    # The surrogate gradient and its width have no part in the forward pass: any will do.
    neurons = Neurons(TRIANGULAR, detach_reset=False, time_steps=number_of_steps(terms, time_steps))
    parameters = as_arrays(Parameters(1.0, tau, v_th), terms)
    return time_loop.potentials(terms, parameters, neurons, as_state(initial_state, terms))


def lif_reference(
    currents: Currents,
    beta: Real[ArrayLike, '*#neurons'],
    *,
    tau: Real[ArrayLike, '*#neurons'] = 0.5,
    v_th: Real[ArrayLike, '*#neurons'] = 1.0,
    surrogate: str | Surrogate = 'triangular',
    detach_reset: bool = False,
    scale: Real[ArrayLike, '*#neurons'] = 1.0,
    initial_state: Float[ArrayLike, '*neurons'] | None = None,
    return_state: bool = False,
) -> tuple[Any, ...]:
    """Defines what `lif` computes, as Eq. 2 reads; JAX differentiates the loop. Slower, for reading and for tests.

    Args:
      currents: pre-synaptic input, floating, `[T, ...]`; or `Normalised`; or a sequence of such terms, which are added.
      beta: width of the surrogate gradient, scalar or broadcastable to `[...]`.
      tau: decay of the membrane potential per time step, 0 to 1.
      v_th: threshold, scalar or broadcastable to `[...]`.
      surrogate: 'triangular', 'rectangular', 'arctan', 'dspike' or a `Surrogate`.
      detach_reset: drop the gradient through the reset, the last term of Eq. 8.
      scale: factor of the surrogate gradient, scalar or broadcastable to `[...]`.
      initial_state: what the reset has left of the membrane potentials before the first step, `[...]`.
      return_state: also return the state after the last step.

    Returns:
      `(spikes, stats)`: spikes 0 or 1, `[T, ...]` in the dtype of `currents`, and the `MembraneStats` of the layer; or
      `(spikes, stats, state)`.

    Raises:
      TypeError: `currents` or `initial_state` is not floating.
      ValueError: `currents` has no time step, tau lies outside 0 to 1, or the state has another shape than a time step.
    """
    terms = as_terms(currents)
    check_decay(tau)
    total, out = sum_of(terms), terms[0].values.dtype

    def step(u_after_reset: Array, current: Array) -> tuple[Array, tuple[Array, Array]]:
        u = jnp.asarray(tau * u_after_reset + current, total.dtype)
        s = spike(u, beta, v_th, surrogate, scale)
        u_after_reset = u * (1 - (jax.lax.stop_gradient(s) if detach_reset else s))
        return u_after_reset, (u, s.astype(out))

    state = as_state(initial_state, terms)
    rest = jnp.zeros_like(total[0]) if state is None else state
    left, (of_all_steps, spikes) = jax.lax.scan(step, rest, total)
    stats = membrane_stats(of_all_steps)
    return (spikes, stats, left) if return_state else (spikes, stats)
