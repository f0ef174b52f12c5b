"""What XLA on a CPU is told of the order of things: it computes last what nothing waits for, and keeps what that needs.

Measurements are such a thing: until the end of a training step the potentials of all layers would stay in memory for
them, long out of the caches. XLA takes no orders, but it computes a call that it was told not to inline as a whole,
once all that goes in is there. On other devices, which have schedulers of their own, nothing is changed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from cpng_jax.nn.surrogate import Array
from cpng_jax.nn.varying import on_cpu

_Given = ParamSpec('_Given')
Tree = TypeVar('Tree')


def apart(function: Callable[_Given, Tree], static: Sequence[int] = ()) -> Callable[_Given, Tree]:
    """Makes a function that is computed apart from all else, at once, from arrays to arrays, where one CPU does all.

    By itself, XLA computes what it holds to be cheap again wherever it is needed, and keeps what that needs: of a
    convolution what its result was transposed from, and the floats that its bytes were made of. And it computes once
    what two passes compute alike, and keeps that in between. It does neither across the bounds of a call.

    Args:
      function: takes pytrees of arrays, by position; gives a pytree of arrays. It is traced, lowered and, by its
        kernels, compiled once for all calls that are alike.
      static: places of arguments that are hashable, and not arrays.

    Returns:
      The function.
    """

    @functools.wraps(function)
    def inside(*args: _Given.args, **kwargs: _Given.kwargs) -> Tree:
        with set_xla_metadata(inlineable='true'):  # Or what it calls would inherit the word.
            return function(*args, **kwargs)

    compiled = jax.jit(inside, static_argnums=tuple(static))

    @functools.wraps(function)
    def run(*args: _Given.args, **kwargs: _Given.kwargs) -> Tree:
        arrays = [arg for place, arg in enumerate(args) if place not in static]
        if not all(map(on_one_cpu, jax.tree.leaves(arrays))):
            return function(*args, **kwargs)
        with set_xla_metadata(inlineable='false'):
            return compiled(*args, **kwargs)

    return run


def after(x: Tree, done: Any) -> Tree:
    """Hands arrays on once something else has been computed, where one CPU does all.

    Args:
      x: pytree of arrays.
      done: pytree of arrays.

    Returns:
      `x`.
    """
    # Where more than that computes, not even the barrier is wanted.
    if not jax.tree.leaves(done) or not all(map(on_one_cpu, jax.tree.leaves((x, done)))):
        return x
    return _after(x, lax.stop_gradient(done))


@apart
def _after(x: Tree, done: Any) -> Tree:
    # XLA drops the barrier, but not before it has looked for what a call does not need.
    return lax.optimization_barrier((x, done))[0]


def afresh(x: Array) -> Array:
    """Hands an array on as another one: to XLA, what is computed from it again is not what was computed before.

    Args:
      x: the input of what a backward pass computes again, any dtype.

    Returns:
      `x`.
    """
    if not on_one_cpu(x):
        return x
    # Of calls that are alike XLA makes one. A branch stays as it is, since XLA cannot tell that it is never taken.
    first = lax.slice(x, (0,) * x.ndim, (1,) * x.ndim).reshape(()).astype(jnp.float32)
    return lax.cond(lax.tanh(lax.stop_gradient(first)) < -jnp.inf, jnp.zeros_like, lambda x: x, x)


def on_one_cpu(array: Array) -> bool:
    """Whether there is one CPU and nothing else: devices that share a batch would have to wait for each other."""
    return on_cpu(array) and jax.device_count() == 1
