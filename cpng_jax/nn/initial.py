"""Initial weights: those of `jax.random`, drawn for all layers of a network in one program.

XLA takes a fifth of a second to compile the random numbers of one shape, for networks of full depth as long as a whole
training step. What is drawn depends on a layer's key and on the place in its array alone, so that one program can draw
blocks of any layer: `drawn_at_once` gives the very weights that `model.init` gives.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.extend.random import threefry_2x32

from cpng_jax.nn.surrogate import Array

# Numbers of a block; the last one of a layer is drawn whole and cut off.
_BLOCK = 4096
# Normal deviates beyond this many standard deviations are drawn again, and what that leaves of the deviation.
_CUT, _DEVIATION = np.float32(2), np.float32(0.87962566103423978)

_RECIPES = contextvars.ContextVar('recipes', default=False)


@dataclasses.dataclass(frozen=True)
class FanIn:
    """Initialiser with truncated normal numbers of variance `gain / fan_in`, as of `nn.initializers.variance_scaling`.

    Attributes:
      gain: 2 is He's, for units that pass half of the variance on; 1 is LeCun's.
    """

    gain: float

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        """Draws weights, or inside `drawn_at_once` says what they are drawn from.

        Args:
          key: of this layer.
          shape: `[..., inputs, outputs]`.
          dtype: of the weights.

        Returns:
          The weights; or uint32 of that shape, key and standard deviation again and again.
        """
        if not (_RECIPES.get() and _known(key) and dtype == jnp.float32 and math.prod(shape) >= 3):
            draw = nn.initializers.variance_scaling(self.gain, 'fan_in', 'truncated_normal')
            return draw(key, shape, dtype)
        deviation = np.sqrt(np.float32(self.gain / math.prod(shape[:-1]))) / _DEVIATION
        words = jnp.concatenate([jax.random.key_data(key), jnp.asarray([deviation.view(np.uint32)])])
        return jnp.resize(words, shape)


def _known(key: Array) -> bool:
    """Whether a key is of the kind whose numbers are known by their place: JAX's default."""
    return getattr(jax.config, 'jax_threefry_partitionable', False) and jax.random.key_impl(key) == 'threefry2x32'


def drawn_at_once(init: Callable[..., Any], *arguments: Any) -> Any:
    """Runs `model.init`, with all weights of `FanIn` drawn by one program.

    Args:
      init: to be traced; what it returns may hold arrays of uint32 of such weights alone.
      *arguments: of it.

    Returns:
      What `init` returns.
    """
    with _recipes():
        leaves, tree = jax.tree.flatten(init(*arguments))
    drawn = [i for i, leaf in enumerate(leaves) if leaf.dtype == jnp.uint32]
    if drawn:
        words = jnp.stack([leaves[i].reshape(-1)[:3] for i in drawn])
        blocks = [-(-leaves[i].size // _BLOCK) for i in drawn]
        layer = np.repeat(np.arange(len(drawn)), blocks)
        start = np.concatenate([_BLOCK * np.arange(count, dtype=np.uint32) for count in blocks])
        numbers, ends = jax.vmap(_block)(words[layer], jnp.asarray(start)), np.cumsum(blocks)
        for i, count, end in zip(drawn, blocks, ends, strict=True):
            flat = numbers[end - count : end].reshape(-1)
            leaves[i] = flat[: leaves[i].size].reshape(leaves[i].shape)
    return jax.tree.unflatten(tree, leaves)


@contextlib.contextmanager
def _recipes() -> Iterator[None]:
    token = _RECIPES.set(True)
    try:
        yield
    finally:
        _RECIPES.reset(token)


def _block(words: Array, start: Array) -> Array:
    """The numbers of a layer from a place on, as `jax.random.truncated_normal` makes them from its random bits."""
    place = start + jnp.arange(_BLOCK, dtype=jnp.uint32)
    # Of a place, 64 bits, the high half is 0: no layer has 2^32 weights.
    high, low = jnp.split(threefry_2x32(words[:2], jnp.concatenate([jnp.zeros_like(place), place])), 2)
    mantissa = jax.lax.shift_right_logical(high ^ low, jnp.uint32(9)) | jnp.float32(1).view(jnp.uint32)
    share = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1
    half = np.sqrt(np.float32(2))
    most = jax.lax.erf(_CUT / half)
    uniform = jnp.maximum(-most, share * (most - -most) + -most)
    inside = np.nextafter(_CUT, np.float32(0))
    normal = jnp.clip(half * jax.lax.erf_inv(uniform), -inside, inside)
    return normal * jax.lax.bitcast_convert_type(words[2], jnp.float32)
