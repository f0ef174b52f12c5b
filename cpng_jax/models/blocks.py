"""What several networks are built from."""

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import linen as nn

from cpng_jax.layers import Conv, TdBN
from cpng_jax.neuron import LIF
from cpng_jax.surrogate import Array


def scaled(features: int, width: float) -> int:
    """Multiplies a number of channels by a width factor; at least 1 is left."""
    return max(1, round(features * width))


Block = TypeVar('Block', bound=nn.Module)

# What the backward pass finds kept of a block besides its input: all, the outputs of its convolutions and its spikes
# (so that norms and time loops are computed again), or nothing.
REMATS = {
    'none': jax.checkpoint_policies.everything_saveable,
    'lif': jax.checkpoint_policies.save_only_these_names('conv', 'spikes'),
    'block': jax.checkpoint_policies.nothing_saveable,
}


def rematerialised(block: type[Block], remat: str) -> type[Block]:
    """Makes a block keep less for the backward pass, which then computes the rest again.

    Membrane statistics and running means are those of the forward pass: nothing is counted twice.

    Args:
      block: class of a module that is called with `(x, train)`.
      remat: a key of `REMATS`.

    Returns:
      The class.

    Raises:
      ValueError: `remat` is none of them.
    """
    if remat not in REMATS:
        raise ValueError(f'remat is {remat!r}, expected one of {", ".join(REMATS)}.')
    if remat == 'none':
        return block
    return nn.remat(block, static_argnums=(2,), policy=REMATS[remat])


def time_first(x: Array, network: str, time_steps: int) -> tuple[Array, int]:
    """Brings the input of a network to `[T or 1, B, H, W, C]`.

    Args:
      x: static images `[B, H, W, C]` or events `[T, B, H, W, C]`.
      network: its name, for the message.
      time_steps: T for static images.

    Returns:
      The input, a static image with one time step, and T.

    Raises:
      ValueError: `x` has another rank.
    """
    if x.ndim not in (4, 5):
        raise ValueError(f'{network} takes images [B, H, W, C] or events [T, B, H, W, C], got shape {x.shape}.')
    return (x[None], time_steps) if x.ndim == 4 else (x, x.shape[0])


class ConvNorm(nn.Module):
    """Convolution and tdBN.

    Attributes:
      features: number of channels.
      kernel_size: edge of the kernel.
      stride: step in H and W.
      norm: makes the `TdBN`.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    norm: Callable[..., TdBN] = TdBN

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[T, B, H, W, C]` to currents `[T, B, H', W', features]`."""
        x = Conv(self.features, self.kernel_size, self.stride, name='conv')(x)
        return self.norm(name='norm')(x, train=train)


class ConvBlock(nn.Module):
    """Convolution, tdBN and LIF.

    Attributes:
      features: number of channels.
      time_steps: T of the spikes; an input with one time step is convolved and normalised once.
      kernel_size: edge of the kernel.
      stride: step in H and W.
      neuron: makes the `LIF`.
      norm: makes the `TdBN`.
    """

    features: int
    time_steps: int
    kernel_size: int = 3
    stride: int = 1
    neuron: Callable[..., LIF] = LIF
    norm: Callable[..., TdBN] = TdBN

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[T or 1, B, H, W, C]` to spikes `[T, B, H', W', features]`."""
        x = Conv(self.features, self.kernel_size, self.stride, name='conv')(x)
        x = self.norm(name='norm')(x, train=train)
        return self.neuron(name='lif')(x, self.time_steps)
