"""The loss around given weights, along random directions with filter-wise normalisation: any loss of any weights.

Li et al. (2017), "Visualizing the loss landscape of neural nets", arXiv:1712.09913, Sec. 4.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cpng_jax.nn.surrogate import Array

PyTree = Any


def random_directions(params: PyTree, key: Array, count: int = 2) -> list[PyTree]:
    """Draws random directions whose filters have the norms of the filters of the weights.

    A filter is the weights of one output channel or neuron: all axes of a kernel but the last. Directions of biases and
    of the parameters of norms, which have a single axis, are 0.

    Args:
      params: weights, `[..., outputs]`.
      key: of the directions; each is drawn from a normal distribution before it is scaled.
      count: how many.

    Returns:
      Pytrees like `params`.
    """
    return [_direction(params, key) for key in jax.random.split(key, count)]


@jax.jit  # One program: each operation on each shape would be compiled by itself.
def _direction(params: PyTree, key: Array) -> PyTree:
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(structure, [_like(leaf, key) for leaf, key in zip(leaves, keys, strict=False)])


def _like(weights: Array, key: Array) -> Array:
    """A random array whose filters have the norms of those of `weights`."""
    if weights.ndim < 2:
        return jnp.zeros_like(weights)
    random = jax.random.normal(key, weights.shape, weights.dtype)
    return random * (_norms(weights) / _norms(random))


def _norms(weights: Array) -> Array:
    return jnp.linalg.norm(weights.reshape(-1, weights.shape[-1]), axis=0)


@jax.jit
def moved(params: PyTree, directions: Sequence[PyTree], point: Array) -> PyTree:
    """Moves weights along directions.

    Args:
      params: weights.
      directions: K pytrees like `params`.
      point: distance along each direction, `[K]`.

    Returns:
      The moved weights.
    """

    def add(weights: Array, *ways: Array) -> Array:
        return weights + sum(far * way for far, way in zip(point, ways, strict=True))

    return jax.tree.map(add, params, *directions)


def losses_at(
    loss: Callable[[PyTree], float | Array], params: PyTree, directions: Sequence[PyTree], points: np.ndarray
) -> np.ndarray:
    """Measures the loss at points of the space that directions span around the weights.

    Points are arguments of compiled functions, so that none is compiled anew; `loss` should be jitted.

    Args:
      loss: maps weights to a scalar.
      params: the weights in the centre.
      directions: K pytrees like `params`, from `random_directions`.
      points: distances along the directions, `[N, K]`.

    Returns:
      The losses, float64 `[N]`.

    Raises:
      ValueError: `points` has another shape.
    """
    points = np.asarray(points, np.float32)
    if points.ndim != 2 or points.shape[1] != len(directions):
        raise ValueError(f'points must be [N, {len(directions)}], one number a direction, got shape {points.shape}.')
    # One after the other: each is a whole evaluation, large enough to fill the device.
    return np.array([float(loss(moved(params, list(directions), jnp.asarray(point)))) for point in points])


def lines(radius: float, count: int, directions: int) -> np.ndarray:
    """Makes the coordinates of points on a line along each direction.

    Args:
      radius: of the farthest points.
      count: points on each line, odd, so that the centre is one of them.
      directions: K.

    Returns:
      `[K * count, K]`, line by line.

    Raises:
      ValueError: `count` is even or below 3, or `radius` is not above 0.
    """
    return np.kron(np.eye(directions), steps(radius, count)[:, None])


def plane(radius: float, count: int) -> np.ndarray:
    """Makes the coordinates of a square grid in the plane of two directions.

    Args:
      radius: from the centre to a side.
      count: points on a side, odd, so that the centre is one of them.

    Returns:
      `[count * count, 2]`, the second coordinate changing fastest.

    Raises:
      ValueError: `count` is even or below 3, or `radius` is not above 0.
    """
    side = steps(radius, count)
    return np.stack(np.meshgrid(side, side, indexing='ij'), axis=-1).reshape(-1, 2)


def steps(radius: float, count: int) -> np.ndarray:
    """Makes evenly spaced distances from `-radius` to `radius`.

    Args:
      radius: of the farthest points.
      count: points, odd, so that the centre is one of them.

    Returns:
      `[count]`.

    Raises:
      ValueError: `count` is even or below 3, or `radius` is not above 0.
    """
    if count < 3 or count % 2 == 0:
        raise ValueError(f'count must be odd and at least 3, got {count}.')
    if not radius > 0:
        raise ValueError(f'radius must be above 0, got {radius}.')
    # Of integers, so that it is exactly symmetric, and exactly 0 in the middle, unlike linspace.
    return radius * np.arange(-(count // 2), count // 2 + 1) / (count // 2)


def sharpness(points: np.ndarray, losses: np.ndarray, radius: float) -> float:
    """Measures the mean increase of the loss over the points within a distance of the centre.

    Where the loss is a quadratic form with second derivative k in each direction, that is k / 2 times the mean square
    of the distance.

    Args:
      points: `[N, K]`, with the centre among them.
      losses: at the points, `[N]`.
      radius: the largest distance that counts.

    Returns:
      The mean increase, in the unit of the losses; negative where the centre is not a minimum.

    Raises:
      ValueError: the centre, or any other point within `radius`, is missing.
    """
    distance = np.linalg.norm(points, axis=1)
    centre = distance == 0
    near = (distance <= radius * (1 + 1e-6)) & ~centre
    if not centre.any() or not near.any():
        raise ValueError(f'points must have the centre and others within {radius} of it, got {len(points)} points.')
    return float(np.mean(losses[near]) - np.mean(losses[centre]))
