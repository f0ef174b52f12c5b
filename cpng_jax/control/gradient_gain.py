"""The gain of a layer of neurons: how much of a gradient it passes back, measured by what it passes on of a signal.

A layer turns currents of variance Var(c) into spikes of variance r (1 - r), r the firing rate, and a gradient by its
spikes into one by its currents, E[f(u)^2] times as large in the mean square. Gradients neither grow nor vanish from
layer to layer where it passes back what it passes on, E[f(u)^2] Var(c) = r (1 - r). docs/gain.md derives it.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Real

from cpng_jax.control.layer_tree import PyTree, like, like_beta, stats_vector, vector
from cpng_jax.control.moments import Moments, moments_of, passed_back
from cpng_jax.control.solve import DOUBLINGS, Layers, in_layers, solution, widest
from cpng_jax.nn.statistics import MembraneDistances, MembraneStats
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate, get_surrogate


def gain(
    stats: MembraneStats | MembraneDistances,
    beta: Real[ArrayLike, '*#layers'],
    scale: Real[ArrayLike, '*#layers'] = 1.0,
    *,
    currents: Real[ArrayLike, '*#layers'],
    firing_rate: Real[ArrayLike, '*#layers'],
    v_th: Real[ArrayLike, '*#layers'] = 1.0,
    surrogate: str | Surrogate = 'triangular',
    tau: Real[ArrayLike, '*#layers'] = 0.0,
    time_steps: int = 1,
    correlation: Real[ArrayLike, '*#layers'] = 0.2,
    detach_reset: bool = False,
) -> Float[Array, '*layers']:
    """The gain of the gradient through a layer of neurons: the mean square passed back over what is passed forward.

    At one time step `scale^2 E[f(u)^2] Var(c) / (r (1 - r))`. Over several, the path from step to step (Eq. 7 and 8) is
    taken along. The norm of a gradient grows by its square root from a layer to the one before it, see docs/gain.md.

    Args:
      stats: `MembraneStats` of the potentials before the reset, which are taken as Gaussian then; or
        `MembraneDistances`, for those that were counted, with as many on either side of the threshold. One layer or
        many, any shape.
      beta: width parameter; broadcasts with the statistics, as all that follow.
      scale: factor of the surrogate gradient.
      currents: variance of the currents, Var(c).
      firing_rate: share of neurons and time steps that spike, r.
      v_th: threshold.
      surrogate: 'triangular', 'rectangular', 'arctan', 'dspike' or a `Surrogate`.
      tau: decay of the membrane potential per time step; without effect at one time step.
      time_steps: T of the gradient.
      correlation: of the gradients by a neuron's spikes at two time steps: 1 behind the last layer, 0.1 to 0.4 deep in
        a network.
      detach_reset: no gradient flows through the reset.

    Returns:
      The gain, at least float32, of the broadcast shape; within 1e-5 of itself for a shape that is smooth on either
      side of the threshold, while that is within 5 standard deviations of the mean. NaN where the layer is silent or
      saturated, where potentials or currents are constant, or where a number is not finite. Differentiable by all of
      its numbers.

    Raises:
      ValueError: unknown surrogate, or `time_steps` is less than 1.

    Source: docs/gain.md, Eq. 4 and 9; the condition on E[f^2] is akin to those of Herranz-Celotti and Rouat (2022).
    """
    network = _Network(get_surrogate(surrogate), _checked(time_steps), detach_reset)
    layers, (beta, scale) = in_layers(stats, currents, firing_rate, v_th, tau, correlation, beta, scale)
    return jnp.where(layers.usable, _gain(layers, beta, scale, network), jnp.nan)


def scale_for_gain(
    target: Real[ArrayLike, '*#layers'],
    stats: MembraneStats | MembraneDistances,
    beta: Real[ArrayLike, '*#layers'],
    *,
    currents: Real[ArrayLike, '*#layers'],
    firing_rate: Real[ArrayLike, '*#layers'],
    v_th: Real[ArrayLike, '*#layers'] = 1.0,
    surrogate: str | Surrogate = 'triangular',
    tau: Real[ArrayLike, '*#layers'] = 0.0,
    time_steps: int = 1,
    correlation: Real[ArrayLike, '*#layers'] = 0.2,
    detach_reset: bool = False,
) -> Float[Array, '*layers']:
    """The height of the surrogate gradient at which the gain takes a given value, at a width as it is.

    The gain grows with the height. At one time step it does so as the square, and the solution is closed; over
    several it is found by bisection within a factor of 2^12 of that.

    Args:
      target: wanted gain, 1 for gradients that neither grow nor vanish; broadcasts with the statistics.
      stats: see `gain`, as all that follow.
      beta: width parameter.
      currents: variance of the currents.
      firing_rate: share of neurons and time steps that spike.
      v_th: threshold.
      surrogate: the shape.
      tau: decay.
      time_steps: T.
      correlation: of gradients at two time steps.
      detach_reset: no gradient flows through the reset.

    Returns:
      scale, at least float32, of the broadcast shape; the gain there is within 1e-5 of the target, by its size. 0 says
      that there is none: the gain is not defined, or no potential lies where the surrogate gradient is not 0. Never
      NaN. Differentiable by all of its numbers, as an implicit function; where it is 0, so are its derivatives.

    Raises:
      ValueError: unknown surrogate, or `time_steps` is less than 1.
    """
    network = _Network(get_surrogate(surrogate), _checked(time_steps), detach_reset)
    layers, (target, beta) = in_layers(stats, currents, firing_rate, v_th, tau, correlation, target, beta)
    return _scale_for_gain(layers, target, beta, network)


def beta_for_gain(
    target: Real[ArrayLike, '*#layers'],
    stats: MembraneStats | MembraneDistances,
    scale: Real[ArrayLike, '*#layers'] = 1.0,
    *,
    currents: Real[ArrayLike, '*#layers'],
    firing_rate: Real[ArrayLike, '*#layers'],
    v_th: Real[ArrayLike, '*#layers'] = 1.0,
    surrogate: str | Surrogate = 'triangular',
    tau: Real[ArrayLike, '*#layers'] = 0.0,
    time_steps: int = 1,
    correlation: Real[ArrayLike, '*#layers'] = 0.2,
    detach_reset: bool = False,
) -> Float[Array, '*layers']:
    """The width parameter at which the gain takes a given value, at a height as it is.

    The gain grows with beta where the threshold is within a few standard deviations of the mean. Farther off it may
    fall again, as the domain loses most potentials: of several solutions this is the smallest, the widest domain.

    Args:
      target: wanted gain; broadcasts with the statistics.
      stats: see `gain`, as all that follow.
      scale: factor of the surrogate gradient.
      currents: variance of the currents.
      firing_rate: share of neurons and time steps that spike.
      v_th: threshold.
      surrogate: the shape.
      tau: decay.
      time_steps: T.
      correlation: of gradients at two time steps.
      detach_reset: no gradient flows through the reset.

    Returns:
      beta, at least float32, of the broadcast shape; the gain there is within 1e-5 of the target, by its size. 0 says
      that none within a factor of 2^12 of one over the spread of the potentials gives that gain, or that it is not
      defined. Never NaN. Differentiable by all of its numbers, as an implicit function; where it is 0, so are its
      derivatives.

    Raises:
      ValueError: unknown surrogate, or `time_steps` is less than 1.
    """
    network = _Network(get_surrogate(surrogate), _checked(time_steps), detach_reset)
    layers, (target, scale) = in_layers(stats, currents, firing_rate, v_th, tau, correlation, target, scale)
    return _beta_for_gain(layers, target, scale, network)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=('v_th', 'tau', 'correlation'),
    meta_fields=('surrogate', 'time_steps', 'detach_reset'),
)
@dataclasses.dataclass(frozen=True)
class Gradients:
    """What a network's gradient depends on besides what its layers measure; a pytree of the numbers that may be traced.

    Attributes:
      surrogate: the shape.
      v_th: threshold of the neurons.
      tau: decay of the membrane potential.
      time_steps: T.
      detach_reset: no gradient flows through the reset.
      correlation: of the gradients by a neuron's spikes at two time steps, see `gain`.
    """

    surrogate: str | Surrogate = 'triangular'
    v_th: ArrayLike = 1.0
    tau: ArrayLike = 0.5
    time_steps: int = 1
    detach_reset: bool = False
    correlation: ArrayLike = 0.2


class Signals(NamedTuple):
    """What layers measure of the signals they pass on, each laid out like beta.

    Attributes:
      membrane: a `MembraneStats`, or a `MembraneDistances`, of the potentials in the place of each beta.
      currents: a `MembraneStats` of the currents.
      firing_rate: the share of neurons and time steps that spiked.
      tau: the decay of the potentials, where layers have one of their own; None for that of `Gradients`.
    """

    membrane: PyTree
    currents: PyTree
    firing_rate: PyTree
    tau: PyTree = None


@jax.jit
def gain_by_layer(signals: Signals, beta: PyTree, scale: PyTree, gradients: Gradients) -> PyTree:
    """The gain of all layers at once.

    Args:
      signals: what they have measured.
      beta: pytree of floating arrays, one leaf per layer.
      scale: the same of the heights.
      gradients: of the network.

    Returns:
      The gain, see `gain`, laid out like beta.

    Raises:
      ValueError: `signals` or `scale` does not fit the layers of `beta`, or unknown surrogate.
    """
    stats, rest = in_vectors(signals, beta, gradients)
    value = gain(stats, vector('beta', beta, beta), vector('scale', like_beta(scale, beta), beta), **rest)
    return like(beta, value)


@jax.jit
def scale_by_layer(target: ArrayLike, signals: Signals, beta: PyTree, gradients: Gradients) -> PyTree:
    """The heights at which the gain of all layers takes a value, at widths as they are.

    Args:
      target: wanted gain.
      signals: what the layers have measured.
      beta: pytree of floating arrays, one leaf per layer.
      gradients: of the network.

    Returns:
      The heights, see `scale_for_gain`, laid out like beta; 0 where there is none.

    Raises:
      ValueError: `signals` does not fit the layers of `beta`, or unknown surrogate.
    """
    stats, rest = in_vectors(signals, beta, gradients)
    return like(beta, scale_for_gain(target, stats, vector('beta', beta, beta), **rest))


@jax.jit
def beta_by_layer(target: ArrayLike, signals: Signals, scale: PyTree, gradients: Gradients) -> PyTree:
    """The widths at which the gain of all layers takes a value, at heights as they are.

    Args:
      target: wanted gain.
      signals: what the layers have measured.
      scale: pytree of floating arrays, one leaf per layer.
      gradients: of the network.

    Returns:
      The width parameters, see `beta_for_gain`, laid out like the heights; 0 where there is none.

    Raises:
      ValueError: `signals` does not fit the layers of `scale`, or unknown surrogate.
    """
    stats, rest = in_vectors(signals, scale, gradients)
    return like(scale, beta_for_gain(target, stats, vector('scale', scale, scale), **rest))


def in_vectors(
    signals: Signals, beta: PyTree, gradients: Gradients
) -> tuple[MembraneStats | MembraneDistances, dict[str, Any]]:
    """Puts what all layers have measured into vectors, as `gain` and its inverses take them.

    Args:
      signals: what they have measured.
      beta: pytree of floating arrays, one leaf per layer.
      gradients: of the network.

    Returns:
      The statistics of the potentials, with an element for each beta, and the keyword arguments.

    Raises:
      ValueError: `signals` does not fit the layers of `beta`.
    """
    currents = stats_vector(signals.currents, beta)
    if not isinstance(currents, MembraneStats):
        raise ValueError(f'currents must be measured as cpng_jax.MembraneStats, got {type(currents).__name__}.')
    rate = vector('firing_rate', like_beta(signals.firing_rate, beta), beta)
    measured = {'currents': currents.variance, 'firing_rate': rate}
    if signals.tau is not None:
        of_each = jax.tree.map(jnp.broadcast_to, signals.tau, jax.tree.map(jnp.shape, beta))
        measured['tau'] = vector('tau', of_each, beta)
    return stats_vector(signals.membrane, beta), vars(gradients) | measured


def _checked(time_steps: int) -> int:
    if time_steps < 1:
        raise ValueError(f'time_steps must be at least 1, got {time_steps}.')
    return time_steps


class _Network(NamedTuple):
    """What is static of the network: the shape, T, and whether no gradient flows through the reset."""

    surrogate: Surrogate
    time_steps: int
    detach_reset: bool


# Compiled once for a network, so that calls between the epochs of a loop cost nothing.
_compiled = functools.partial(jax.jit, static_argnames='network')


@_compiled
def _gain(layers: Layers, beta: Array, scale: Array, network: _Network) -> Array:
    return _gain_by(moments_of(layers.stats, beta, layers.v_th, network.surrogate), layers, scale, network)


@_compiled
def _scale_for_gain(layers: Layers, target: Array, beta: Array, network: _Network) -> Array:
    moments = moments_of(layers.stats, beta, layers.v_th, network.surrogate)
    closed = target * layers.rate * (1 - layers.rate) / (layers.currents * jnp.where(moments.ff > 0, moments.ff, 1))
    usable = layers.usable & (moments.ff > 0) & jnp.isfinite(closed) & (closed > 0)
    closed = jnp.log2(jnp.where(usable, closed, 1)) / 2
    bracket = closed - DOUBLINGS, closed + DOUBLINGS
    return solution(lambda octave: _gain_by(moments, layers, 2**octave, network), target, bracket, usable)


@_compiled
def _beta_for_gain(layers: Layers, target: Array, scale: Array, network: _Network) -> Array:
    return widest(lambda octave: _gain(layers, 2**octave, scale, network), target, layers)


def _gain_by(moments: Moments, layers: Layers, scale: Array, network: _Network) -> Array:
    _, time_steps, detach_reset = network
    back = passed_back(moments, scale, layers.rate, layers.tau, time_steps, layers.correlation, detach_reset)
    return back * layers.currents / (layers.rate * (1 - layers.rate))
