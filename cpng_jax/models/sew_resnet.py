"""SEW-ResNet: residual blocks that join spikes with spikes, element by element (Fang et al., 2021)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cpng_jax.models.blocks import ConvBlock, unit_of
from cpng_jax.models.network import SpikingNetwork
from cpng_jax.models.resnet import residual_stages
from cpng_jax.nn.layers import TdBN, max_pool
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.surrogate import Array

# name -> g(spikes of the branch, spikes of the shortcut) (Fang et al., Table 1)
CONNECTS: dict[str, Callable[[Array, Array], Array]] = {
    'ADD': lambda branch, shortcut: branch + shortcut,
    'AND': lambda branch, shortcut: branch * shortcut,
    'IAND': lambda branch, shortcut: (1 - branch) * shortcut,
}


class SEWBlock(nn.Module):
    """A basic block, two 3x3 convolutions, or a bottleneck, 1x1, 3x3 and 1x1 to four times the channels.

    Each convolution has its norm and its neurons, the 1x1 convolution in the shortcut too.

    Attributes:
      features: number of channels inside the block.
      stride: step of the 3x3 convolution that may halve the map, and of the shortcut.
      unit: of the input, see `Conv.packed`.
      bottleneck: which of the two.
      connect: 'ADD', 'AND' or 'IAND'.
      neuron: makes each `LIF`.
      norm: makes each norm.
    """

    features: int
    stride: int = 1
    unit: float | None = None
    bottleneck: bool = False
    connect: str = 'ADD'
    neuron: Callable[..., LIF] = LIF
    norm: Callable[..., TdBN] = TdBN

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[T, B, H, W, C]` to `[T, B, H', W', features or 4 * features]`."""
        # Features, kernel, stride.
        if self.bottleneck:
            layers = [(self.features, 1, 1), (self.features, 3, self.stride), (4 * self.features, 1, 1)]
        else:
            layers = [(self.features, 3, self.stride), (self.features, 3, 1)]
        spiking: dict[str, Any] = {'neuron': self.neuron, 'norm': self.norm}
        y, unit = x, self.unit
        for index, (features, kernel, stride) in enumerate(layers, start=1):
            y = ConvBlock(features, len(x), kernel, stride, unit, name=f'conv{index}', **spiking)(y, train)
            unit = unit_of(self.neuron)
        if x.shape != y.shape:
            x = ConvBlock(y.shape[-1], len(x), 1, self.stride, self.unit, name='shortcut', **spiking)(x, train)
        return CONNECTS[self.connect](y, x)


class SEWResNet(SpikingNetwork):
    """7x7 stem with max pool, four stages of SEW blocks, average over the map, linear output.

    The norms are ordinary batch norms over T and the batch: tdBN with threshold 1, whatever that of the neurons. Its
    authors use integrate-and-fire neurons, `LIF(tau=1.0)`, with the reset detached.

    Attributes:
      blocks: number of blocks in each stage.
      bottleneck: kind of block.
      connect: how branch and shortcut are joined: 'ADD', 'AND' or 'IAND'.
      widths: channels of each stage, inside its blocks.
      stem_width: channels of the first convolution.

    Others are those of `SpikingNetwork`: `classes`, `time_steps`, `width`, `remat`, `neuron` and `norm`.
    """

    blocks: Sequence[int]
    bottleneck: bool = False
    connect: str = 'ADD'
    widths: Sequence[int] = (64, 128, 256, 512)
    stem_width: int = 64

    @nn.nowrap
    def hidden(self, x: Array, time_steps: int, train: bool) -> Array:
        """Runs all layers but the last: `[T or 1, B, H, W, C]` to `[T, B, features]`."""
        if self.connect not in CONNECTS:
            raise ValueError(f'connect is {self.connect!r}, expected one of {", ".join(CONNECTS)}.')
        norm = functools.partial(self.norm, v_th=1.0)
        stem = self.block(
            ConvBlock, self.stem_width, time_steps=time_steps, kernel_size=7, stride=2, norm=norm, name='stage0_stem'
        )
        x = max_pool(stem(x, train), 3, 2)
        kind = {'bottleneck': self.bottleneck, 'connect': self.connect}
        # With ADD, spikes and sums of one more in each block.
        unit = unit_of(self.neuron)
        x = residual_stages(self, SEWBlock, self.blocks, self.widths, x, unit, train, norm=norm, **kind)
        return jnp.mean(x, axis=(2, 3))
