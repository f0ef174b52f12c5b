"""Bytes that an image leaves behind for the backward pass, by network, T and `config.remat`: counted, not measured.

    python -m benchmarks.memory
    python -m benchmarks.memory --dtype=bfloat16

What is counted are the residuals of the training loss as differentiation records them, the arrays that `jax.vjp` hands
from the forward to the backward pass. Shapes alone are worked out, so nothing is computed. What does not grow with the
batch, above all the parameters, is left out. A compiler may keep less, where it computes something cheap again, and
needs room besides for what it works on.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import linen as nn

from configs import cifar100_vgg16, imagenet_sew_resnet34
from cpng_jax import data
from cpng_jax.models import registry
from cpng_jax.models.blocks import REMATS
from cpng_jax.nn.losses import mean_output_cross_entropy
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime import command
from cpng_jax.runtime.config import Config

NETWORKS = {'VGG16, CIFAR': cifar100_vgg16, 'SEW-ResNet34, ImageNet': imagenet_sew_resnet34}
TIME_STEPS = (1, 2, 4, 8, 16)

# What a training step has written besides the outputs.
_STATISTICS = ['batch_stats', 'membrane', 'firing_rate']

Shape = jax.ShapeDtypeStruct
Loss = Callable[[Array], Array]


def network(config: Config) -> tuple[nn.Module, Shape]:
    """Builds the network of a configuration of static images, and tells what an image looks like to it.

    Args:
      config: a valid configuration; its data set need not be there.

    Returns:
      The module and the shape `[1, H, W, C]` in `config.dtype`.
    """
    shape, classes = data.kind_of(config.data)
    return registry.build(config, classes), Shape((1, *shape), jnp.dtype(config.dtype))


def variables_of(model: nn.Module, image: Shape) -> dict[str, Any]:
    """Works out the shapes of a network's variables; they depend neither on T nor on `remat`."""
    return jax.eval_shape(model.init, jax.random.key(0), image)


def tree_bytes(tree: Any) -> int:
    """Adds up the bytes of all arrays, or shapes of arrays, of a pytree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def training_loss(logits: Array) -> Array:
    """Mean cross entropy of a batch (Eq. 5), from logits `[T, B, classes]`, all examples being of class 0."""
    return jnp.mean(mean_output_cross_entropy(logits, jnp.zeros(logits.shape[1], jnp.int32)))


def kept_bytes(module: nn.Module, variables: dict[str, Any], x: Shape, loss: Loss) -> int:
    """Counts what the forward pass leaves behind for the gradients of the parameters.

    Args:
      module: a network or block; it is called with `x` and `train=True`.
      variables: shapes of its variables.
      x: of its input.
      loss: of its output.

    Returns:
      Bytes.
    """

    def backward(variables: dict[str, Any], x: Array) -> Any:
        def loss_of(params: Any) -> tuple[Array, Any]:
            y, statistics = module.apply({**variables, 'params': params}, x, train=True, mutable=_STATISTICS)
            return loss(y), statistics

        return jax.vjp(loss_of, variables['params'], has_aux=True)[1]

    return tree_bytes(jax.eval_shape(backward, variables, x))


def kept_bytes_per_image(
    module: nn.Module, variables: dict[str, Any], x: Shape, loss: Loss = training_loss, batch_axis: int = 0
) -> int:
    """Counts by how much `kept_bytes` grows with each image.

    Args:
      module: a network or block.
      variables: shapes of its variables.
      x: of its input; the size of its batch is ignored.
      loss: of its output.
      batch_axis: axis of `x` that is the batch.

    Returns:
      Bytes.
    """

    def kept(batch: int) -> int:
        shape = (*x.shape[:batch_axis], batch, *x.shape[batch_axis + 1 :])
        return kept_bytes(module, variables, Shape(shape, x.dtype), loss)

    return kept(2) - kept(1)


def largest_block_bytes_per_image(model: nn.Module, variables: dict[str, Any], image: Shape) -> int:
    """Counts what an image leaves behind within one block, the largest: `remat = block` has it all again for a while.

    Args:
      model: a network.
      variables: shapes of its variables.
      image: from `network`.

    Returns:
      Bytes.
    """
    blocks: list[tuple[nn.Module, Shape]] = []

    def record(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        # What `blocks.rematerialised` is for: children of the network that are called with `(x, train)`.
        if context.method_name == '__call__' and len(context.module.path) == 1 and len(args) == 2:
            blocks.append((context.module, Shape(args[0].shape, args[0].dtype)))
        return next_function(*args, **kwargs)

    def forward(variables: dict[str, Any], image: Array) -> Any:
        return model.clone(remat='none').apply(variables, image, train=True, mutable=_STATISTICS)

    with nn.intercept_methods(record):
        jax.eval_shape(forward, variables, image)
    return max(
        kept_bytes_per_image(
            block.clone(parent=None, name=None),
            {kind: tree[block.name] for kind, tree in variables.items()},
            x,
            loss=lambda spikes: spikes,
            batch_axis=1,
        )
        for block, x in blocks
    )


def table(heading: list[str], rows: list[list[str]]) -> str:
    """Lays out a table in Markdown."""
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in [heading, ['---'] * len(heading), *rows])


def main(_: list[str]) -> None:
    """Counts and prints."""
    rows, totals = [], []
    for name, file in NETWORKS.items():
        config = file.get_config()
        config.dtype = flags.FLAGS.dtype
        model, image = network(config)
        variables = variables_of(model, image)
        size = ' x '.join(map(str, image.shape[1:]))
        totals.append(f'Parameters of {name}: {tree_bytes(variables["params"]) / 1e6:.1f} MB.')
        for time_steps in TIME_STEPS:
            kept = [
                kept_bytes_per_image(model.clone(remat=remat, time_steps=time_steps), variables, image)
                for remat in REMATS
            ]
            rows.append([f'{name}, {size}', str(time_steps), *(f'{count / 1e6:.2f}' for count in kept)])
    print(f'MB (10^6 bytes) an image keeps for the backward pass in {flags.FLAGS.dtype}, by `remat`:\n')
    print(table(['network', 'T', *REMATS], rows), *totals, sep='\n\n')


if __name__ == '__main__':
    # Here, so that programs that import this one have no such flag.
    flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'config.dtype: what the networks compute in.')
    command.run(main)
