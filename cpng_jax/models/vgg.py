"""Spiking VGG of any depth and width, down to fully connected layers alone."""

from collections.abc import Sequence

from flax import linen as nn

from cpng_jax.models.blocks import ConvBlock, unit_of
from cpng_jax.models.network import SpikingNetwork
from cpng_jax.nn.layers import Dropout, avg_pool
from cpng_jax.nn.surrogate import Array


class VGG(SpikingNetwork):
    """Spiking VGG: stages of convolutions with average pools between, then fully connected layers.

    Attributes:
      stages: for each stage, the channels of its convolutions; () for a network of fully connected layers.
      head: widths of the spiking fully connected layers before the last.
      pool_last: also pool after the last stage.
      kernel_size: edge of the convolutions, odd.
      head_norm: normalise the currents of the head as those of the convolutions.
      dropout: share of the neurons of each convolution that training silences, where no pool follows.
      head_dropout: the same of the layers of the head.

    Others are those of `SpikingNetwork`: `classes`, `time_steps`, `width`, `remat`, `bias`, `neuron` and `norm`.
    """

    stages: Sequence[Sequence[int]]
    head: Sequence[int] = ()
    pool_last: bool = False
    kernel_size: int = 3
    head_norm: bool = False
    dropout: float = 0.0
    head_dropout: float = 0.0

    @nn.nowrap
    def hidden(self, x: Array, time_steps: int, train: bool) -> Array:
        """Runs all layers but the last: `[T or 1, B, H, W, C]` to `[T, B, features]`."""
        if not self.stages and not self.head:
            raise ValueError('VGG needs a spiking layer, got stages=() and head=().')
        layer, unit, answers = 0, None, unit_of(self.neuron)  # of images; then of spikes, and averages of four
        for index, widths in enumerate(self.stages):
            pooled = index + 1 < len(self.stages) or self.pool_last
            for place, features in enumerate(widths, 1):
                layer += 1
                convolution = {'time_steps': time_steps, 'kernel_size': self.kernel_size, 'unit': unit}
                x, unit = self.block(ConvBlock, features, **convolution, name=f'conv{layer:02d}')(x, train), answers
                if self.dropout and not (pooled and place == len(widths)):
                    # Divided by what is left, they may be no whole multiples of a unit any more.
                    x, unit = Dropout(self.dropout, name=f'dropout{layer:02d}')(x, train=train), None
            if pooled:
                x, unit = avg_pool(x, 2), None if answers is None else answers / 4
        x = x.reshape(*x.shape[:2], -1)
        for features in self.head:
            layer += 1
            x = self.spiking_dense(x, features, f'fc{layer:02d}', time_steps, train=train if self.head_norm else None)
            if self.head_dropout:
                x = Dropout(self.head_dropout, name=f'dropout{layer:02d}')(x, train=train)
        return x
