"""Leaky integrate-and-fire neurons: the time loop (Eq. 2) and its linen module."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast, overload

import jax
import jax.numpy as jnp
from flax import linen as nn

from cpng_jax.nn import time_loop
from cpng_jax.nn.currents import Currents, as_state, as_terms, check_decay, number_of_steps
from cpng_jax.nn.statistics import MembraneDistances, MembraneStats, membrane_stats, pooled
from cpng_jax.nn.surrogate import TRIANGULAR, Array, ArrayLike, Surrogate, broadcastable, get_surrogate, spike
from cpng_jax.nn.time_loop import Neurons, Parameters, Terms

IMPLEMENTATIONS = ('scan', 'pallas')

# Name of the parameter that a learnt decay is the sigmoid of.
DECAY = 'decay'


@overload
def lif(
    currents: Currents,
    beta: ArrayLike,
    *,
    tau: ArrayLike = 0.5,
    v_th: ArrayLike = 1.0,
    surrogate: str | Surrogate = 'triangular',
    detach_reset: bool = False,
    time_steps: int | None = None,
    implementation: str = 'scan',
    per_channel: bool = False,
    initial_state: ArrayLike | None = None,
    return_state: Literal[False] = False,
) -> tuple[Array, MembraneStats]: ...
@overload
def lif(
    currents: Currents,
    beta: ArrayLike,
    *,
    tau: ArrayLike = 0.5,
    v_th: ArrayLike = 1.0,
    surrogate: str | Surrogate = 'triangular',
    detach_reset: bool = False,
    time_steps: int | None = None,
    implementation: str = 'scan',
    per_channel: bool = False,
    initial_state: ArrayLike | None = None,
    return_state: Literal[True],
) -> tuple[Array, MembraneStats, Array]: ...
def lif(
    currents: Currents,
    beta: ArrayLike,
    *,
    tau: ArrayLike = 0.5,
    v_th: ArrayLike = 1.0,
    surrogate: str | Surrogate = 'triangular',
    detach_reset: bool = False,
    time_steps: int | None = None,
    implementation: str = 'scan',
    per_channel: bool = False,
    initial_state: ArrayLike | None = None,
    return_state: bool = False,
) -> Any:
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
      surrogate: 'triangular', 'rectangular', 'arctan' or a `Surrogate`.
      detach_reset: drop the gradient through the reset, the last term of Eq. 8.
      time_steps: T, if `currents` are those of one time step, `[1, ...]`, and the same at each.
      implementation: 'scan', or 'pallas' for the kernels of `pallas_loop`, which are for one GPU, take numbers for tau
        and v_th, and have not been tried on one yet.
      per_channel: measure each channel, the last axis of `currents`, by itself.
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
        get_surrogate(surrogate), detach_reset, number_of_steps(terms, time_steps), per_channel=per_channel
    )
    parameters, streams = Parameters(beta, tau, v_th), return_state or initial_state is not None
    ran = _run(terms, parameters, neurons, implementation, as_state(initial_state, terms), streams=streams)
    return (ran.spikes, ran.stats, ran.state) if return_state else (ran.spikes, ran.stats)


class _Ran(NamedTuple):
    """What a layer did: spikes, what was measured, the state it is left in; None of what was not asked for."""

    spikes: Array
    stats: MembraneStats
    distances: MembraneDistances | None = None
    state: Array | None = None


def _run(
    terms: Terms,
    parameters: Parameters,
    neurons: Neurons,
    implementation: str,
    state: Array | None,
    *,
    streams: bool,
) -> _Ran:
    """Runs a layer by one of the implementations; `streams` says that it takes a state or gives one."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f'implementation is {implementation!r}, expected one of {", ".join(IMPLEMENTATIONS)}.')
    check_decay(parameters.tau)
    if implementation == 'pallas':
        if streams:
            raise ValueError("implementation is 'pallas', expected 'scan' with initial_state or return_state.")
        return _run_kernels(terms, parameters, neurons)
    spikes, measured, state = time_loop.integrate(terms, _as_arrays(parameters, terms), neurons, state)
    measured = jax.lax.stop_gradient(measured)
    # All parts are of one size, so that the share among all potentials is the mean of theirs.
    distances = None if measured.shares is None else MembraneDistances(jnp.mean(measured.shares, axis=(0, 1)))
    return _Ran(spikes, pooled(measured, neurons.per_channel), distances, state)


