"""What the layers of a network answer, and are given, averaged over time: what conversion compares."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from cpng_jax.nn.analog_neuron import ACTIVATIONS, MEAN_CURRENTS
from cpng_jax.nn.surrogate import Array

Variables = Mapping[str, Any]
ByLayer = dict[str, Array]


class Means(NamedTuple):
    """Means over the time steps.

    Attributes:
      answers: of each layer of neurons, `[B, ...]`, by its path.
      currents: of each layer of neurons, likewise, with the shift that these add.
      inputs: of each convolution and fully connected layer, by its path.
    """

    answers: ByLayer
    currents: ByLayer
    inputs: ByLayer


Measure = Callable[[Variables, Array], Means]


def make_measure(model: nn.Module) -> Measure:
    """Compiles what measures the layers of a network on a batch, in evaluation.

    Args:
      model: the network.

    Returns:
      Maps its variables and images, in the form that it takes, to the `Means`.
    """

    @jax.jit
    def measure(variables: Variables, images: Array) -> Means:
        inputs: ByLayer = {}
        batch = images.shape[-4]

        def record(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            if context.method_name == '__call__' and isinstance(context.module, nn.Conv | nn.Dense):
                # Time and batch are one axis there, see `layers.merge_time`.
                shared = jax.device_count() > 1
                steps = args[0].shape[0] // batch
                shape = (batch, steps) if shared else (steps, batch)
                apart = args[0].reshape(*shape, *args[0].shape[1:])
                inputs['/'.join(context.module.path)] = jnp.mean(apart, axis=1 if shared else 0)
            return next_function(*args, **kwargs)

        with nn.intercept_methods(record):
            _, found = model.apply(variables, images, mutable=[ACTIVATIONS, MEAN_CURRENTS])
        return Means(_by_layer(found[ACTIVATIONS]), _by_layer(found[MEAN_CURRENTS]), inputs)

    return measure


def _by_layer(collection: Mapping[str, Any]) -> ByLayer:
    leaves: Any = flatten_dict(collection)
    return {'/'.join(path[:-1]): leaf for path, leaf in leaves.items()}


def averaged(values: Iterable[ByLayer], keep: float) -> ByLayer:
    """The running average of values by layer: of the first batch, then `keep` of what there was.

    Args:
      values: of batch after batch; at least one.
      keep: share of the running average that is kept, 0 to 1.

    Returns:
      The average by layer.
    """
    blend = lambda old, new: {name: keep * old[name] + (1 - keep) * new[name] for name in old}
    return functools.reduce(blend, values)
