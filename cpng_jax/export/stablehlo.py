"""A network as a program of StableHLO, which runs where there is only jax: `jax.export`."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import export

from cpng_jax.export.graph import Shape
from cpng_jax.models.inputs import network_input
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime import files

PLATFORMS = ('cpu', 'cuda', 'tpu')


def to_stablehlo(
    module: nn.Module,
    variables: Mapping[str, Any],
    image_shape: Shape,
    mean: list[float],
    std: list[float],
    dtype: str = 'float32',
) -> export.Exported:
    """Makes a program of a network; normalisation of the images and mean over time are within, weights too.

    Args:
      module: takes images `[B, H, W, C]` or events `[T, B, H, W, C]` and returns `[T, B, classes]`.
      variables: its collections.
      image_shape: `(H, W, C)` of an image, or `(T, H, W, C)` of a recording.
      mean: of the training images by channel, in units of 0 to 1.
      std: standard deviation by channel, in the same units.
      dtype: that the network computes in.

    Returns:
      What takes uint8 `[b, *image_shape]`, for any b, to float32 `[b, classes]`, on each of `PLATFORMS`.
    """

    def logits(image: Array) -> Array:
        outputs: Any = module.apply(variables, network_input(image[None], mean, std, dtype), train=False)
        return jnp.mean(outputs[:, 0].astype(jnp.float32), axis=0)

    (batch,) = export.symbolic_shape('b')
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
    # By the example, since layers look at the size of a batch, which is not known.
    return export.export(jax.jit(jax.vmap(logits)), platforms=PLATFORMS)(images)


def write(path: pathlib.Path, program: export.Exported, description: Mapping[str, Any]) -> list[pathlib.Path]:
    """Writes a program, and beside it what it takes and how it is run, as JSON.

    Args:
      path: of the program.
      program: from `to_stablehlo`.
      description: what is known of the network.

    Returns:
      Both files.
    """
    beside = path.with_name(f'{path.name}.json')
    run = [
        'import jax.export, numpy as np',
        f"network = jax.export.deserialize(bytearray(open('{path.name}', 'rb').read()))",
        f'images = np.zeros({(1, *description["image_shape"])}, np.uint8)  # any number of them',
        'logits = network.call(images)',
    ]
    words = {
        **description,
        'takes': {'dtype': 'uint8', 'shape': ['b', *description['image_shape']]},
        'returns': {'dtype': 'float32', 'shape': ['b', len(description['classes'])]},
        'platforms': list(program.platforms),
        'jax': jax.__version__,
        'run': run,
    }
    return [
        files.replace(path, bytes(program.serialize())),
        files.replace(beside, json.dumps(words, indent=2) + '\n'),
    ]
