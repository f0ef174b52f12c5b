"""Pytrees with a leaf for each layer, as beta is laid out: the layers' names, and all of them in one vector."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import DictKey

from cpng_jax.nn.statistics import MembraneDistances, MembraneStats, Stats, is_stats
from cpng_jax.nn.surrogate import Array

PyTree = Any


def leaf_name(path: Any) -> str:
    """Writes the path of a leaf: conv01/lif/beta."""
    return jax.tree_util.keystr(path, simple=True, separator='/') or '(the only one)'


def layer_name(path: str) -> str:
    """Names a layer after the path of its beta: conv01/lif for conv01/lif/beta."""
    return path.removesuffix('/beta')


def layer_paths(tree: PyTree) -> list[str]:
    """Names the layers of a pytree laid out like `surrogate`, by path: conv01/lif for conv01/lif/beta."""
    return [layer_name(leaf_name(path)) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def by_layer(tree: PyTree) -> dict[str, float]:
    """Flattens a pytree laid out like `surrogate` to a number for each layer, by the layer's path, in its order.

    The number of a layer with channels is the mean of those that are finite: some may never have fired, say.
    """
    leaves = map(np.asarray, jax.tree.leaves(jax.device_get(tree)))
    finite = lambda leaf: leaf[np.isfinite(leaf)] if np.isfinite(leaf).any() else leaf
    return {name: float(np.mean(finite(leaf))) for name, leaf in zip(layer_paths(tree), leaves, strict=True)}


def leaves_where(tree: PyTree) -> list[str]:
    """Names the leaves of a pytree of booleans that are True, in whole or in part; on the host only."""
    return [leaf_name(path) for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf.any()]


def like_beta(measured: PyTree, beta: PyTree) -> PyTree:
    """Puts what layers have measured in the place of their betas, so that `jax.tree.map` pairs the two.

    Args:
      measured: a collection that `LIF` layers have written, such as `membrane`, whose leaves have the name of the
        collection where those of beta have the name `beta`; what is laid out like beta is returned as it is.
      beta: pytree of arrays, one leaf per layer; or another such collection, whose layout is wanted.

    Returns:
      The leaves of `measured`, `MembraneStats` for example, in the layout of `beta`.

    Raises:
      ValueError: they are of other layers.
    """
    expected = jax.tree.structure(beta)
    if jax.tree.structure(measured, is_leaf=is_stats) == expected:
        return measured
    found = jax.tree_util.tree_leaves_with_path(measured, is_leaf=is_stats)
    by_parent = {path[:-1]: leaf for path, leaf in found if path and isinstance(path[-1], DictKey)}
    parents = [path[:-1] for path, _ in jax.tree_util.tree_leaves_with_path(beta)]
    if not len(found) == len(by_parent) == len(parents) or by_parent.keys() != set(parents):
        raise _other_layers('stats', measured, beta)
    return jax.tree.unflatten(expected, [by_parent[parent] for parent in parents])


def floating(leaf: Any) -> Array:
    """Makes a leaf a floating array; one that is already keeps its dtype."""
    array = jnp.asarray(leaf)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.float32)


def vector(name: str, tree: PyTree, beta: PyTree) -> Array:
    """Puts the leaves of a pytree into one vector, once it has been checked against beta.

    Args:
      name: what messages call the tree.
      tree: arrays, one leaf per layer.
      beta: what it must have the layers and the shapes of.

    Returns:
      `[N]`, floating, layer after layer.

    Raises:
      ValueError: the layers, or the shape of one of them, are others.
    """
    if jax.tree.structure(tree) != jax.tree.structure(beta):
        raise _other_layers(name, tree, beta)
    for (path, leaf), twin in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(beta), strict=True):
        if jnp.shape(leaf) != jnp.shape(twin):
            layer = leaf_name(path)
            raise ValueError(f'{name} of layer {layer} has shape {jnp.shape(leaf)}, its beta {jnp.shape(twin)}.')
    return ravel_pytree(jax.tree.map(floating, tree))[0]


def like(beta: PyTree, values: Array) -> PyTree:
    """Lays a vector out over layers again, the inverse of `vector`.

    Args:
      beta: pytree of arrays, one leaf per layer.
      values: `[N]`, layer after layer.

    Returns:
      The layers and shapes of `beta`, in the dtype of `values`.
    """
    leaves, structure = jax.tree.flatten(beta)
    ends = list(itertools.accumulate(jnp.size(leaf) for leaf in leaves))
    parts = [values[end - jnp.size(leaf) : end] for leaf, end in zip(leaves, ends, strict=True)]
    shaped = [part.reshape(jnp.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def stats_vector(stats: PyTree, beta: PyTree) -> Stats:
    """Puts the statistics of all layers into one, with an element for each beta.

    Args:
      stats: pytree with a `MembraneStats` for each leaf of beta, of its shape; or a `MembraneDistances` for each; as
        `like_beta` takes it.
      beta: pytree of arrays, one leaf per layer.

    Returns:
      A `MembraneStats` of `[N]`, or a `MembraneDistances` of `[N, K]`.

    Raises:
      ValueError: `stats` has something else, or other layers or shapes.
    """
    leaves = jax.tree.leaves(stats, is_leaf=is_stats)
    kind = MembraneDistances if leaves and isinstance(leaves[0], MembraneDistances) else MembraneStats
    for leaf in leaves:
        if not isinstance(leaf, kind):
            raise ValueError(f'stats must have a cpng_jax.{kind.__name__} for each beta, found {type(leaf).__name__}.')
    stats = like_beta(stats, beta)
    leaves = jax.tree.leaves(stats, is_leaf=is_stats)
    field = lambda of: vector('stats', jax.tree.map(of, stats, is_leaf=is_stats), beta)
    if kind is MembraneStats:
        return MembraneStats(field(lambda leaf: leaf.mean), field(lambda leaf: leaf.variance))
    field(lambda leaf: leaf.shares[..., 0])  # checks the layers and their shapes
    return MembraneDistances(jnp.concatenate([leaf.shares.reshape(-1, leaf.shares.shape[-1]) for leaf in leaves]))


def _other_layers(name: str, tree: PyTree, beta: PyTree) -> ValueError:
    """The error for a pytree that has not the layers of beta."""
    here, there = _listed(tree), _listed(beta)
    if here == there:  # The containers differ, a list and a tuple, say.
        here, there = (str(jax.tree.structure(each, is_leaf=is_stats)) for each in (tree, beta))
    return ValueError(f'{name} must have the layers of beta, {there}, got {here}.')


def _listed(tree: PyTree) -> str:
    named = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_stats)
    return '{' + ', '.join(leaf_name(path) for path, _ in named) + '}'