def _run_kernels(terms: Terms, parameters: Parameters, neurons: Neurons) -> _Ran:
    """The same by the Pallas kernels."""
    if neurons.count or neurons.per_channel:
        raise ValueError(
            "implementation is 'pallas', expected 'scan': its kernels measure mean and variance of whole layers."
        )
    from cpng_jax.nn import pallas_loop  # here, since importing Pallas takes long and little else needs it

    total = time_loop.sum_of(terms).astype(terms[0].values.dtype)
    beta, tau, v_th = parameters
    spikes, mean, variance = pallas_loop.integrate(total, beta, cast(float, tau), cast(float, v_th), neurons)
    return _Ran(spikes, MembraneStats(mean, variance))


def _as_arrays(parameters: Parameters, terms: Terms) -> Parameters:
    """The parameters as floating arrays, each checked to broadcast to the potentials of a step."""
    u = terms[0].values[0]
    return Parameters(*(broadcastable(name, value, u) for name, value in parameters._asdict().items()))


def potentials(
    currents: Currents,
    *,
    tau: ArrayLike = 0.5,
    v_th: ArrayLike = 1.0,
    time_steps: int | None = None,
    initial_state: ArrayLike | None = None,
) -> Array:
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
    parameters = _as_arrays(Parameters(1.0, tau, v_th), terms)
    return time_loop.potentials(terms, parameters, neurons, as_state(initial_state, terms))


