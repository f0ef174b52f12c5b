"""What is exported: the network of a run, or of an entry of the zoo, with what its user has to know of it."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from cpng_jax import data
from cpng_jax.models import registry, zoo
from cpng_jax.models.inputs import network_input
from cpng_jax.runtime import arrays
from cpng_jax.runtime.config import Config, flatten, from_flat
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.npz import Arrays
from cpng_jax.runtime.workdir import load_config
from cpng_jax.training import keys, weights


@dataclasses.dataclass(frozen=True)
class Source:
    """A trained network.

    Attributes:
      name: for files.
      place: of its weights, in words.
      folder: where its files go by default.
      config: its configuration, nested, as that of a device of any kind.
      arrays: by name, such as params/conv01/conv/conv/kernel.
      classes: names of the outputs in their order.
      image_shape: `(H, W, C)` of an image, `(T, H, W, C)` of a recording.
      mean: of the training images by channel, in units of 0 to 1.
      std: standard deviation by channel, in the same units.
    """

    name: str
    place: str
    folder: pathlib.Path
    config: Mapping[str, Any]
    arrays: Arrays
    classes: list[str]
    image_shape: tuple[int, ...]
    mean: list[float]
    std: list[float]

    @property
    def time_steps(self) -> int:
        """T."""
        return self.image_shape[0] if len(self.image_shape) == 4 else self.config['model']['time_steps']

    def network(self) -> tuple[nn.Module, dict[str, Any]]:
        """The module and its variables, float32."""
        module = registry.build(self.config, len(self.classes))
        return module, weights.nested({name: jnp.asarray(array, jnp.float32) for name, array in self.arrays.items()})

    def description(self) -> dict[str, Any]:
        """What the user of a file has to know, for the file: texts, numbers and lists."""
        return {
            'made_by': 'cpng_jax',
            'weights': self.place,
            'network': self.config['model']['name'],
            'classes': self.classes,
            'image_shape': list(self.image_shape),
            'time_steps': self.time_steps,
            'mean': self.mean,
            'std': self.std,
        }


def read(folder: pathlib.Path, which: str = 'latest') -> Source:
    """Reads what is to be exported; nothing is written.

    Args:
      folder: of a run, or of an entry of the zoo: `zoo/NAME`, too, where that comes with the package.
      which: checkpoint of the run, 'latest' or 'best'.

    Returns:
      The network.

    Raises:
      UserError: there is neither, a run has no checkpoint, or its data set, which tells mean and classes, is not there.
    """
    folder = zoo.located(folder)
    if zoo.is_entry(folder):
        if which != 'latest':
            raise UserError(
                f'--checkpoint is {which!r} and --workdir {str(folder)!r} an entry of the zoo: leave it out.'
            )
        return _of_zoo(folder)
    if not (folder / 'config.json').is_file():
        raise UserError(
            f'There is no run in {folder}: it has no config.json, nor a card.json as entries of the zoo have; the zoo '
            f'that comes with cpng_jax has {", ".join(f"zoo/{name}" for name in zoo.names()) or "nothing"}.'
        )
    return _of_run(folder, which)


def _of_zoo(folder: pathlib.Path) -> Source:
    card = zoo.card(folder)
    return Source(
        name=card['name'],
        place=f'{card["name"]} of the zoo',
        folder=pathlib.Path(),
        config=_of_any_device(from_flat(card['config'])),
        arrays=zoo.read(folder),
        classes=card['classes'],
        image_shape=tuple(card['image_shape']),
        mean=card['mean'],
        std=card['std'],
    )


def _of_run(workdir: pathlib.Path, which: str) -> Source:
    config = load_config(workdir, keys.table())
    saved = arrays.read_checkpoint(workdir, weights.COLLECTIONS, which)
    dataset = data.load(config.data)
    name = workdir.resolve().name
    source = Source(
        name=f'{name}-{saved.step}',
        place=f'{name}, step {saved.step}',
        folder=workdir / 'export',
        config=_of_any_device(config),
        arrays=saved.arrays,
        classes=list(dataset.class_names),
        image_shape=tuple(dataset.image_shape),
        mean=dataset.mean.tolist(),
        std=dataset.std.tolist(),
    )
    _check(source, workdir)
    return source


def _of_any_device(config: Config) -> Mapping[str, Any]:
    """The configuration without what is for training, or for one kind of device."""
    flat = flatten(config) | {'neuron.implementation': 'scan', 'remat': 'none'}
    return traverse_util.unflatten_dict(flat, sep='.')


def _check(source: Source, workdir: pathlib.Path) -> None:
    """Checks that a checkpoint has the arrays of the network."""
    module, _ = source.network()
    shape = (1, *source.image_shape)
    example = network_input(jnp.zeros(shape, jnp.uint8), np.zeros(shape[-1]), np.ones(shape[-1]))
    shapes = jax.eval_shape(lambda key: module.init(key, example), jax.random.key(0))
    weights.fitted(source.arrays, shapes, source=str(workdir))
