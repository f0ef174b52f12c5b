"""Neurons of ANNs, which answer with a real number instead of spikes: a network at T = 1 whose layers they are.

Such a network takes no surrogate gradient, so that it has neither width nor height, and nothing to measure chi of. What
it has learnt can be handed to neurons that spike, `soft_reset.SoftResetIF`.
"""

import functools
from typing import ClassVar, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from cpng_jax.nn.currents import Currents, as_terms, number_of_steps
from cpng_jax.nn.surrogate import Array, ArrayLike, of_rank
from cpng_jax.nn.terms import sum_of
from cpng_jax.nn.time_loop import sum_like

# Collections in which neurons of ANNs, and those that they are converted to, write means over time when these are
# mutable: of what they answer, and of their currents; `[B, ...]`.
ACTIVATIONS, MEAN_CURRENTS = 'activations', 'mean_currents'


def report_means(module: nn.Module, answers: Array, currents: Array) -> None:
    """Writes the means over time that are asked for into their collections.

    Args:
      module: the layer of neurons, while it runs.
      answers: `[T, B, ...]`.
      currents: `[T, B, ...]`, or `[1, B, ...]` where they are the same at each step.
    """
    for name, values in ((ACTIVATIONS, answers), (MEAN_CURRENTS, currents)):
        if module.is_mutable_collection(name) and not module.is_initializing():
            module.put_variable(name, name, jnp.mean(values, axis=0))


class ReLU(nn.Module):
    """A layer of rectified linear units, in the place of neurons that spike."""

    # What its answers are whole multiples of, see `layers.Conv.packed`: of nothing.
    unit: ClassVar[float | None] = None

    @nn.compact
    def __call__(self, currents: Currents, time_steps: int | None = None) -> Float[Array, 'T *neurons']:
        """Computes the activations of the layer, at each time step by itself.

        Args:
          currents: pre-activations, as `LIF` takes currents.
          time_steps: T, if it is not that of `currents`.

        Returns:
          `[T, B, ...]`, 0 or more, in the dtype of `currents`.
        """
        terms = as_terms(currents)
        total = sum_of(terms)
        activations = self.activate(total)
        report_means(self, activations, total)
        shape = (number_of_steps(terms, time_steps), *total.shape[1:])
        return jnp.broadcast_to(activations.astype(terms[0].values.dtype), shape)

    @nn.nowrap
    def activate(self, x: Array) -> Array:
        """The activation function, of at least float32."""
        return nn.relu(x)


class QCFS(ReLU):
    """A layer of units that clip at a learnt threshold, in steps: what spikes counted over time can say.

    Bu et al., "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking Neural Networks", ICLR 2022,
    Eq. 15: quantization, clip, floor, shift. Its parameter `threshold`, their lambda, is a float32 scalar.

    Attributes:
      levels: L, steps between 0 and the threshold.
      threshold: at initialisation.
    """

    levels: int = 4
    threshold: float = 8.0

    @nn.nowrap
    def activate(self, x: Array) -> Array:
        """Eq. 15."""
        return qcfs(x, self.param('threshold', nn.initializers.constant(self.threshold), (), jnp.float32), self.levels)


def qcfs(
    x: Float[ArrayLike, '*neurons'], threshold: Float[ArrayLike, '*#neurons'], levels: int
) -> Float[Array, '*neurons']:
    """Quantizes, clips, floors and shifts: `threshold * clip(floor(levels * x / threshold + 1/2) / levels, 0, 1)`.

    The gradient goes straight through the floor: by `x` it is 1 between 0 and the threshold and 0 elsewhere; by the
    threshold it is `(answer - x) / threshold` between, 1 from the threshold on, 0 below 0. It can be differentiated
    backwards alone.

    Args:
      x: pre-activations, floating.
      threshold: lambda, greater than 0, where the answer is clipped; scalar or broadcastable to `x`.
      levels: L, at least 1.

    Returns:
      The shape and dtype of `x`.

    Raises:
      ValueError: `levels` is less than 1.

    Source: Bu et al. (2022), Eq. 15 and 16, in the order of their published code, which clips first.
    """
    if levels < 1:
        raise ValueError(f'levels must be at least 1, got {levels}.')
    x = jnp.asarray(x)
    return _qcfs(x, of_rank(jnp.asarray(threshold, x.dtype), x.ndim), levels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _qcfs(x: Array, threshold: Array, levels: int) -> Array:
    return threshold * (jnp.floor(levels * jnp.clip(x / threshold, 0, 1) + 0.5) / levels)


def _qcfs_forward(x: Array, threshold: Array, levels: int) -> tuple[Array, tuple[Array, Array]]:
    return _qcfs(x, threshold, levels), (x, threshold)


def _qcfs_backward(levels: int, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, threshold = residuals
    inside, answer = (x > 0) & (x < threshold), cast(Array, _qcfs(x, threshold, levels))
    by_threshold = jnp.where(inside, (answer - x) / threshold, x >= threshold)
    return jnp.where(inside, cotangent, 0), sum_like(cotangent * by_threshold, threshold)


_qcfs.defvjp(_qcfs_forward, _qcfs_backward)
