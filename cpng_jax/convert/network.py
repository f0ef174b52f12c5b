"""An ANN as the network that spikes in its place: its configuration, its weights with the norms folded into them.

Both are the same modules. Neurons become `if_soft`, norms a bias a channel; what was `conv/kernel` keeps its name.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from cpng_jax.models.registry import MODELS
from cpng_jax.models.sew_resnet import SEWResNet
from cpng_jax.nn.analog_neuron import ReLU
from cpng_jax.nn.kinds import KINDS
from cpng_jax.nn.layers import TdBN
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.surrogate import Array
from cpng_jax.nn.terms import Affine
from cpng_jax.runtime.arrays import by_name
from cpng_jax.runtime.config import Config, without_idle
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import keys
from cpng_jax.training.weights import nested

Variables = Mapping[str, Any]


class Activation(NamedTuple):
    """A layer of neurons, by its place in the network.

    Attributes:
      path: of the neurons, such as 'conv01/lif'.
      weights: path of the convolution or fully connected layer whose output they take, such as 'conv01/conv/conv'; of a
        sum of two branches, that of the longer one.
    """

    path: str
    weights: str


def spiking_config(config: Config, time_steps: int, kind: str = 'if_soft') -> Config:
    """Makes the configuration of the network that an ANN is converted to.

    Args:
      config: of the ANN.
      time_steps: T.
      kind: of its neurons, 'if_soft' or 'diet'.

    Returns:
      A copy; keys that have no effect with its neurons are at their defaults.

    Raises:
      UserError: it is no ANN, or one that cannot be converted.
    """
    trained = config.neuron.kind
    if KINDS[trained].spikes:
        anns = ' or '.join(name for name in KINDS if not KINDS[name].spikes)
        raise UserError(
            f'config.neuron.kind of the run is {trained}, a network that spikes already: expected an ANN, {anns}.'
        )
    if MODELS[config.model.name].module is SEWResNet:
        raise UserError(
            f'config.model.name of the run is {config.model.name}, whose stem takes the maximum over windows: that of '
            'spikes is not the spike of the maximum. Expected a network with average pools, such as vgg or resnet20.'
        )
    changed = config.copy_and_resolve_references()
    changed.neuron.kind = kind
    changed.norm.kind = 'bias' if config.norm.kind == 'tdbn' else config.norm.kind
    if kind == 'diet':  # as Diet-SNN starts
        changed.neuron.tau, changed.neuron.detach_reset, changed.cpng.scale_init = 1.0, True, 0.3
    changed.model.time_steps = changed.data.time_steps = time_steps
    changed.cpng.enabled = False
    changed.remat = 'none'
    changed.init_from = ''
    return without_idle(changed, keys.table())


def activations(model: nn.Module, example: Array) -> list[Activation]:
    """Lists the layers of neurons of a network in the order that they run in.

    Args:
      model: the network.
      example: an input; only the shape counts.

    Returns:
      The layers, each with the weights before it.
    """
    found: list[Activation] = []
    before: list[str] = []

    def record(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        result, module = next_function(*args, **kwargs), context.module
        if context.method_name == '__call__' and isinstance(module, nn.Conv | nn.Dense):
            before.append('/'.join(module.path))
        elif context.method_name == '__call__' and isinstance(module, ReLU | LIF):
            found.append(Activation('/'.join(module.path), before[0]))
            before.clear()
        return result

    # A function of its own: one that JAX has traced already would not run, and nothing would be recorded.
    def init(key: Array, example: Array) -> Any:
        return model.init(key, example)

    with nn.intercept_methods(record):
        jax.eval_shape(init, jax.random.key(0), example)
    return found


def folded(model: nn.Module, variables: Variables, example: Array) -> dict[str, Any]:
    """Folds the norms of a trained network into the weights before them.

    Of `(W x - mean) * gain + bias` becomes `(W gain) x + (bias - mean * gain)`, as evaluation computes it, with the
    running statistics.

    Args:
      model: the network.
      variables: its collections `params` and `batch_stats`.
      example: an input; only the shape counts.

    Returns:
      Parameters of the same network with `norm.kind=bias`, by path: neurons have those that they had.

    Source: Li et al. (2021), Sec. 3; Rueckauer et al. (2017).
    """
    norms: dict[str, str] = {}  # path of the weights by that of the norm

    def affine(variables: Variables, example: Array) -> dict[str, Affine]:
        found: dict[str, Affine] = {}
        last = ''

        def record(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            nonlocal last
            result, module = next_function(*args, **kwargs), context.module
            if context.method_name == '__call__' and isinstance(module, nn.Conv | nn.Dense):
                last = '/'.join(module.path)
            elif context.method_name == 'deferred' and isinstance(module, TdBN):
                path = '/'.join(module.path)
                norms[path], found[path] = last, result.affine
            return result

        with nn.intercept_methods(record):
            model.apply(variables, example)
        return found

    maps = jax.jit(affine)(variables, example)
    params = by_name(variables['params'])
    for norm, (mean, gain, bias) in maps.items():
        weights = norms[norm]
        for name in (f'{weights}/kernel', f'{weights}/bias'):
            if name in params:
                params[name] = params[name] * gain
        del params[f'{norm}/scale']
        params[f'{norm}/bias'] = bias - mean * gain
    return params


def spiking_variables(model: nn.Module, params: Mapping[str, Array], example: Array) -> dict[str, Any]:
    """Makes the variables of the network that spikes: its own, but for the weights of the ANN.

    Args:
      model: the network that spikes.
      params: of the ANN with its norms folded, from `folded`.
      example: an input; only the shape counts.

    Returns:
      The collections.
    """
    initial: Any = jax.jit(model.init)(jax.random.key(0), example)
    own = by_name(initial['params'])
    neurons = {layer.path for layer in activations(model, example)}
    taken = {name: params[name] for name in own if name.rpartition('/')[0] not in neurons}
    return {**initial, 'params': nested(own | taken)}


def parameter(variables: Variables, name: str) -> Array:
    """A parameter by its path, such as 'conv01/lif/shift'."""
    found = variables['params']
    for part in name.split('/'):
        found = found[part]
    return found


def with_params(variables: Variables, changes: Mapping[str, Array]) -> dict[str, Any]:
    """Puts other values in the place of some parameters.

    Args:
      variables: collections of a network.
      changes: values by path, such as 'conv01/lif/threshold'; each is broadcast to the shape of its parameter.

    Returns:
      The collections.
    """
    params = by_name(variables['params'])
    fitted = {
        name: jnp.broadcast_to(jnp.asarray(value, jnp.float32), params[name].shape) for name, value in changes.items()
    }
    return {**variables, 'params': nested(params | fitted)}
