"""Spiking ResNets: the neurons of a block fire on the sum of its two branches (Zheng et al., 2020)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cpng_jax.models.blocks import ConvBlock, ConvNorm, unit_of
from cpng_jax.models.network import SpikingNetwork
from cpng_jax.nn.layers import TdBN, avg_pool
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.surrogate import Array
from cpng_jax.nn.terms import Normalised, Whole


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the shape changes, the shortcut is a 1x1 convolution with tdBN.

    Attributes:
      features: number of channels.
      stride: step of the first convolution and of the shortcut.
      unit: of the input, see `Conv.packed`.
      alpha_residual: tdBN's alpha where the branches are summed.
      neuron: makes each `LIF`.
      norm: makes each `TdBN`.
    """

    features: int
    stride: int = 1
    unit: float | None = None
    alpha_residual: float = 0.5**0.5
    neuron: Callable[..., LIF] = LIF
    norm: Callable[..., TdBN] = TdBN

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[T, B, H, W, C]` to spikes `[T, B, H', W', features]`."""

        def summed_norm(**fields: str) -> TdBN:
            return self.norm(alpha=self.alpha_residual, **fields)

        first = ConvBlock(
            self.features, len(x), stride=self.stride, unit=self.unit, neuron=self.neuron, norm=self.norm, name='conv1'
        )
        y = ConvNorm(self.features, unit=unit_of(self.neuron), norm=summed_norm, name='conv2')(first(x, train), train)
        shortcut: Array | Normalised | Whole = x if self.unit is None else Whole(x, self.unit)
        if x.shape != y.shape:
            shortcut = ConvNorm(self.features, 1, self.stride, self.unit, summed_norm, name='shortcut')(x, train)
        return self.neuron(name='lif')((y, shortcut))


def residual_stages(
    network: SpikingNetwork,
    kind: type[nn.Module],
    blocks: Sequence[int],
    widths: Sequence[int],
    x: Array,
    unit: float | None,
    train: bool,
    **fields: Any,
) -> Array:
    """Runs stages of residual blocks; the first block of each stage but the first halves the map.

    Args:
      network: whose layers they are.
      kind: class of the blocks.
      blocks: number of blocks in each stage.
      widths: channels of each stage.
      x: `[T, B, H, W, C]`.
      unit: of `x`, see `Conv.packed`.
      train: normalise by the batch instead of the running statistics.
      **fields: of the blocks.

    Returns:
      `[T, B, H', W', C']`.

    Raises:
      ValueError: `blocks` and `widths` differ in length.
    """
    if len(blocks) != len(widths):
        raise ValueError(f'blocks and widths must have one number a stage, got {blocks} and {widths}.')
    for stage, (count, features) in enumerate(zip(blocks, widths, strict=True), start=1):
        for index in range(count):
            stride = 2 if stage > 1 and index == 0 else 1
            name = f'stage{stage}_block{index + 1:02d}'
            x = network.block(kind, features, stride=stride, unit=unit, name=name, **fields)(x, train)
            unit = unit_of(network.neuron)
    return x


class ResNet(SpikingNetwork):
    """Stem, stages of residual blocks, average over the map, fully connected layers.

    Attributes:
      blocks: number of residual blocks in each stage.
      widths: channels of each stage.
      stem_width: channels of the first convolution.
      head: widths of the spiking fully connected layers before the last.
      alpha_residual: tdBN's alpha where two branches are summed.
      deep_stem: three convolutions and an average pool in the place of the first convolution, for large images: of
        half the stem's channels and stride 2, the same again, and of all its channels; then 3x3 windows at stride 2.

    Others are those of `SpikingNetwork`: `classes`, `time_steps`, `width`, `remat`, `neuron` and `norm`.
    """

    blocks: Sequence[int]
    widths: Sequence[int]
    stem_width: int = 64
    head: Sequence[int] = ()
    alpha_residual: float = 0.5**0.5
    deep_stem: bool = False

    @nn.nowrap
    def hidden(self, x: Array, time_steps: int, train: bool) -> Array:
        """Runs all layers but the last: `[T or 1, B, H, W, C]` to `[T, B, features]`."""
        stem, unit = functools.partial(self.block, ConvBlock, time_steps=time_steps), unit_of(self.neuron)
        if self.deep_stem:
            half = self.stem_width // 2
            x = stem(half, stride=2, name='stage0_stem1')(x, train)
            x = stem(half, unit=unit, name='stage0_stem2')(x, train)
            x, unit = avg_pool(stem(self.stem_width, unit=unit, name='stage0_stem3')(x, train), 3, 2), None
        else:
            x = stem(self.stem_width, name='stage0_stem')(x, train)
        fields = {'alpha_residual': self.alpha_residual}
        x = residual_stages(self, ResidualBlock, self.blocks, self.widths, x, unit, train, **fields)
        x = jnp.mean(x, axis=(2, 3))
        for index, features in enumerate(self.head, start=1):
            x = self.spiking_dense(x, features, f'stage{len(self.blocks) + 1}_fc{index}', time_steps)
        return x
