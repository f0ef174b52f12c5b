"""What the networks share: their fields, the way from images to outputs, and how their layers are made."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import linen as nn
from flax.errors import ScopeParamShapeError
from jaxtyping import Float

from cpng_jax.models.blocks import rematerialised, scaled, time_first
from cpng_jax.nn.layers import Dense, TdBN
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.surrogate import Array


class SpikingNetwork(nn.Module):
    """A network of spiking layers and a last one that is linear, without neurons (Eq. 5).

    A network adds fields of its own, which come after `classes`, and says in `hidden` what its layers are. It names
    them in the order of their depth, so that the layers of the collections `surrogate` and `membrane` are sorted by it.

    Attributes:
      classes: number of outputs.
      time_steps: T for static images.
      width: factor on all channels and on the widths of spiking fully connected layers.
      remat: what the backward pass computes again to need less memory: 'none' or 'block', see `blocks.REMATS`.
      bias: fully connected layers learn biases.
      neuron: makes each `LIF`, for example `functools.partial(LIF, surrogate='arctan')`.
      norm: makes each `TdBN`.
    """

    classes: int
    # By keyword alone, so that a network's own fields come right after `classes` and need no default.
    _: dataclasses.KW_ONLY
    time_steps: int = 4
    width: float = 1.0
    remat: str = 'none'
    bias: bool = True
    neuron: Callable[..., LIF] = LIF
    norm: Callable[..., TdBN] = TdBN

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, 'B H W C'] | Float[Array | np.ndarray, '_T B H W C'], *, train: bool = False
    ) -> Float[Array, '_T B classes']:
        """Computes the outputs at each time step.

        Args:
          x: static images `[B, H, W, C]`, presented at each of `time_steps`, or events `[T, B, H, W, C]`.
          train: normalise by the batch instead of the running statistics.

        Returns:
          `[T, B, classes]`.

        Raises:
          TypeError: `x` is no array, or not floating.
          ValueError: `x` has another rank or an empty axis, its map is too small for the pools, its channels or size
            are not those that the network was initialised for, or the fields do not go together.
        """
        frames, time_steps = time_first(x, type(self).__name__, self.time_steps)
        try:
            return Dense(self.classes, self.bias, name='output')(self.hidden(frames, time_steps, train))
        except ScopeParamShapeError as error:
            raise ValueError(
                f'{type(self).__name__} was initialised for another number of channels or another size than those of '
                f'shape {x.shape}: {error}'
            ) from error

    # The rest runs within `__call__`. Flax does not wrap it, or it would count as methods whose values one captures.

    @nn.nowrap
    def hidden(self, x: Array, time_steps: int, train: bool) -> Array:
        """Runs all layers but the last: `[T or 1, B, H, W, C]` to `[T, B, features]`."""
        raise NotImplementedError

    @nn.nowrap
    def block(self, kind: type[nn.Module], features: int, **fields: Any) -> Any:
        """Makes a block as this network's `width`, `remat`, `neuron` and `norm` have it; call it with `(x, train)`."""
        fields = {'neuron': self.neuron, 'norm': self.norm, **fields}
        return rematerialised(kind, self.remat)(scaled(features, self.width), **fields)

    @nn.nowrap
    def spiking_dense(self, x: Array, features: int, name: str, time_steps: int, *, train: bool | None = None) -> Array:
        """Runs a fully connected layer with neurons: `[T or 1, B, features before]` to spikes `[T, B, features]`.

        Args:
          x: what goes in; with one time step it is multiplied once.
          features: width of the layer, before the network's factor.
          name: of the layer.
          time_steps: T of the spikes.
          train: normalise the currents, by the batch or by the running statistics; None leaves the norm out.
        """
        x = Dense(scaled(features, self.width), self.bias, name=name)(x)
        currents = x if train is None else self.norm(name=f'{name}_norm').deferred(x, train=train)
        return self.neuron(name=f'{name}_lif')(currents, time_steps)
