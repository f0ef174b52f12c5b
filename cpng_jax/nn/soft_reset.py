"""Integrate-and-fire neurons that subtract their threshold and answer with it: what the neurons of ANNs become.

At each step the potential `m` takes up the currents and a constant, and where it reaches the threshold `V`, the neuron
answers with `V`, and `V` is subtracted: `m += c + shift; s = V H(m - V); m -= s`. Nothing that has come in is lost then
but what is left at the end, so that the mean of the answers over T steps is that of the currents, rounded down to a
multiple of V / T and clipped to 0 and V, where the currents are the same at each step.

Thresholds, shifts, and the potentials that neurons start with are parameters: `cpng_jax.convert` finds them, and they
can be trained further, through the surrogate gradient of `z = m / V - 1`. As in Diet-SNN (Rathi and Roy, 2020) the
comparison carries no gradient through the reset; the threshold that is subtracted does.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from cpng_jax.nn.analog_neuron import report_means
from cpng_jax.nn.currents import Currents, as_terms, number_of_steps
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import membrane_stats
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate, spike
from cpng_jax.nn.terms import sum_of


class Integrated(NamedTuple):
    """What the neurons did.

    Attributes:
      answers: 0 or the threshold, `[T, ...]`, in at least float32.
      potentials: before the threshold is subtracted, `[T, ...]`.
    """

    answers: Array
    potentials: Array


def soft_reset_if(
    currents: Currents,
    threshold: ArrayLike,
    *,
    shift: ArrayLike = 0.0,
    start: ArrayLike = 0.0,
    beta: ArrayLike = 1.0,
    scale: ArrayLike = 1.0,
    surrogate: str | Surrogate = 'triangular',
    time_steps: int | None = None,
) -> Integrated:
    """Runs integrate-and-fire neurons over time that subtract their threshold, and answer with it.

    Args:
      currents: pre-synaptic input, floating, `[T, ...]`; or `Normalised`; or a sequence of such terms, which are added.
      threshold: V, greater than 0; scalar or broadcastable to `[...]`.
      shift: what is added to the currents at each step; scalar or broadcastable to `[...]`.
      start: potential before the first step; scalar or broadcastable to `[...]`.
      beta: width parameter of the surrogate gradient, as a function of `m / V - 1`.
      scale: its height, as a factor.
      surrogate: 'triangular', 'rectangular', 'arctan', 'dspike' or a `Surrogate`.
      time_steps: T, if `currents` are those of one time step, `[1, ...]`, and the same at each.

    Returns:
      `Integrated`.

    Raises:
      TypeError: `currents` is not floating.
      ValueError: `currents` has no time step or neither 1 nor `time_steps`.

    Source: Bu et al. (2022), Eq. 1 to 4; Li et al. (2021), Eq. 3 to 5, with a shift in the place of their V / 2T.
    """
    terms = as_terms(currents)
    total = sum_of(terms)
    steps, constant = number_of_steps(terms, time_steps), len(total) == 1
    threshold = jnp.asarray(threshold, total.dtype)

    def step(m: Array, current: Array | None) -> tuple[Array, Integrated]:
        m = m + (total[0] if current is None else current) + shift
        fired = spike(m / threshold - 1, beta, 0.0, surrogate, scale)
        return m - threshold * jax.lax.stop_gradient(fired), Integrated(threshold * fired, m)

    rest = jnp.zeros_like(total[0]) + jnp.asarray(start, total.dtype)
    return jax.lax.scan(step, rest, None if constant else total, length=steps)[1]


class SoftResetIF(LIF):
    """A layer of such neurons, in the place of a `LIF`: its variables, and three parameters of its own.

    `threshold` is a scalar, `shift` one number a channel, the last axis, `start` one a neuron, `[1, ...]`; all float32.
    `MembraneStats` and the collection `potentials` are of `v_th + m / V - 1`, as if all thresholds were `v_th`. Fields
    of `LIF` that say how potentials leak and are reset have no effect.
    """

    unit: ClassVar[float | None] = None

    @nn.compact
    def __call__(
        self,
        currents: Currents,
        time_steps: int | None = None,
        *,
        initial_state: Float[ArrayLike, '*neurons'] | None = None,
        return_state: bool = False,
    ) -> Float[Array, 'T *neurons']:
        """Computes what the layer answers.

        Args:
          currents: as `LIF` takes them.
          time_steps: T, if it is not that of `currents`.
          initial_state: None, and `return_state` False: what the neurons start with is a parameter.
          return_state: see `initial_state`.

        Returns:
          0 or the threshold, `[T, B, ...]`, in the dtype of `currents`.

        Raises:
          ValueError: a state is given or asked for.
        """
        if return_state or initial_state is not None:
            raise ValueError('SoftResetIF takes and gives no state: what its neurons start with is a parameter.')
        terms = self.probed(as_terms(currents))
        total, zeros = sum_of(terms), nn.initializers.zeros
        threshold = self.param('threshold', nn.initializers.constant(self.v_th), (), jnp.float32)
        shift = self.param('shift', zeros, total.shape[-1:], jnp.float32)
        start = self.param('start', zeros, (1, *total.shape[2:]), jnp.float32)
        answers, potentials = soft_reset_if(
            terms,
            threshold,
            shift=shift,
            start=start,
            beta=self.width(terms),
            scale=self.height(terms),
            surrogate=self.surrogate,
            time_steps=time_steps,
        )
        near = jax.lax.stop_gradient(self.v_th + potentials / threshold - 1)
        of_currents = self.of_currents(currents, terms)
        reported = self.report(
            self.rate(answers != 0), membrane_stats(near, self.per_channel), None, of_currents, lambda: near
        )
        report_means(self, answers, total + shift)
        return self.answer(answers.astype(terms[0].values.dtype), reported)
