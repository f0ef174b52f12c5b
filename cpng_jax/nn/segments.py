"""A loop over time for XLA:CPU, a few steps at a time: what `jax.lax.scan` computes, without its copies.

A scan that lays steps out stacks what some of them give and copies that to its place; one that does not goes through
the memory once more for each step. Here each step reads and writes its part of the whole arrays, and what is kept of
each segment, such as a state to begin it again from, is one array for all of its steps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cpng_jax.nn.varying import varying_alike

# Takes the carry, inputs of each of its steps and of the segment; gives the next carry, and outputs of the same.
Segment = Callable[[Any, list[Any], Any], tuple[Any, list[Any], Any]]


def length(time_steps: int) -> int:
    """How many steps a segment has, which has to divide T: few, since XLA makes one large loop of them all."""
    return next((steps for steps in (2, 3, 5) if time_steps % steps == 0), 1)


def scan(
    segment: Segment, carry: Any, steps: Any, of_segments: Any = None, *, time_steps: int, reverse: bool = False
) -> tuple[Any, Any, Any]:
    """Runs a function over all segments.

    Args:
      segment: the function; what it gives of steps and of segments has the same shapes each time.
      carry: pytree of arrays to begin with.
      steps: pytree of arrays `[T, ...]`, the inputs of each step.
      of_segments: pytree of arrays `[T / length, ...]`, inputs of each segment.
      time_steps: T.
      reverse: begin with the last segment. Within a segment, the function has the order of the steps in its hand.

    Returns:
      The last carry, the outputs of all steps, `[T, ...]`, and of all segments, `[T / length, ...]`.
    """
    many = length(time_steps)
    count = time_steps // many

    def run(carry: Any, i: Any) -> tuple[Any, list[Any], Any]:
        return segment(carry, [_at(steps, many * i + j) for j in range(many)], _at(of_segments, i))

    _, of_step, of_segment = jax.eval_shape(run, carry, 0)
    room_for = lambda like, count: jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), like)

    def body(i: Any, state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        carry, outputs, others = state
        i = count - 1 - i if reverse else i
        carry, given, other = run(carry, i)
        for j, output in enumerate(given):
            outputs = _put(outputs, output, many * i + j)
        return varying_alike((carry, outputs, _put(others, other, i)))

    start = varying_alike((carry, room_for(of_step[0], time_steps), room_for(of_segment, count), steps))
    return lax.fori_loop(0, count, body, start[:3])


def _at(tree: Any, i: Any) -> Any:
    return jax.tree.map(lambda array: lax.dynamic_index_in_dim(array, i, keepdims=False), tree)


def _put(arrays: Any, values: Any, i: Any) -> Any:
    return jax.tree.map(lambda array, value: lax.dynamic_update_index_in_dim(array, value, i, 0), arrays, values)
