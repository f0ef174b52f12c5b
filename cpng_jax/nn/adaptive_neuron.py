"""Neurons of DS-ATGO: the threshold, and with it the surrogate gradient's width, follows the potentials of each step.

Jiang et al., "DS-ATGO: Dual-Stage Synergistic Learning via Forward Adaptive Threshold and Backward Gradient
Optimization for Spiking Neural Networks", AAAI 2026. Eq. 5: the threshold is f_c (mean + standard deviation) of a
layer's potentials at that time step, f_c = 1. Eq. 7: width = (1 + tanh(threshold - v_th)) times the width at the
start, one line for both of its cases. As in their published code no gradient flows through the threshold, and
evaluation takes its running average; that code leaves the mean out of Eq. 7, which here is as printed.

Written for comparison, by `lax.scan` as JAX differentiates it: slower than `LIF`, and with several devices they wait
for each other at each time step. The backward half alone, at a fixed threshold, is `control.ds_atgo`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from cpng_jax.nn.currents import Currents, as_terms, check_decay, number_of_steps
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import membrane_stats
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate, spike
from cpng_jax.nn.terms import sum_of

# Share of the running threshold kept at each step of training, as in their code.
_MOMENTUM = 0.9


class Adapted(NamedTuple):
    """What the neurons did.

    Attributes:
      spikes: 0 or 1, `[T, ...]`, in the dtype of the currents.
      near: `v_th + (u - threshold) / widening`, `[T, ...]`: potentials as they would be at the fixed threshold `v_th`
        and the width of `beta`, so that chi of them is the share within the width of their step from its threshold.
      thresholds: `[T]`.
    """

    spikes: Array
    near: Array
    thresholds: Array


def adapted_lif(
    currents: Currents,
    beta: ArrayLike,
    thresholds: Array | None = None,
    *,
    tau: ArrayLike = 0.5,
    v_th: float = 1.0,
    surrogate: str | Surrogate = 'triangular',
    detach_reset: bool = False,
    scale: ArrayLike = 1.0,
    time_steps: int | None = None,
) -> Adapted:
    """Runs a layer of neurons whose threshold follows their potentials (Eq. 5 and 7 of DS-ATGO).

    Args:
      currents: pre-synaptic input, floating, `[T, ...]`; or `Normalised`; or a sequence of such terms, which are added.
      beta: width parameter where the threshold is `v_th`; scalar or broadcastable to `[...]`.
      thresholds: `[T]`, to be taken instead of those of the potentials, as evaluation does.
      tau: decay of the membrane potential per time step, 0 to 1.
      v_th: threshold at the start, which that of a step is compared with.
      surrogate: 'triangular', 'rectangular', 'arctan', 'dspike' or a `Surrogate`.
      detach_reset: drop the gradient through the reset, the last term of Eq. 8.
      scale: factor of the surrogate gradient, scalar or broadcastable to `[...]`.
      time_steps: T, if `currents` are those of one time step, `[1, ...]`, and the same at each.

    Returns:
      `Adapted`; no gradient flows through all but the spikes.

    Raises:
      TypeError: `currents` is not floating.
      ValueError: `currents` has no time step or neither 1 nor `time_steps`, or tau lies outside 0 to 1.
    """
    terms = as_terms(currents)
    check_decay(tau)
    steps, out = number_of_steps(terms, time_steps), terms[0].values.dtype
    total = sum_of(terms)
    total = jnp.broadcast_to(total, (steps, *total.shape[1:]))

    def step(carry: tuple[Array, Array], now: tuple[Array, Array | None]) -> tuple[tuple[Array, Array], Adapted]:
        (u, s), (current, threshold) = carry, now
        kept = 1 - (jax.lax.stop_gradient(s) if detach_reset else s)
        u = jnp.asarray(tau * u * kept + current, total.dtype)
        # Eq. 5 by the potentials of all neurons, here and on other devices, inside `jax.shard_map` by those here. No
        # gradient, as in their code.
        seen = jax.lax.stop_gradient(u)
        if threshold is None:
            threshold = jnp.mean(seen) + jnp.std(seen)
        widening = 1 + jnp.tanh(threshold - v_th)
        s = spike(u, beta / widening, threshold, surrogate, scale)
        return (u, s), Adapted(s.astype(out), v_th + (seen - threshold) / widening, threshold)

    rest = jnp.zeros_like(total[0])
    return jax.lax.scan(step, (rest, rest), (total, thresholds))[1]


class AdaptedLIF(LIF):
    """`LIF` with the threshold and the width of DS-ATGO; its variables, and the running `threshold`, `[T]`.

    The latter is in the collection `batch_stats`. While that is mutable, as in training, thresholds are those of the
    potentials at hand; otherwise the running ones. `MembraneStats` and the collection `potentials` are of
    `Adapted.near`.
    """

    @nn.compact
    def __call__(
        self,
        currents: Currents,
        time_steps: int | None = None,
        *,
        initial_state: Float[ArrayLike, '*neurons'] | None = None,
        return_state: bool = False,
    ) -> Float[Array, 'T *neurons']:
        """Computes the spikes of the layer.

        Args:
          currents: pre-synaptic, `[T, B, ...]`, or `[1, B, ...]` where they are the same at each of `time_steps`; or
            `Normalised`, as `TdBN.deferred` gives it; or a sequence of such terms, which are added.
          time_steps: T, if it is not that of `currents`.
          initial_state: None, and `return_state` False: thresholds belong to time steps, counted from the first.
          return_state: see `initial_state`.

        Returns:
          `[T, B, ...]`, in the dtype of `currents`.

        Raises:
          ValueError: a state is given or asked for.
        """
        if return_state or initial_state is not None:
            raise ValueError(
                'AdaptedLIF takes and gives no state: it has a threshold for each time step, counted from the first.'
            )
        terms = self.probed(as_terms(currents))
        beta, tau = self.width(terms), self.decay()
        steps = number_of_steps(terms, time_steps)
        running = self.variable('batch_stats', 'threshold', lambda: jnp.full(steps, self.v_th, jnp.float32))
        training = self.is_mutable_collection('batch_stats') and not self.is_initializing()
        spikes, near, thresholds = adapted_lif(
            terms,
            beta,
            None if training else running.value,
            tau=tau,
            v_th=self.v_th,
            surrogate=self.surrogate,
            detach_reset=self.detach_reset,
            scale=self.height(terms),
            time_steps=time_steps,
        )
        if training:
            running.value = _MOMENTUM * running.value + (1 - _MOMENTUM) * thresholds
        of_currents = self.of_currents(currents, terms)
        reported = self.report(
            self.rate(spikes), membrane_stats(near, self.per_channel), None, of_currents, lambda: near
        )
        return self.answer(spikes, reported)
