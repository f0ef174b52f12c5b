"""Leaky integrate-and-fire neurons: the time loop (Eq. 2) and its linen module."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from cpng_jax.nn import time_loop
from cpng_jax.nn.statistics import MembraneDistances, MembraneStats, membrane_stats, pooled
from cpng_jax.nn.surrogate import TRIANGULAR, Array, ArrayLike, Surrogate, broadcastable, get_surrogate, spike
from cpng_jax.nn.time_loop import Neurons, Normalised, Parameters, Terms

# Pre-synaptic input of a layer: one term, or several of one shape that are added.
Term = ArrayLike | Normalised
Currents = Term | Sequence[Term]

IMPLEMENTATIONS = ('scan', 'pallas')

# Name of the parameter that a learnt decay is the sigmoid of.
DECAY = 'decay'


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
) -> tuple[Array, MembraneStats]:
    """Runs a layer of leaky integrate-and-fire neurons over time (Eq. 2).

    `u[t] = tau * u[t-1] * (1 - s[t-1]) + c[t]`, `s[t] = H(u[t] - v_th)`, from `u = 0`. Its gradient
    is Eq. 7 and 8. The membrane potential is kept in at least float32.

    Args:
      currents: pre-synaptic input c, floating, `[T, ...]` with T >= 1, usually `[T, B, ...]`; or `Normalised`; or a
        sequence of such terms of one shape, which are added.
      beta: width of the surrogate gradient, scalar or broadcastable to `[...]`.
      tau: decay of the membrane potential per time step, 0 to 1; 1 is integrate-and-fire without leak.
      v_th: threshold, scalar or broadcastable to `[...]`.
      surrogate: 'triangular', 'rectangular', 'arctan' or a `Surrogate`.
      detach_reset: drop the gradient through the reset, the last term of Eq. 8.
      time_steps: T, if `currents` are those of one time step, `[1, ...]`, and the same at each.
      implementation: 'scan', or 'pallas' for the kernels of `pallas_loop`, which are for one GPU, take numbers for tau
        and v_th, and have not been tried on one yet.
      per_channel: measure each channel, the last axis of `currents`, by itself.

    Returns:
      `(spikes, stats)`: spikes 0 or 1, `[T, ...]` in the dtype of `currents`, and the `MembraneStats` of the pre-reset
      potential over all T and all neurons, or all neurons of a channel.

    Raises:
      TypeError: `currents` is not floating.
      ValueError: `currents` has no time step or neither 1 nor `time_steps`, tau lies outside 0 to 1, there is no
        such implementation, or it cannot measure channels.
    """
    terms = as_terms(currents)
    neurons = Neurons(
        get_surrogate(surrogate), detach_reset, number_of_steps(terms, time_steps), per_channel=per_channel
    )
    spikes, stats, _ = _run(terms, Parameters(beta, tau, v_th), neurons, implementation)
    return spikes, stats


def _run(
    terms: Terms, parameters: Parameters, neurons: Neurons, implementation: str
) -> tuple[Array, MembraneStats, MembraneDistances | None]:
    """Spikes and statistics of a layer; and, if asked to count, how near the potentials are to the threshold."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f'implementation is {implementation!r}, expected one of {", ".join(IMPLEMENTATIONS)}.')
    check_decay(parameters.tau)
    if implementation == 'pallas':
        return _run_kernels(terms, parameters, neurons)
    outputs: Any = time_loop.integrate(terms, _as_arrays(parameters, terms), neurons)
    spikes, measured = outputs
    measured = jax.lax.stop_gradient(measured)
    # All parts are of one size, so that the share among all potentials is the mean of theirs.
    distances = None if measured.shares is None else MembraneDistances(jnp.mean(measured.shares, axis=(0, 1)))
    return spikes, pooled(measured, neurons.per_channel), distances


def _run_kernels(terms: Terms, parameters: Parameters, neurons: Neurons) -> tuple[Array, MembraneStats, None]:
    """The same by the Pallas kernels."""
    if neurons.count or neurons.per_channel:
        raise ValueError(
            "implementation is 'pallas', expected 'scan': its kernels measure mean and variance of whole layers."
        )
    from cpng_jax.nn import pallas_loop  # here, since importing Pallas takes long and little else needs it

    total = time_loop.sum_of(terms).astype(terms[0].values.dtype)
    beta, tau, v_th = parameters
    spikes, mean, variance = pallas_loop.integrate(total, beta, cast(float, tau), cast(float, v_th), neurons)
    return spikes, MembraneStats(mean, variance), None


