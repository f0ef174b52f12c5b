"""Layers between the spikes: time-merged convolution, dense and pooling, and tdBN.

Arrays are `[T, B, ...]`, time first. Convolution, dense and pooling have no state in time, so T is folded into
the batch and each layer is one large operation, which every device does for its own examples. A layer computes in
the dtype of its input, with float32 parameters; tdBN takes its statistics in float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from cpng_jax.nn.convolution import convolve
from cpng_jax.nn.initial import FanIn
from cpng_jax.nn.max_windows import LARGEST, max_of_windows
from cpng_jax.nn.surrogate import Array, ArrayLike, at_least_float32, of_rank
from cpng_jax.nn.terms import Affine, Normalised
from cpng_jax.nn.varying import explicit_spec, on_cpu


def merge_time(function: Callable[[Array], Array], x: Array) -> Array:
    """Applies a function of `[batch, ...]` to `[T, B, ...]` as one batch of T * B.

    Args:
      function: maps `[batch, ...]` to `[batch, ...]`, each example by itself.
      x: `[T, B, ...]`.

    Returns:
      `[T, B, ...]`.
    """
    # Devices share the examples: these must come first then, or the whole batch would be gathered on each device.
    shared = jax.device_count() > 1 or explicit_spec(x) is not None
    x = jnp.swapaxes(x, 0, 1) if shared else x
    y = function(x.reshape(-1, *x.shape[2:]))
    y = y.reshape(*x.shape[:2], *y.shape[1:])
    return jnp.swapaxes(y, 0, 1) if shared else y


class Conv(nn.Module):
    """Square convolution without bias on `[T, B, H, W, C]`, padded to keep H and W at stride 1.

    Attributes:
      features: number of output channels.
      kernel_size: odd edge of the kernel.
      stride: step in H and W.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1

    def __call__(self, x: Float[ArrayLike, 'T B H W _C']) -> Float[Array, 'T B _h _w features']:
        """Returns `[T, B, H', W', features]`."""
        return self.packed(x, unit=None)

    @nn.compact
    def packed(self, x: Float[ArrayLike, 'T B H W _C'], *, unit: float | None) -> Float[Array, 'T B _h _w features']:
        """The same convolution, whose backward pass keeps a byte for each number of its input.

        Args:
          x: `[T, B, H, W, C]`.
          unit: what `x` holds whole multiples of, 0 to 255 times: 1 for spikes and small sums of them. None keeps `x`
            as it is.

        Returns:
          `[T, B, H', W', features]`.
        """
        x = jnp.asarray(x)
        _check_rank(x, 5, '[T, B, H, W, C]', 'Conv')
        if self.kernel_size % 2 != 1:
            raise ValueError(f'Conv: kernel_size must be odd to keep H and W, got {self.kernel_size}.')
        conv = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.stride,
            padding=self.kernel_size // 2,
            use_bias=False,
            dtype=x.dtype,
            kernel_init=FanIn(2),
            # In place of XLA's convolution; the parameter is that of nn.Conv, at `conv/kernel`.
            conv_general_dilated=functools.partial(convolve, unit=unit),
            name='conv',
        )
        return merge_time(conv, x)


class Dense(nn.Module):
    """Fully connected layer on `[T, B, features]`.

    Attributes:
      features: number of outputs.
      use_bias: learn a bias for each output.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[ArrayLike, 'T B _features']) -> Float[Array, 'T B features']:
        """Returns `[T, B, features]`."""
        x = jnp.asarray(x)
        _check_rank(x, 3, '[T, B, features]', 'Dense')
        return merge_time(nn.Dense(self.features, self.use_bias, dtype=x.dtype, kernel_init=FanIn(1), name='dense'), x)


class Dropout(nn.Module):
    """Dropout of neurons, each for all time steps of an example (Rathi and Roy, 2021): one mask for all T.

    Attributes:
      rate: share of the neurons that are silenced, 0 to 1; the others are divided by what is left.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[ArrayLike, 'T B *axes'], *, train: bool) -> Float[Array, 'T B *axes']:
        """Silences neurons in training, by the random numbers `dropout`; without these it leaves `x` as it is.

        So what is measured of a network as training sees it, apart from training, is of all neurons.

        Args:
          x: `[T, B, ...]`.
          train: whether this is training.

        Returns:
          `[T, B, ...]`, in the dtype of `x`.
        """
        x = jnp.asarray(x)
        if not (train and self.rate and self.has_rng('dropout')):
            return x
        kept = jax.random.bernoulli(self.make_rng('dropout'), 1 - self.rate, x.shape[1:])
        return jnp.where(kept, x / (1 - self.rate), 0)


