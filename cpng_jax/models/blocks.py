"""What several networks are built from."""

from collections.abc import Callable
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cpng_jax.nn.layers import Conv, TdBN
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.packing import in_bytes
from cpng_jax.nn.surrogate import Array
from cpng_jax.nn.terms import Normalised


def scaled(features: int, width: float) -> int:
    """Multiplies a number of channels by a width factor; at least 1 is left."""
    return max(1, round(features * width))


Block = TypeVar('Block', bound=nn.Module)

# What the backward pass computes again: nothing, or each block from its input.
REMATS = ('none', 'block')


def rematerialised(block: type[Block], remat: str) -> type[Block]:
    """Makes the backward pass compute a block again from its input, if so chosen, and find nothing else kept of it.

    Membrane statistics and running means are those of the forward pass: nothing is counted twice.

    Args:
      block: class of a module that is called with `(x, train)` and knows the `unit` of x, see `Conv.packed`.
      remat: one of `REMATS`.

    Returns:
      The class.

    Raises:
      ValueError: `remat` is none of them.
    """
    if remat not in REMATS:
        raise ValueError(f'remat is {remat!r}, expected one of {", ".join(REMATS)}.')
    if remat == 'none':
        return block

    class Recomputed(block):
        @nn.compact
        def __call__(self, x: Array, train: bool) -> Array:
            return super().__call__(in_bytes(x, self.unit), train)

    # Argument 2, after the module and x, is `train`, a Python bool.
    return cast(type[Block], nn.remat(Recomputed, static_argnums=(2,)))


def unit_of(neuron: Callable[..., nn.Module]) -> float | None:
    """Tells what the answers of a layer of neurons are whole multiples of, for `Conv.packed`.

    Args:
      neuron: what makes the layer, a class or a partial of one.

    Returns:
      1 for spikes; None for real numbers, and where nothing is known of them.
    """
    return getattr(getattr(neuron, 'func', neuron), 'unit', None)


def time_first(x: Array | np.ndarray, network: str, time_steps: int) -> tuple[Array, int]:
    """Brings the input of a network to `[T or 1, B, H, W, C]`.

    Args:
      x: static images `[B, H, W, C]` or events `[T, B, H, W, C]`.
      network: its name, for the message.
      time_steps: T for static images.

    Returns:
      The input, a static image with one time step, and T.

    Raises:
      TypeError: `x` is no array, or not floating.
      ValueError: `x` has another rank, or an empty axis.
    """
    taken = f'{network} takes images [B, H, W, C] or events [T, B, H, W, C]'
    if not isinstance(x, jax.Array | np.ndarray):
        raise TypeError(f'{taken} as an array, got {type(x).__name__}.')
    if x.ndim not in (4, 5):
        raise ValueError(f'{taken}, got shape {x.shape}.')
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f'{taken} of floating numbers, about 0 and 1 in size, got dtype {x.dtype}.')
    if 0 in x.shape:
        raise ValueError(f'{taken} with at least one of each, got shape {x.shape}.')
    frames = jnp.asarray(x)
    return (frames[None], time_steps) if x.ndim == 4 else (frames, len(frames))


class ConvNorm(nn.Module):
    """Convolution and tdBN.

    Attributes:
      features: number of channels.
      kernel_size: edge of the kernel.
      stride: step in H and W.
      unit: of the input, see `Conv.packed`.
      norm: makes the `TdBN`.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    unit: float | None = None
    norm: Callable[..., TdBN] = TdBN

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Normalised:
        """Maps `[T, B, H, W, C]` to currents `[T, B, H', W', features]`."""
        x = Conv(self.features, self.kernel_size, self.stride, name='conv').packed(x, unit=self.unit)
        return self.norm(name='norm').deferred(x, train=train)


class ConvBlock(nn.Module):
    """Convolution, tdBN and LIF.

    Attributes:
      features: number of channels.
      time_steps: T of the spikes; an input with one time step is convolved and normalised once.
      kernel_size: edge of the kernel.
      stride: step in H and W.
      unit: of the input, see `Conv.packed`.
      neuron: makes the `LIF`.
      norm: makes the `TdBN`.
    """

    features: int
    time_steps: int
    kernel_size: int = 3
    stride: int = 1
    unit: float | None = None
    neuron: Callable[..., LIF] = LIF
    norm: Callable[..., TdBN] = TdBN

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[T or 1, B, H, W, C]` to spikes `[T, B, H', W', features]`."""
        x = Conv(self.features, self.kernel_size, self.stride, name='conv').packed(x, unit=self.unit)
        return self.neuron(name='lif')(self.norm(name='norm').deferred(x, train=train), self.time_steps)
