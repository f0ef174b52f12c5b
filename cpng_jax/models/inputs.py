"""From images as data sets have them to what networks take."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from cpng_jax.nn.surrogate import Array

Statistics = np.ndarray | Sequence[float]


def network_input(
    images: UInt8[Array | np.ndarray, 'B H W C'] | UInt8[Array | np.ndarray, 'B T H W C'],
    mean: Statistics,
    std: Statistics,
    dtype: str = 'float32',
) -> Float[Array, 'B H W C'] | Float[Array, 'T B H W C']:
    """Brings a batch into the form that networks take, each channel to zero mean and unit variance (A.1).

    Args:
      images: uint8, static `[B, H, W, C]` or frames of events `[B, T, H, W, C]`.
      mean: of the training images by channel, in units of 0 to 1.
      std: standard deviation of the training images by channel, in the same units.
      dtype: that the network computes in.

    Returns:
      `[B, H, W, C]` or `[T, B, H, W, C]`.
    """
    mean, std = (np.asarray(value, np.float32).reshape((1,) * (images.ndim - 1) + (-1,)) for value in (mean, std))
    scaled = jnp.asarray((images.astype(jnp.float32) / 255 - mean) / std, dtype)
    return jnp.moveaxis(scaled, 1, 0) if images.ndim == 5 else scaled
