"""Networks by name, as a configuration asks for them."""

import dataclasses
import functools
from typing import Any

from flax import linen as nn

from cpng_jax.config import Config, nearest
from cpng_jax.errors import UserError
from cpng_jax.layers import TdBN
from cpng_jax.models.vgg import VGG
from cpng_jax.neuron import LIF

MODELS: dict[str, type[nn.Module]] = {'vgg': VGG}

# Fields that come from elsewhere in the configuration or belong to flax.
_NOT_SETTABLE = ('classes', 'neuron', 'norm', 'name', 'parent')


def build(config: Config, classes: int) -> nn.Module:
    """Makes the network that a configuration describes.

    Args:
      config: the whole configuration: `model` holds the network's name and fields, `neuron`, `norm` and
        `cpng.beta_init` the settings of its layers.
      classes: number of outputs.

    Returns:
      The linen module.

    Raises:
      UserError: no network has that name, or it has no such field.
    """
    fields: dict[str, Any] = dict(config.model.items())
    name = fields.pop('name')
    if name not in MODELS:
        raise UserError(f'config.model.name is {name!r}, expected one of {", ".join(MODELS)}.')
    model = MODELS[name]
    known = [field.name for field in dataclasses.fields(model) if field.name not in _NOT_SETTABLE]
    for field in fields:
        if field not in known:
            close = nearest(f'model.{field}', [f'model.{other}' for other in known])
            raise UserError(f"config has no key 'model.{field}'; the nearest of the network {name} is {close!r}.")
    neuron = functools.partial(LIF, beta_init=config.cpng.beta_init, **config.neuron)
    norm = functools.partial(TdBN, v_th=config.neuron.v_th, **config.norm)
    try:
        return model(classes=classes, neuron=neuron, norm=norm, **fields)
    except TypeError as error:
        raise UserError(f'config.model does not describe a network {name}: {error}.') from error