def _as_arrays(parameters: Parameters, terms: Terms) -> Parameters:
    """The parameters as floating arrays, each checked to broadcast to the potentials of a step."""
    u = terms[0].values[0]
    return Parameters(*(broadcastable(name, value, u) for name, value in parameters._asdict().items()))


def potentials(
    currents: Currents, *, tau: ArrayLike = 0.5, v_th: ArrayLike = 1.0, time_steps: int | None = None
) -> Array:
    """Computes the membrane potentials that `lif` has before the reset, at every time step (Eq. 2).

    Args:
      currents: pre-synaptic input, floating, `[T, ...]`; or `Normalised`; or a sequence of such terms, which are added.
      tau: decay of the membrane potential per time step, 0 to 1.
      v_th: threshold, scalar or broadcastable to `[...]`.
      time_steps: T, if `currents` are those of one time step, `[1, ...]`, and the same at each.

    Returns:
      `[T, ...]`, in at least float32.

    Raises:
      TypeError: `currents` is not floating.
      ValueError: `currents` has no time step or neither 1 nor `time_steps`, or tau lies outside 0 to 1.
    """
    terms = as_terms(currents)
    check_decay(tau)
    # The surrogate gradient and its width have no part in the forward pass: any will do.
    neurons = Neurons(TRIANGULAR, detach_reset=False, time_steps=number_of_steps(terms, time_steps))
    return time_loop.potentials(terms, _as_arrays(Parameters(1.0, tau, v_th), terms), neurons)


def lif_reference(
    currents: Currents,
    beta: ArrayLike,
    *,
    tau: ArrayLike = 0.5,
    v_th: ArrayLike = 1.0,
    surrogate: str | Surrogate = 'triangular',
    detach_reset: bool = False,
) -> tuple[Array, MembraneStats]:
    """Defines what `lif` computes, as Eq. 2 reads; JAX differentiates the loop. Slower, for reading and for tests.

    Args:
      currents: pre-synaptic input, floating, `[T, ...]`; or `Normalised`; or a sequence of such terms, which are added.
      beta: width of the surrogate gradient, scalar or broadcastable to `[...]`.
      tau: decay of the membrane potential per time step, 0 to 1.
      v_th: threshold, scalar or broadcastable to `[...]`.
      surrogate: 'triangular', 'rectangular', 'arctan' or a `Surrogate`.
      detach_reset: drop the gradient through the reset, the last term of Eq. 8.

    Returns:
      `(spikes, stats)`: spikes 0 or 1, `[T, ...]` in the dtype of `currents`, and the `MembraneStats` of the layer.

    Raises:
      TypeError: `currents` is not floating.
      ValueError: `currents` has no time step, or tau lies outside 0 to 1.
    """
    terms = as_terms(currents)
    check_decay(tau)
    total, out = time_loop.sum_of(terms), terms[0].values.dtype

    def step(carry: tuple[Array, Array], current: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        u, s = carry
        kept = 1 - (jax.lax.stop_gradient(s) if detach_reset else s)
        u = jnp.asarray(tau * u * kept + current, total.dtype)
        s = spike(u, beta, v_th, surrogate)
        return (u, s), (u, s.astype(out))

    rest = jnp.zeros(total.shape[1:], total.dtype)
    _, (of_all_steps, spikes) = jax.lax.scan(step, (rest, rest), total)
    return spikes, membrane_stats(of_all_steps)


def as_terms(currents: Currents) -> Terms:
    """Makes pre-synaptic currents a tuple of terms, checked.

    Args:
      currents: floating, `[T, ...]`; or `Normalised`; or a sequence of such terms of one shape.

    Returns:
      The terms, a plain array as one with nothing to apply.

    Raises:
      TypeError: a term is not floating.
      ValueError: a term has no time step, or the shapes differ.
    """
    # `Normalised` is itself a tuple.
    one = isinstance(currents, Normalised) or not isinstance(currents, tuple | list)
    terms = tuple(map(_term, cast(Any, [currents] if one else currents)))
    shapes = {term.shape for term in terms}
    if len(shapes) != 1:
        raise ValueError(f'currents must be terms of one shape, got {sorted(shapes)}.')
    return terms


def _term(term: Term) -> Normalised:
    """A term, checked, with its map in a form that lets devices which share the examples sum its gradient alone."""
    values, affine = term if isinstance(term, Normalised) else (term, None)
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f'currents must be floating, got dtype {values.dtype}.')
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f'currents must be [T, ...] with at least one time step, got shape {values.shape}.')
    if affine is not None and values.ndim > 2:
        # One row for each example. Their sum over the examples, and so over devices, then comes after the loop: a sum
        # inside it would have the devices wait for each other at every step.
        each = lambda x: jnp.broadcast_to(x, (values.shape[1], *(1,) * (values.ndim - 2 - jnp.ndim(x)), *jnp.shape(x)))
        affine = jax.tree.map(each, affine)
    return Normalised(values, affine)