def avg_pool(x: Float[Array, 'T B _H _W C'], window: int, stride: int | None = None) -> Float[Array, 'T B _h _w C']:
    """Averages over square windows that do not overlap, or that are so many pixels apart.

    Args:
      x: `[T, B, H, W, C]`.
      window: edge of a window.
      stride: step from one window to the next, for an odd window: every such pixel has one about it, and the zeros
        that pad the map count. None for windows side by side.

    Returns:
      `[T, B, H // window, W // window, C]`, or `[T, B, ceil(H / stride), ceil(W / stride), C]`.

    Raises:
      ValueError: `x` has another rank, or the map is smaller than windows side by side.
    """
    _check_rank(x, 5, '[T, B, H, W, C]', 'avg_pool')
    if stride is None and min(x.shape[2:4]) < window:
        raise ValueError(f'avg_pool: a map of {x.shape[2]} x {x.shape[3]} is smaller than its window of {window}.')
    # Flax divides by an integer that has a dtype of its own, which JAX's strict promotion of dtypes refuses.
    area, step, edge = (1, window, window, 1), stride or window, 0 if stride is None else window // 2
    around = ((0, 0), (edge, edge), (edge, edge), (0, 0))
    pool = lambda y: jax.lax.reduce_window(y, 0.0, jax.lax.add, area, (1, step, step, 1), around) / window**2
    return merge_time(pool, x)


