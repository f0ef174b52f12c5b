"""What XLA on a CPU is told of the order of things: it computes last what nothing waits for, and keeps what that needs.

Measurements are such a thing: until the end of a training step the potentials of all layers would stay in memory for
them, long out of the caches. XLA takes no orders, but it sees to data dependencies, and not through those made here.
On other devices, which have schedulers of their own, nothing is changed.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from cpng_jax.nn.surrogate import Array
from cpng_jax.nn.varying import on_cpu, varying_alike

Tree = TypeVar('Tree')


def after(x: Tree, done: Any) -> Tree:
    """Hands arrays on once something else has been computed, where one CPU does all.

    To XLA, what is computed from them is no longer the same as what was computed from `x`, and so not kept from there.

    Args:
      x: pytree of arrays.
      done: pytree of arrays. XLA has to compute them as a whole where it holds that to be expensive, as sums and
        products are; of others one number is enough.

    Returns:
      `x`.
    """
    if not all(map(on_one_cpu, jax.tree.leaves((x, done)))) or not jax.tree.leaves(done):
        return x
    return _unless(_never(done), x)


@jax.custom_vjp
def _unless(never: Array, x: Tree) -> Tree:
    """Returns `x`. Its gradient is handed back as it is, where JAX would keep what it selects from."""
    return jax.tree.map(lambda leaf: lax.select(never, lax.full_like(leaf, 0), leaf), x)


_unless.defvjp(lambda never, x: (_unless(never, x), None), lambda _, d_x: (None, d_x))


def apart(function: Callable[..., Tree], *operands: Array) -> Tree:
    """Computes a function apart from all else, once, from arrays to arrays, where one CPU does all.

    By itself, XLA computes what it holds to be cheap again wherever it is needed, and keeps what that needs: of a
    convolution what its result was transposed from, and the floats that its bytes were made of.

    Args:
      function: takes the operands; gives a pytree of arrays.
      operands: arrays, of which the last one is there early.

    Returns:
      What the function gives.
    """
    # Outside of jit all is computed as it comes, and a branch would be compiled anew at each call.
    traced = any(isinstance(operand, Tracer) for operand in operands)
    if not traced or not all(map(on_one_cpu, operands)):
        return function(*operands)
    function = jax.jit(function, inline=True)  # Which is traced once.
    shapes = jax.eval_shape(function, *operands)
    zeros = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    nothing = lambda *operands: varying_alike((zeros(), operands))[0]
    return lax.cond(_never(operands[-1]), nothing, function, *operands)


def on_one_cpu(array: Array) -> bool:
    """Whether there is one CPU and nothing else: devices that share a batch would have to wait for each other."""
    return on_cpu(array) and jax.device_count() == 1


def room(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, needed: Any) -> Array:
    """Zeros for a loop to write into. XLA would share those of a constant among all loops, and copy them for each.

    Args:
      shape: of the array.
      dtype: of the array.
      needed: pytree of floating arrays that the loop needs, before which the zeros need not be there.

    Returns:
      Zeros.
    """
    return jnp.broadcast_to(_never(needed).astype(dtype), shape)


def _never(values: Any) -> Array:
    """False, which XLA finds out by computing the values."""
    # In the words of lax, which traces them faster than those of numpy.
    of_array = lambda leaf: lax.squeeze(lax.slice(leaf, (0,) * leaf.ndim, (1,) * leaf.ndim), range(leaf.ndim))
    first = [
        lax.convert_element_type(of_array(leaf), jnp.float32) for leaf in jax.tree.leaves(lax.stop_gradient(values))
    ]
    # tanh, since XLA holds that to be too expensive to be computed anew for each number that depends on it.
    return lax.tanh(functools.reduce(lax.add, first)) < -jnp.inf
