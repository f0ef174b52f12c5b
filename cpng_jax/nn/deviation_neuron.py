"""Neurons of MPD-AGL: the surrogate gradient's width at each time step follows the tdBN before them and their decay.

Jiang et al., "Adaptive Gradient Learning for Spiking Neural Networks by Exploiting Membrane Potential Dynamics", IJCAI
2025, Theorem 2, as their published code has it: at t = 0 the gradient is non-zero in an interval of width
2 gamma v_th, gamma being the mean scale of the tdBN before the neurons; later, of that times sqrt(1 + tau^2). Both are
those of the present step, without gradient. Neurons with no tdBN before them have a width of 1.

Theirs is a rectangle, PLIF neurons (`neuron.learn_tau`) with v_th = 0.5 and tau from 0.2 on. Ours: any shape lies over
the same interval; of a sum of normalised branches, 2 gamma v_th is twice the root of the sum of the squares of their
standard deviations, with tdBN's alpha in them and the norm's own v_th, which in SEW-ResNet is 1; beta, which starts
at 1, divides the width besides.

Spikes are those of `LIF`. Written for comparison, by `lax.scan` as JAX differentiates it, which needs more memory.
`control.mpd_agl` is the same with measured potentials, one width for all time steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from cpng_jax.nn.currents import Currents, as_terms, check_decay, deviation, number_of_steps
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import membrane_stats
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate, beta_of_width, spike
from cpng_jax.nn.terms import sum_of

# Of neurons with no tdBN before them, as in their code.
_WIDTH = 1.0
# As the scale of a tdBN goes to 0, so that beta stays a number.
_NARROWEST = 1e-6


class Widened(NamedTuple):
    """What the neurons did.

    Attributes:
      spikes: 0 or 1, `[T, ...]`, in the dtype of the currents.
      near: `v_th + (u - v_th) / widening`, `[T, ...]`: potentials as they would be at the width of `beta`, so that chi
        of them is the share within the width of their step.
      widening: the width of each step by that of a shape at `beta`, `[T]`.
    """

    spikes: Array
    near: Array
    widening: Array


def widths(spread: ArrayLike | None, tau: ArrayLike, time_steps: int) -> Array:
    """The width at each time step (Theorem 2).

    Args:
      spread: gamma v_th, the standard deviation that the norm before the neurons gives their currents; None for none.
      tau: decay of the membrane potential per time step.
      time_steps: T.

    Returns:
      `[T]`, at least float32; no gradient flows through it.
    """
    if spread is None:
        return jnp.full(time_steps, _WIDTH, jnp.float32)
    first = jnp.maximum(2 * jnp.asarray(spread, jnp.float32), _NARROWEST)
    later = first * jnp.sqrt(1 + jnp.square(jnp.asarray(tau, jnp.float32)))
    return jax.lax.stop_gradient(jnp.where(jnp.arange(time_steps) == 0, first, later))


def deviation_lif(
    currents: Currents,
    beta: ArrayLike,
    spread: ArrayLike | None = None,
    *,
    tau: ArrayLike = 0.5,
    v_th: float = 1.0,
    surrogate: str | Surrogate = 'triangular',
    detach_reset: bool = False,
    scale: ArrayLike = 1.0,
    time_steps: int | None = None,
) -> Widened:
    """Runs a layer of neurons whose width follows the norms of their currents (Theorem 2 of MPD-AGL).

    Args:
      currents: pre-synaptic input, floating, `[T, ...]`; or `Normalised`; or a sequence of such terms, which are added.
      beta: what the width is divided by; 1 is the published one; scalar or broadcastable to `[...]`.
      spread: as for `widths`.
      tau: decay of the membrane potential per time step, 0 to 1.
      v_th: threshold.
      surrogate: 'triangular', 'rectangular', 'arctan' or a `Surrogate` whose `reach` is infinite.
      detach_reset: drop the gradient through the reset, the last term of Eq. 8.
      scale: factor of the surrogate gradient, scalar or broadcastable to `[...]`.
      time_steps: T, if `currents` are those of one time step, `[1, ...]`, and the same at each.

    Returns:
      `Widened`; no gradient flows through all but the spikes.

    Raises:
      TypeError: `currents` is not floating.
      ValueError: `currents` has no time step or neither 1 nor `time_steps`, tau lies outside 0 to 1, or beta does not
        change where the gradient of the shape is non-zero.
    """
    terms = as_terms(currents)
    check_decay(tau)
    steps, out = number_of_steps(terms, time_steps), terms[0].values.dtype
    factor = beta_of_width(widths(spread, tau, steps), surrogate)
    total = sum_of(terms)
    total = jnp.broadcast_to(total, (steps, *total.shape[1:]))

    def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        (u, s), (current, narrowing) = carry, now
        kept = 1 - (jax.lax.stop_gradient(s) if detach_reset else s)
        u = jnp.asarray(tau * u * kept + current, total.dtype)
        s = spike(u, beta * narrowing, v_th, surrogate, scale)
        return (u, s), (s.astype(out), v_th + (jax.lax.stop_gradient(u) - v_th) * narrowing.astype(u.dtype))

    rest = jnp.zeros_like(total[0])
    spikes, near = jax.lax.scan(step, (rest, rest), (total, factor))[1]
    return Widened(spikes, near, 1 / factor)


class DeviationLIF(LIF):
    """`LIF` with the widths of MPD-AGL, and its variables.

    `MembraneStats` and the collection `potentials` are of `Widened.near`. When the collection `widening` is mutable,
    the layer writes `Widened.widening` there.
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
          initial_state: None, and `return_state` False: widths belong to time steps, counted from the first.
          return_state: see `initial_state`.

        Returns:
          `[T, B, ...]`, in the dtype of `currents`.

        Raises:
          ValueError: a state is given or asked for.
        """
        if return_state or initial_state is not None:
            raise ValueError(
                'DeviationLIF takes and gives no state: it has a width for each time step, counted from the first.'
            )
        terms = self.probed(as_terms(currents))
        ran = deviation_lif(
            terms,
            self.width(terms),
            deviation(currents),
            tau=self.decay(),
            v_th=self.v_th,
            surrogate=self.surrogate,
            detach_reset=self.detach_reset,
            scale=self.height(terms),
            time_steps=time_steps,
        )
        of_currents = self.of_currents(currents, terms)
        reported = self.report(
            self.rate(ran.spikes), membrane_stats(ran.near, self.per_channel), None, of_currents, lambda: ran.near
        )
        if self.measures('widening'):
            self.put_variable('widening', 'widening', ran.widening)
        return self.answer(ran.spikes, reported)
