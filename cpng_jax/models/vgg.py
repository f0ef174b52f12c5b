"""Spiking VGG of any depth and width."""

from collections.abc import Sequence

from flax import linen as nn

from cpng_jax.models.blocks import ConvBlock
from cpng_jax.models.network import SpikingNetwork
from cpng_jax.nn.layers import avg_pool
from cpng_jax.nn.surrogate import Array


class VGG(SpikingNetwork):
    """Spiking VGG: stages of 3x3 convolutions with average pools between, then fully connected layers.

    Attributes:
      stages: for each stage, the channels of its convolutions.
      head: widths of the spiking fully connected layers before the last.
      pool_last: also pool after the last stage.

    Others are those of `SpikingNetwork`: `classes`, `time_steps`, `width`, `remat`, `neuron` and `norm`.
    """

    stages: Sequence[Sequence[int]]
    head: Sequence[int] = ()
    pool_last: bool = False

    @nn.nowrap
    def hidden(self, x: Array, time_steps: int, train: bool) -> Array:
        """Runs all layers but the last: `[T or 1, B, H, W, C]` to `[T, B, features]`."""
        layer, unit = 0, None  # of images; then spikes, and averages of four
        for index, widths in enumerate(self.stages):
            for features in widths:
                layer += 1
                block = self.block(ConvBlock, features, time_steps=time_steps, unit=unit, name=f'conv{layer:02d}')
                x, unit = block(x, train), 1.0
            if index + 1 < len(self.stages) or self.pool_last:
                x, unit = avg_pool(x, 2), 1 / 4
        x = x.reshape(*x.shape[:2], -1)
        for features in self.head:
            layer += 1
            x = self.spiking_dense(x, features, f'fc{layer:02d}')
        return x