def number_of_steps(terms: Terms, time_steps: int | None) -> int:
    """Returns T: `time_steps`, or that of the currents where it is None.

    Args:
      terms: of the currents.
      time_steps: T, or None.

    Returns:
      T.

    Raises:
      ValueError: the currents have neither 1 nor `time_steps`.
    """
    given = len(terms[0].values)
    time_steps = given if time_steps is None else time_steps
    if given not in (1, time_steps):
        raise ValueError(f'currents must have 1 or {time_steps} time steps, got {given}.')
    return time_steps


def check_decay(tau: ArrayLike) -> None:
    """Raises ValueError where a decay that is a number, not an array, lies outside 0 to 1."""
    if isinstance(tau, int | float) and not 0 <= tau <= 1:
        raise ValueError(f'tau must lie in 0 to 1, got {tau}.')


class LIF(nn.Module):
    """A layer of LIF neurons with a surrogate width of its own.

    The width is the variable `beta` of the mutable collection `surrogate`, float32, a scalar or one for each channel.
    When the collections `membrane`, `distances` and `firing_rate` are mutable, the layer writes there, under the same
    name `beta`, its `MembraneStats`, its `MembraneDistances`, which are counted only then, and the share of neurons and
    time steps that spiked: the collections have one layout, so `jax.tree.map` pairs each beta with its statistics. So
    has the collection `potentials`: when that is mutable, all potentials before the reset, `[T, B, ...]`, are written
    there.

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

    @nn.compact
    def __call__(self, currents: Currents, time_steps: int | None = None) -> Array:
        """Computes the spikes of the layer.

        Args:
          currents: pre-synaptic, `[T, B, ...]`, or `[1, B, ...]` where they are the same at each of `time_steps`; or
            `Normalised`, as `TdBN.deferred` gives it; or a sequence of such terms, which are added.
          time_steps: T, if it is not that of `currents`.

        Returns:
          `[T, B, ...]`, in the dtype of `currents`.
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
        spikes, stats, distances = _run(terms, parameters, neurons, self.implementation)
        u = lambda: time_loop.potentials(terms, _as_arrays(parameters, terms), neurons)
        self.report(spikes, stats, distances, u)
        return spikes

    # Helpers are not methods that Flax wraps: whoever captures the values of methods has the spikes alone.

    @nn.nowrap
    def decay(self) -> ArrayLike:
        """The decay of the membrane potential: `tau`, or what has been learnt."""
        if not self.learn_tau:
            return self.tau
        if not 0 < self.tau < 1:
            raise ValueError(f'tau must lie strictly between 0 and 1 to be learnt, got {self.tau}.')
        logit = math.log(self.tau / (1 - self.tau))
        return nn.sigmoid(self.param(DECAY, nn.initializers.constant(logit), ()))

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
            self.put_variable('membrane', 'beta', stats)
        if distances is not None:
            self.put_variable('distances', 'beta', distances)
        if self.is_mutable_collection('firing_rate'):
            rate = jnp.mean(jax.lax.stop_gradient(spikes), dtype=jnp.float32)
            self.put_variable('firing_rate', 'beta', rate)
        if self.is_mutable_collection('potentials'):
            self.put_variable('potentials', 'beta', u())