def max_pool(x: Float[Array, 'T B _H _W C'], window: int, stride: int) -> Float[Array, 'T B _h _w C']:
    """Takes the maximum over square windows, padded so that every pixel has one about it.

    Args:
      x: `[T, B, H, W, C]`.
      window: edge of a window, odd.
      stride: step from one window to the next.

    Returns:
      `[T, B, ceil(H / stride), ceil(W / stride), C]`.

    Raises:
      ValueError: `x` has another rank.
    """
    _check_rank(x, 5, '[T, B, H, W, C]', 'max_pool')
    if on_cpu(x) and window <= LARGEST:
        return merge_time(lambda y: max_of_windows(y, window, stride), x)
    padding: Any = ((window // 2, window // 2),) * 2
    return merge_time(lambda y: nn.max_pool(y, (window, window), (stride, stride), padding), x)


class TdBN(nn.Module):
    """Threshold-dependent batch normalisation (Zheng et al., 2020; Sec. 5.1).

    `scale * (alpha * v_th * (x - mean) / sqrt(variance + epsilon)) + bias` with mean and variance of each
    channel over T, the global batch, H and W, in float32; inside `jax.shard_map` over the device's own part of the
    batch. In evaluation the running statistics serve.

    Attributes:
      v_th: threshold of the neurons that follow.
      alpha: 1, or 1/sqrt(2) for each of two branches that are summed.
      momentum: share of the running statistics kept at each step.
      epsilon: added to the variance.
    """

    v_th: float = 1.0
    alpha: float = 1.0
    momentum: float = 0.9
    epsilon: float = 1e-5

    def __call__(self, x: Float[ArrayLike, 'T B *axes C'], *, train: bool) -> Float[Array, 'T B *axes C']:
        """Normalises.

        Args:
          x: `[T, B, ..., C]`.
          train: take the batch's statistics and update the running ones.

        Returns:
          `[T, B, ..., C]` in the dtype of `x`.
        """
        return self.deferred(x, train=train).array()

    @nn.compact
    def deferred(self, x: Float[ArrayLike, 'T B *axes C'], *, train: bool) -> Normalised:
        """Works the normalisation out and leaves it to `LIF` to apply it, which saves the memory of a normalised copy.

        Args:
          x: `[T, B, ..., C]`.
          train: take the batch's statistics and update the running ones.

        Returns:
          What `LIF` takes in place of an array.
        """
        x = jnp.asarray(x)
        mean, variance = RunningMoments(self.momentum, name='norm')(x, train=train)
        scale = self.param('scale', nn.initializers.ones, mean.shape, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, mean.shape, jnp.float32)
        deviation = self.alpha * self.v_th * scale
        affine = Affine(mean, jax.lax.rsqrt(variance + self.epsilon) * deviation, bias)
        return Normalised(x, affine, deviation, variance if train else None)


class Bias(nn.Module):
    """What stands where a tdBN would in a network without norms: a bias for each channel, or nothing.

    Attributes:
      learnt: the bias is there, as the parameter `bias`; otherwise nothing is added.
    """

    learnt: bool = True

    @nn.compact
    def deferred(self, x: Float[ArrayLike, 'T B *axes C'], *, train: bool) -> Normalised:
        """Leaves it to `LIF` to add the bias, as `TdBN.deferred` does.

        Args:
          x: `[T, B, ..., C]`.
          train: has no effect.

        Returns:
          What `LIF` takes in place of an array.
        """
        x = jnp.asarray(x)
        if not self.learnt:
            return Normalised(x, None)
        bias = self.param('bias', nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return Normalised(x, Affine(jnp.zeros_like(bias), jnp.ones_like(bias), bias))


class RunningMoments(nn.Module):
    """Mean and variance of each channel, and their running averages in the collection `batch_stats`.

    A module of its own, as `nn.BatchNorm` was once: `norm/mean` and `norm/var` are where checkpoints have the averages.

    Attributes:
      momentum: share of the running averages kept at each step.
    """

    momentum: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Returns mean and variance `[C]`: of `x`, `[..., C]`, in training; the running averages in evaluation."""
        channels = x.shape[-1]
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
        running_variance = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)
        if not train:
            return running_mean.value, running_variance.value
        mean, variance = moments(x)
        # init only makes variables: its example is no batch to learn from.
        if not self.is_initializing():
            for running, now in ((running_mean, mean), (running_variance, variance)):
                running.value = self.momentum * running.value + (1 - self.momentum) * now
        return mean, variance


@jax.custom_vjp
def moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel in at least float32.

    For the backward pass `x` and the mean are kept: JAX by itself would keep a float32 `x - mean` besides.

    Args:
      x: `[..., C]`.

    Returns:
      `(mean, variance)`, each `[C]`.
    """
    axes = tuple(range(x.ndim - 1))
    x = x.astype(at_least_float32(x.dtype))
    mean = jnp.mean(x, axes)
    # Not the difference of two squares, which loses digits where |mean| >> std.
    return mean, jnp.mean(jnp.square(x - of_rank(mean, x.ndim)), axes)


def _moments_forward(x: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    mean, variance = moments(x)
    return (mean, variance), (x, mean)


def _moments_backward(residuals: tuple[Array, Array], cotangents: tuple[Array, Array]) -> tuple[Array]:
    (x, mean), (d_mean, d_variance) = residuals, cotangents
    count = x.size // x.shape[-1]
    mean, d_mean, d_variance = (of_rank(value, x.ndim) for value in (mean, d_mean, d_variance))
    return ((d_mean / count + (x.astype(mean.dtype) - mean) * (2 / count * d_variance)).astype(x.dtype),)


moments.defvjp(_moments_forward, _moments_backward)


def _check_rank(x: Array, rank: int, layout: str, layer: str) -> None:
    if x.ndim != rank:
        raise ValueError(f'{layer} takes {layout}, got an array of shape {x.shape}.')
