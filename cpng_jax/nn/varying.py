"""What the types of arrays say of devices: inside `jax.shard_map` which axes of the mesh an array varies over, on
explicit axes how it is shared out over them."""

from typing import TypeVar

import jax

Tree = TypeVar('Tree')


def varying_alike(tree: Tree) -> Tree:
    """Lets all arrays vary over the axes that any of them varies over; outside of `jax.shard_map` nothing changes.

    A `custom_vjp` asks for it: of an argument that is the same on all devices, such as weights, its backward pass would
    have to sum the gradient over them. JAX does that sum when it differentiates this.

    Args:
      tree: pytree of arrays.

    Returns:
      The same, of one type.
    """
    axes = frozenset[str]().union(*map(_varying, jax.tree.leaves(tree)))

    def cast(leaf: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - _varying(leaf)))
        return jax.lax.pcast(leaf, missing, to='varying') if missing else leaf

    return jax.tree.map(cast, tree) if axes else tree


def _varying(array: jax.Array) -> frozenset[str]:
    """The axes of the mesh that an array varies over."""
    kind = jax.typeof(array)
    # Versions of JAX differ in where they keep it.
    return getattr(kind, 'vma', None) or getattr(getattr(kind, 'mat', None), 'varying', None) or frozenset()


def explicit_spec(array: jax.Array) -> jax.sharding.PartitionSpec | None:
    """How an array is shared out over explicit axes of a mesh; None where it is not, or where that is left to XLA."""
    spec = jax.typeof(array).sharding.spec
    return spec if any(axis is not None for axis in spec) else None


def on_cpu(array: jax.Array) -> bool:
    """Whether a CPU computes it, and JAX takes it apart just anyhow, as it does not on explicit axes of a mesh."""
    return jax.default_backend() == 'cpu' and explicit_spec(array) is None
