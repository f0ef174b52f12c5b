"""Thresholds of a converted network by a percentile of what each layer is given (Diet-SNN; Rathi and Roy, 2021).

Layer by layer: the network runs on the analog image at each step, the layers before with the thresholds that they have
been found to need, without leak; the threshold of a layer is the greatest of all steps of the percentile, over all
neurons and images of a step, of its weighted input, not of its potential. All are multiplied by a factor afterwards.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from cpng_jax.nn.currents import as_terms
from cpng_jax.nn.diet_neuron import LEAK, THRESHOLD, DietLIF
from cpng_jax.nn.surrogate import Array
from cpng_jax.nn.terms import sum_of

Layer = tuple[str, ...]


def percentile_thresholds(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Float[Array, 'B H W C'],
    *,
    percentile: float = 99.7,
    scaling: float = 1.0,
    time_steps: int = 100,
    found: Callable[[str, float], None] = lambda layer, threshold: None,
) -> dict[str, Any]:
    """Finds the thresholds of a network whose weights are those of an ANN.

    Args:
      model: the spiking network, with neurons of the kind `diet`.
      variables: its collections; leaks and thresholds are those to be replaced.
      images: in the form that the network takes, see `models.inputs.network_input`; theirs are 512 of training.
      percentile: of the weighted input, 0 to 100, the nearest rank.
      scaling: what all thresholds are multiplied by at the end.
      time_steps: that the network runs for; only one is kept in memory at a time.
      found: called with the name of each layer and its threshold before scaling, as they are found.

    Returns:
      The variables, leaks 1 and thresholds as found.

    Raises:
      ValueError: the images are not `[B, H, W, C]`, the network has other neurons, a number lies out of range, or a
        layer is given nothing above 0.
    """
    _check(images, percentile, scaling, time_steps)
    of_network: Any = flatten_dict(variables['params'])
    params: dict[Layer, Array] = {
        path: jnp.ones_like(leaf) if path[-1] == LEAK else leaf for path, leaf in of_network.items()
    }
    with_params = lambda params: {**variables, 'params': unflatten_dict(params)}
    layers, shapes = _states(model, with_params(params), images)

    @jax.jit
    def greatest(params: Mapping[Layer, Array], images: Array, index: Array) -> Array:
        """Of all time steps, for the layer of an index: one program for all."""

        def step(carry: tuple[Mapping[Layer, Array], Array], _: None) -> tuple[tuple[Any, Array], None]:
            states, so_far = carry
            of_step = []

            def observe(layer: Layer, currents: Array) -> None:
                nothing, here = jnp.float32(-jnp.inf), layers.index(layer) == index
                measure = lambda: _nearest_rank(currents, percentile)
                of_step.append(jax.lax.cond(here, measure, lambda: nothing))

            states = _one_step(model, with_params(params), images, states, observe)
            return (states, jnp.max(jnp.stack([so_far, *of_step]))), None

        rest = {layer: jnp.zeros(shape.shape, shape.dtype) for layer, shape in shapes.items()}
        (_, result), _ = jax.lax.scan(step, (rest, jnp.float32(-jnp.inf)), length=time_steps)
        return result

    for index, layer in enumerate(layers):
        threshold, name = greatest(params, images, jnp.int32(index)), '/'.join(layer)
        if not threshold > 0:
            raise ValueError(
                f'{name}: the {percentile:g}th percentile of its input is {float(threshold):g}, expected more than 0 '
                'for a threshold: take a higher percentile, or an ANN whose layers are alive.'
            )
        params[*layer, THRESHOLD] = threshold
        found(name, float(threshold))
    scaled = {path: scaling * leaf if path[-1] == THRESHOLD else leaf for path, leaf in params.items()}
    return with_params(scaled)


def _states(
    model: nn.Module, variables: Mapping[str, Any], images: Array
) -> tuple[list[Layer], Mapping[Layer, jax.ShapeDtypeStruct]]:
    """The layers in the order that they are called in, and the shapes of their states."""
    layers: list[Layer] = []
    run = lambda variables, images: _one_step(model, variables, images, {}, lambda layer, _: layers.append(layer))
    shapes = jax.eval_shape(run, variables, images)
    if not layers:
        raise ValueError(f'{type(model).__name__} has no neurons of the kind diet, whose thresholds could be set.')
    return layers, shapes


def _one_step(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    states: Mapping[Layer, Array],
    observe: Callable[[Layer, Array], None],
) -> dict[Layer, Array]:
    """Runs the network for a time step from given states, 0 if not given; returns the states after it."""
    after = {}

    def watch(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if not isinstance(context.module, DietLIF) or context.method_name != '__call__':
            return next_function(*args, **kwargs)
        layer = context.module.path
        observe(layer, sum_of(as_terms(args[0])))
        spikes, after[layer] = next_function(*args, initial_state=states.get(layer), return_state=True)
        return spikes

    # What is computed again in a backward pass could not be looked into; there is none here.
    with nn.intercept_methods(watch):
        model.clone(time_steps=1, remat='none').apply(variables, images)
    return after


def _nearest_rank(x: Array, percentile: float) -> Array:
    """A percentile, bit by bit: to sort what a layer is given takes many times as long."""
    rank, top = round(percentile / 100 * (x.size - 1)), jnp.uint32(1 << 31)
    # Keys that have the order of the numbers: floats have that of their bits, those below 0 the other way round.
    bits = jax.lax.bitcast_convert_type(x.ravel().astype(jnp.float32), jnp.uint32)
    keys = jnp.where(bits & top, ~bits, bits | top)

    def decide(bit: Array, key: Array) -> Array:
        """The next bit of the greatest key that no more than `rank` others lie below."""
        with_bit = key | (top >> bit.astype(jnp.uint32))
        return jnp.where(jnp.sum(keys < with_bit, dtype=jnp.int32) <= rank, with_bit, key)

    key = jax.lax.fori_loop(0, 32, decide, jnp.uint32(0))
    return jax.lax.bitcast_convert_type(jnp.where(key & top, key ^ top, ~key), jnp.float32)


def _check(images: Array, percentile: float, scaling: float, time_steps: int) -> None:
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f'images must be [B, H, W, C] with at least one of each, got shape {images.shape}.')
    if not 0 <= percentile <= 100:
        raise ValueError(f'percentile must lie in 0 to 100, got {percentile}.')
    if not 0 < scaling < float('inf'):
        raise ValueError(f'scaling must be a number above 0, got {scaling}.')
    if time_steps < 1:
        raise ValueError(f'time_steps must be at least 1, got {time_steps}.')
