"""Neurons of Diet-SNN: a leak and a threshold that each layer learns, and a reset that subtracts the threshold.

Rathi and Roy, "DIET-SNN: A Low-Latency Spiking Neural Network with Direct Input Encoding and Leakage and Threshold
Optimization", TNNLS 2021, as in their code of 2021. That of 2020 compares before it integrates, a step later, and
leaves the first layer an analog ReLU.

    m = leak * m + c,    z = m / threshold - 1,    o = H(z),    m = m - threshold * o

The surrogate gradient is that of o by z, so that the gradient of o by m is that over the threshold, and by the
threshold -m / threshold^2 times that. With `detach_reset`, as in their code, none flows through the o of the reset,
while its factor, the threshold, has one in any case. Here H(0) = 1, as everywhere in this package; theirs is 0.
Theirs is the triangle at beta = 1 and scale = 0.3.

By `lax.scan` as JAX differentiates it: slower than `LIF`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from cpng_jax.nn.currents import Currents, as_state, as_terms, number_of_steps
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import membrane_stats
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate, spike
from cpng_jax.nn.terms import sum_of

# Names of the parameters.
LEAK, THRESHOLD = 'leak', 'threshold'


class Diet(NamedTuple):
    """What the neurons did.

    Attributes:
      spikes: 0 or 1, `[T, ...]`, in the dtype of the currents.
      z: `m / threshold - 1` before the reset, `[T, ...]`, in at least float32; no gradient flows through it.
      state: what the last reset left of the potentials, `[...]`, in at least float32.
    """

    spikes: Array
    z: Array
    state: Array


def diet_lif(
    currents: Currents,
    beta: ArrayLike,
    leak: ArrayLike,
    threshold: ArrayLike,
    *,
    surrogate: str | Surrogate = 'triangular',
    detach_reset: bool = False,
    scale: ArrayLike = 1.0,
    time_steps: int | None = None,
    initial_state: Float[ArrayLike, '*neurons'] | None = None,
) -> Diet:
    """Runs a layer of neurons whose leak and threshold have gradients.

    Args:
      currents: pre-synaptic input, floating, `[T, ...]`; or `Normalised`; or a sequence of such terms, which are added.
      beta: width parameter of the surrogate gradient, in units of 1/z; scalar or broadcastable to `[...]`.
      leak: factor of the membrane potential per time step, a scalar.
      threshold: a scalar, not 0.
      surrogate: 'triangular', 'rectangular', 'arctan', 'dspike' or a `Surrogate`.
      detach_reset: drop the gradient through the spike of the reset.
      scale: factor of the surrogate gradient, scalar or broadcastable to `[...]`.
      time_steps: T, if `currents` are those of one time step, `[1, ...]`, and the same at each.
      initial_state: what the reset has left of the potentials before the first step, `[...]`; 0 if not given.

    Returns:
      `Diet`; gradients flow through spikes and state.

    Raises:
      TypeError: `currents` or `initial_state` is not floating.
      ValueError: `currents` has no time step or neither 1 nor `time_steps`, or the state has another shape.
    """
    terms = as_terms(currents)
    steps, out = number_of_steps(terms, time_steps), terms[0].values.dtype
    total = sum_of(terms)
    total = jnp.broadcast_to(total, (steps, *total.shape[1:]))
    # One for each example: their gradients are summed after the loop, not by all devices at each of its steps.
    rows = (*total.shape[1:2], *(1,) * (total.ndim - 2))
    leak, threshold = (jnp.broadcast_to(jnp.asarray(value, total.dtype), rows) for value in (leak, threshold))

    def step(m: Array, current: Array) -> tuple[Array, tuple[Array, Array]]:
        m = leak * m + current
        z = m / threshold - 1
        s = spike(z, beta, 0.0, surrogate, scale)
        m = m - threshold * (jax.lax.stop_gradient(s) if detach_reset else s)
        return m, (s.astype(out), jax.lax.stop_gradient(z))

    state = as_state(initial_state, terms)
    left, (spikes, z) = jax.lax.scan(step, jnp.zeros_like(total[0]) if state is None else state, total)
    return Diet(spikes, z, left)


class DietLIF(LIF):
    """`LIF` with the leak and the threshold of Diet-SNN; its variables, and these two.

    They are the parameters `leak` and `threshold`, float32 scalars, which start at `tau` and `v_th`. Training keeps the
    leak at 1 or below. `MembraneStats` and the collection `potentials` are of `v_th + z`, potentials as they would be
    at the threshold `v_th` and the width of `beta`: chi of them is the share within that width in z.
    """

    @nn.compact
    def __call__(
        self,
        currents: Currents,
        time_steps: int | None = None,
        *,
        initial_state: Float[ArrayLike, '*neurons'] | None = None,
        return_state: bool = False,
    ) -> Float[Array, 'T *neurons'] | tuple[Float[Array, 'T *neurons'], Float[Array, '*neurons']]:
        """Computes the spikes of the layer; as `LIF` does, states included.

        Args:
          currents: pre-synaptic, `[T, B, ...]`, or `[1, B, ...]` where they are the same at each of `time_steps`; or
            `Normalised`, as `TdBN.deferred` gives it; or a sequence of such terms, which are added.
          time_steps: T, if it is not that of `currents`.
          initial_state: what the reset has left of the membrane potentials before the first step, `[B, ...]`.
          return_state: also return the state after the last step.

        Returns:
          Spikes `[T, B, ...]`, in the dtype of `currents`; with `return_state` `(spikes, state)`.
        """
        terms = self.probed(as_terms(currents))
        ran = diet_lif(
            terms,
            self.width(terms),
            self.param(LEAK, nn.initializers.constant(self.tau), (), jnp.float32),
            self.param(THRESHOLD, nn.initializers.constant(self.v_th), (), jnp.float32),
            surrogate=self.surrogate,
            detach_reset=self.detach_reset,
            scale=self.height(terms),
            time_steps=time_steps,
            initial_state=initial_state,
        )
        near = lambda: self.v_th + ran.z
        of_currents = self.of_currents(currents, terms)
        reported = self.report(self.rate(ran.spikes), membrane_stats(near(), self.per_channel), None, of_currents, near)
        spikes = self.answer(ran.spikes, reported)
        return (spikes, ran.state) if return_state else spikes
