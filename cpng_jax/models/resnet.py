"""Spiking ResNets: the neurons of a block fire on the sum of its two branches (Zheng et al., 2020)."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn

from cpng_jax.models.blocks import ConvBlock, ConvNorm, rematerialised, scaled, time_first
from cpng_jax.nn.layers import Dense, TdBN
from cpng_jax.nn.neuron import LIF
from cpng_jax.nn.surrogate import Array
from cpng_jax.nn.time_loop import Normalised


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the shape changes, the shortcut is a 1x1 convolution with tdBN.

    Attributes:
      features: number of channels.
      stride: step of the first convolution and of the shortcut.
      alpha_residual: tdBN's alpha where the branches are summed.
      neuron: makes each `LIF`.
      norm: makes each `TdBN`.
    """

    features: int
    stride: int = 1
    alpha_residual: float = 0.5**0.5
    neuron: Callable[..., LIF] = LIF
    norm: Callable[..., TdBN] = TdBN

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps spikes `[T, B, H, W, C]` to spikes `[T, B, H', W', features]`."""

        def summed_norm(**fields: str) -> TdBN:
            return self.norm(alpha=self.alpha_residual, **fields)

        first = ConvBlock(
            self.features, len(x), stride=self.stride, unit=1.0, neuron=self.neuron, norm=self.norm, name='conv1'
        )
        y = ConvNorm(self.features, unit=1.0, norm=summed_norm, name='conv2')(first(x, train), train)
        shortcut: Array | Normalised = x
        if x.shape != y.shape:
            shortcut = ConvNorm(self.features, 1, self.stride, 1.0, summed_norm, name='shortcut')(x, train)
        return self.neuron(name='lif')((y, shortcut))


class ResNet(nn.Module):
    """Stem, stages of residual blocks, average over the map, fully connected layers.

    The first block of each stage but the first halves the map. The last layer is linear, without neurons (Eq. 5).
    Names are in the order of depth, so that the layers of `surrogate` and `membrane` are sorted by it.

    Attributes:
      classes: number of outputs.
      blocks: number of residual blocks in each stage.
      widths: channels of each stage.
      stem_width: channels of the first convolution.
      head: widths of the spiking fully connected layers before the last.
      time_steps: T for static images.
      width: factor on all channels and on the head.
      remat: what the backward pass computes again to need less memory: 'none' or 'block', see `blocks.REMATS`.
      alpha_residual: tdBN's alpha where two branches are summed.
      neuron: makes each `LIF`.
      norm: makes each `TdBN`.
    """

    classes: int
    blocks: Sequence[int]
    widths: Sequence[int]
    stem_width: int = 64
    head: Sequence[int] = ()
    time_steps: int = 4
    width: float = 1.0
    remat: str = 'none'
    alpha_residual: float = 0.5**0.5
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
          ValueError: `x` has another rank, or `blocks` and `widths` differ in length.
        """
        if len(self.blocks) != len(self.widths):
            raise ValueError(f'blocks and widths must have one number a stage, got {self.blocks} and {self.widths}.')
        x, time_steps = time_first(x, 'ResNet', self.time_steps)
        stem = rematerialised(ConvBlock, self.remat)(
            scaled(self.stem_width, self.width), time_steps, neuron=self.neuron, norm=self.norm, name='stage0_stem'
        )
        x = stem(x, train)
        for stage, (count, features) in enumerate(zip(self.blocks, self.widths, strict=True), start=1):
            for index in range(count):
                block = rematerialised(ResidualBlock, self.remat)(
                    scaled(features, self.width),
                    2 if stage > 1 and index == 0 else 1,
                    self.alpha_residual,
                    self.neuron,
                    self.norm,
                    name=f'stage{stage}_block{index + 1:02d}',
                )
                x = block(x, train)
        x = jnp.mean(x, axis=(2, 3))
        for index, features in enumerate(self.head, start=1):
            name = f'stage{len(self.blocks) + 1}_fc{index}'
            x = Dense(scaled(features, self.width), name=name)(x)
            x = self.neuron(name=f'{name}_lif')(x)
        return Dense(self.classes, name='output')(x)
