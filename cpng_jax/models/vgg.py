"""Spiking VGG of any depth and width."""

from collections.abc import Callable, Sequence

from flax import linen as nn

from cpng_jax.models.blocks import ConvBlock, rematerialised, scaled, time_first
from cpng_jax.nn.layers import Dense, TdBN, avg_pool
from cpng_jax.nn.neuron import LIF
from cpng_jax.nn.surrogate import Array


class VGG(nn.Module):
    """Spiking VGG: stages of 3x3 convolutions with average pools between, then fully connected layers.

    The last layer is linear, without neurons (Eq. 5). Layers are named in the order of their depth, so that
    the layers of the collections `surrogate` and `membrane` are sorted by depth.

    Attributes:
      classes: number of outputs.
      stages: for each stage, the channels of its convolutions.
      head: widths of the spiking fully connected layers before the last.
      time_steps: T for static images.
      pool_last: also pool after the last stage.
      width: factor on all channels and on the head.
      remat: what the backward pass computes again to need less memory: 'none' or 'block', see `blocks.REMATS`.
      neuron: makes each `LIF`, for example `functools.partial(LIF, surrogate='arctan')`.
      norm: makes each `TdBN`.
    """

    classes: int
    stages: Sequence[Sequence[int]]
    head: Sequence[int] = ()
    time_steps: int = 4
    pool_last: bool = False
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
          ValueError: `x` has another rank, or its map is too small for the pools.
        """
        x, time_steps = time_first(x, 'VGG', self.time_steps)
        layer, unit = 0, None  # of images; then spikes, and averages of four
        for index, widths in enumerate(self.stages):
            for features in widths:
                layer += 1
                channels = scaled(features, self.width)
                block = rematerialised(ConvBlock, self.remat)(
                    channels, time_steps, unit=unit, neuron=self.neuron, norm=self.norm, name=f'conv{layer:02d}'
                )
                x, unit = block(x, train), 1.0
            if index + 1 < len(self.stages) or self.pool_last:
                x, unit = avg_pool(x, 2), 1 / 4
        x = x.reshape(*x.shape[:2], -1)
        for features in self.head:
            layer += 1
            x = Dense(scaled(features, self.width), name=f'fc{layer:02d}')(x)
            x = self.neuron(name=f'fc{layer:02d}_lif')(x)
        return Dense(self.classes, name='output')(x)
