"""SEW-ResNet: residual blocks that join spikes with spikes, element by element (Fang et al., 2021)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cpng_jax.models.blocks import ConvBlock, rematerialised, scaled, time_first
from cpng_jax.nn.layers import Dense, TdBN, max_pool
from cpng_jax.nn.neuron import LIF
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
      bottleneck: which of the two.
      connect: 'ADD', 'AND' or 'IAND'.
      neuron: makes each `LIF`.
      norm: makes each norm.
    """

    features: int
    stride: int = 1
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
        # With ADD, spikes and sums of one more in each block.
        spiking: dict[str, Any] = {'unit': 1.0, 'neuron': self.neuron, 'norm': self.norm}
        y = x
        for index, (features, kernel, stride) in enumerate(layers, start=1):
            y = ConvBlock(features, len(x), kernel, stride, name=f'conv{index}', **spiking)(y, train)
        if x.shape != y.shape:
            x = ConvBlock(y.shape[-1], len(x), 1, self.stride, name='shortcut', **spiking)(x, train)
        return CONNECTS[self.connect](y, x)


class SEWResNet(nn.Module):
    """7x7 stem with max pool, four stages of SEW blocks, average over the map, linear output.

    The norms are ordinary batch norms over T and the batch: tdBN with threshold 1, whatever that of the neurons. Its
    authors use integrate-and-fire neurons, `LIF(tau=1.0)`, with the reset detached.

    Attributes:
      classes: number of outputs.
      blocks: number of blocks in each stage.
      bottleneck: kind of block.
      connect: how branch and shortcut are joined: 'ADD', 'AND' or 'IAND'.
      widths: channels of each stage, inside its blocks.
      stem_width: channels of the first convolution.
      time_steps: T for static images.
      width: factor on all channels.
      remat: what the backward pass computes again to need less memory: 'none' or 'block', see `blocks.REMATS`.
      neuron: makes each `LIF`.
      norm: makes each norm.
    """

    classes: int
    blocks: Sequence[int]
    bottleneck: bool = False
    connect: str = 'ADD'
    widths: Sequence[int] = (64, 128, 256, 512)
    stem_width: int = 64
    time_steps: int = 4
    width: float = 1.0
    remat: str = 'none'
    neuron: Callable[..., LIF] = LIF
    norm: Callable[..., TdBN] = TdBN

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Computes the outputs at each time step.

        Args:
          x: static images `[B, H, W, C]`, presented at each of `time_steps`, or events `[T, B, H, W, C]`.
          train: normalise by the batch instead of the running statistics.

        Returns:
          `[T, B, classes]`.

        Raises:
          ValueError: `x` has another rank, `connect` has no such value, or `blocks` and `widths` differ in length.
        """
        if self.connect not in CONNECTS:
            raise ValueError(f'connect is {self.connect!r}, expected one of {", ".join(CONNECTS)}.')
        if len(self.blocks) != len(self.widths):
            raise ValueError(f'blocks and widths must have one number a stage, got {self.blocks} and {self.widths}.')
        x, time_steps = time_first(x, 'SEWResNet', self.time_steps)

        def batch_norm(**fields: str) -> TdBN:
            return self.norm(v_th=1.0, **fields)

        spiking: dict[str, Any] = {'neuron': self.neuron, 'norm': batch_norm}
        stem = rematerialised(ConvBlock, self.remat)(
            scaled(self.stem_width, self.width), time_steps, 7, 2, name='stage0_stem', **spiking
        )
        x = max_pool(stem(x, train), 3, 2)
        for stage, (count, features) in enumerate(zip(self.blocks, self.widths, strict=True), start=1):
            for index in range(count):
                block = rematerialised(SEWBlock, self.remat)(
                    scaled(features, self.width),
                    2 if stage > 1 and index == 0 else 1,
                    self.bottleneck,
                    self.connect,
                    name=f'stage{stage}_block{index + 1:02d}',
                    **spiking,
                )
                x = block(x, train)
        return Dense(self.classes, name='output')(jnp.mean(x, axis=(2, 3)))