def lif_reference(
    currents: Currents,
    beta: ArrayLike,
    *,
    tau: ArrayLike = 0.5,
    v_th: ArrayLike = 1.0,
    surrogate: str | Surrogate = 'triangular',
    detach_reset: bool = False,
    initial_state: ArrayLike | None = None,
    return_state: bool = False,
) -> tuple[Any, ...]:
    """Defines what `lif` computes, as Eq. 2 reads; JAX differentiates the loop. Slower, for reading and for tests.

    Args:
      currents: pre-synaptic input, floating, `[T, ...]`; or `Normalised`; or a sequence of such terms, which are added.
      beta: width of the surrogate gradient, scalar or broadcastable to `[...]`.
      tau: decay of the membrane potential per time step, 0 to 1.
      v_th: threshold, scalar or broadcastable to `[...]`.
      surrogate: 'triangular', 'rectangular', 'arctan' or a `Surrogate`.
      detach_reset: drop the gradient through the reset, the last term of Eq. 8.
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
    total, out = time_loop.sum_of(terms), terms[0].values.dtype

    def step(u_after_reset: Array, current: Array) -> tuple[Array, tuple[Array, Array]]:
        u = jnp.asarray(tau * u_after_reset + current, total.dtype)
        s = spike(u, beta, v_th, surrogate)
        u_after_reset = u * (1 - (jax.lax.stop_gradient(s) if detach_reset else s))
        return u_after_reset, (u, s.astype(out))

    state = as_state(initial_state, terms)
    rest = jnp.zeros_like(total[0]) if state is None else state
    left, (of_all_steps, spikes) = jax.lax.scan(step, rest, total)
    stats = membrane_stats(of_all_steps)
    return (spikes, stats, left) if return_state else (spikes, stats)


class LIF(nn.Module):
    """A layer of LIF neurons with a surrogate width of its own.

    The width is the variable `beta` of the mutable collection `surrogate`, float32, a scalar or one for each channel.
    When the collections `membrane`, `distances` and `firing_rate` are mutable, the layer writes there its
    `MembraneStats`, its `MembraneDistances`, which are counted only then, and the share of neurons and time steps that
    spiked; when `potentials` is, all potentials before the reset, `[T, B, ...]`. Each is a variable by the name of its
    collection, next to where `beta` is in `surrogate`, so that NNX, where all are attributes of one object, can tell
    them apart. `cpng.update` takes such a collection as it is; `like_beta` puts its leaves in the place of the betas,
    for `jax.tree.map`.

    Give every activation a LIF of its own: two activations that share one would share one beta.

    Attributes:
      tau: decay of the membrane potential per time step; 1 is integrate-and-fire.
      v_th: threshold.
      surrogate: 'triangular', 'rectangular', 'arctan' or a `Surrogate`.
      beta_init: width at initialisation.
      detach_reset: drop the gradient through the reset.
      implementation: 'scan' or 'pallas', see `lif`.
      per_channel: a width and `MembraneStats` for each channel, the last axis, instead of for the layer.
      learn_tau: learn the decay: it is the sigmoid of the parameter `decay`, a float32 scalar, and starts at `tau`.
    """

    tau: float = 0.5
    v_th: float = 1.0
    surrogate: str | Surrogate = 'triangular'
    beta_init: float = 1.0
    detach_reset: bool = False
    implementation: str = 'scan'
    per_channel: bool = False
    learn_tau: bool = False

    @overload
    def __call__(
        self,
        currents: Currents,
        time_steps: int | None = None,
        *,
        initial_state: ArrayLike | None = None,
        return_state: Literal[False] = False,
    ) -> Array: ...
    @overload
    def __call__(
        self,
        currents: Currents,
        time_steps: int | None = None,
        *,
        initial_state: ArrayLike | None = None,
        return_state: Literal[True],
    ) -> tuple[Array, Array]: ...
    @nn.compact
    def __call__(
        self,
        currents: Currents,
        time_steps: int | None = None,
        *,
        initial_state: ArrayLike | None = None,
        return_state: bool = False,
    ) -> Any:
        """Computes the spikes of the layer.

        Args:
          currents: pre-synaptic, `[T, B, ...]`, or `[1, B, ...]` where they are the same at each of `time_steps`; or
            `Normalised`, as `TdBN.deferred` gives it; or a sequence of such terms, which are added.
          time_steps: T, if it is not that of `currents`.
          initial_state: what the reset has left of the membrane potentials before the first step, `[B, ...]`: the state
            that the chunk of a stream before this one returned; 0 if not given.
          return_state: also return the state after the last step.

        Returns:
          Spikes `[T, B, ...]`, in the dtype of `currents`; with `return_state` `(spikes, state)`, the state `[B, ...]`
          in at least float32.
        """
        terms = as_terms(currents)
        parameters = Parameters(self.width(terms), self.decay(), self.v_th)
        neurons = Neurons(
            get_surrogate(self.surrogate),
            self.detach_reset,
            number_of_steps(terms, time_steps),
            count=self.is_mutable_collection('distances') and not self.is_initializing(),
            per_channel=self.per_channel,
        )
        state, streams = as_state(initial_state, terms), return_state or initial_state is not None
        ran = _run(terms, parameters, neurons, self.implementation, state, streams=streams)
        u = lambda: time_loop.potentials(terms, _as_arrays(parameters, terms), neurons, state)
        self.report(ran.spikes, ran.stats, ran.distances, u)
        return (ran.spikes, ran.state) if return_state else ran.spikes

    # Helpers are not methods that Flax wraps: whoever captures the values of methods has the spikes alone.

    @nn.nowrap
    def decay(self) -> ArrayLike:
        """The decay of the membrane potential: `tau`, or what has been learnt."""
        if not self.learn_tau:
            return self.tau
        if not 0 < self.tau < 1:
            raise ValueError(f'tau must lie strictly between 0 and 1 to be learnt, got {self.tau}.')
        logit = math.log(self.tau / (1 - self.tau))
        return nn.sigmoid(self.param(DECAY, nn.initializers.constant(logit), (), jnp.float32))

    @nn.nowrap
    def width(self, terms: Terms) -> Array:
        """The width parameter beta, a scalar or one for each channel of the currents."""
        if not self.beta_init > 0:
            raise ValueError(f'beta_init must be greater than 0, got {self.beta_init}.')
        shape = terms[0].shape[-1:] if self.per_channel else ()
        return self.variable('surrogate', 'beta', lambda: jnp.full(shape, self.beta_init, jnp.float32)).value

    @nn.nowrap
    def report(
        self, spikes: Array, stats: MembraneStats, distances: MembraneDistances | None, u: Callable[[], Array]
    ) -> None:
        """Writes what is asked for into the collections of measurements; `u` computes the potentials."""
        if self.is_initializing():
            return
        if self.is_mutable_collection('membrane'):
            self.put_variable('membrane', 'membrane', stats)
        if distances is not None:
            self.put_variable('distances', 'distances', distances)
        if self.is_mutable_collection('firing_rate'):
            rate = jnp.mean(jax.lax.stop_gradient(spikes), dtype=jnp.float32)
            self.put_variable('firing_rate', 'firing_rate', rate)
        if self.is_mutable_collection('potentials'):
            self.put_variable('potentials', 'potentials', u())
