"""The zoo: networks that have been trained, a folder each with their weights and a card of what they are.

    module, variables = cpng_jax.load('digits')
    card = cpng_jax.card('digits')
    logits = module.apply(variables, cpng_jax.network_input(images, card['mean'], card['std']))

`zoo/` of the repository is `cpng_jax/zoo/` where the package is installed. `training/zoo.py` makes its entries.
"""

import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from cpng_jax.models import registry
from cpng_jax.runtime import npz
from cpng_jax.runtime.errors import UserError, nearest

CARD, WEIGHTS = 'card.json', 'weights.npz'
FORMAT = 1
# What is read from a card, whoever wrote it.
_NEEDED = ('name', 'config', 'classes', 'mean', 'std', 'sha256')

Name = str | os.PathLike[str]


class Trained(NamedTuple):
    """A network that has been trained.

    Attributes:
      module: the linen module; `module.apply(variables, x)` gives its outputs at each time step, `[T, B, classes]`.
      variables: its collections `params`, `batch_stats` and `surrogate`, float32.
    """

    module: nn.Module
    variables: dict[str, Any]


def load(name: Name) -> Trained:
    """Loads a network that has been trained; needs neither its data nor what training needs.

    Args:
      name: of an entry of the zoo, such as 'digits', or the path of a folder like one of these, such as './digits'.

    Returns:
      The module and its variables. Images are handed to it as `network_input` makes them.

    Raises:
      UserError: there is no such entry, or its files are not those that were made.
    """
    folder = find(name)
    found = card(folder)
    config = traverse_util.unflatten_dict(found['config'], sep='.')
    arrays = {path: jnp.asarray(array, jnp.float32) for path, array in read(folder).items()}
    return Trained(registry.build(config, len(found['classes'])), traverse_util.unflatten_dict(arrays, sep='/'))


def card(name: Name) -> dict[str, Any]:
    """Reads what is known of an entry of the zoo.

    Args:
      name: of the entry, or the path of its folder, as for `load`.

    Returns:
      Among others `mean` and `std`, by channel, for `network_input`; `classes`, the names of its outputs in their
      order; `image_shape`; `config`, the whole configuration by dotted keys; `test` and `validation`, what it reaches.

    Raises:
      UserError: there is no such entry, or its card cannot be read.
    """
    path = find(name) / CARD
    try:
        found = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read ({error}): restore the folder.') from error
    if not isinstance(found, dict) or found.get('format') != FORMAT:
        of = found.get('format') if isinstance(found, dict) else None
        raise UserError(f'{path} is a card of format {of!r}, this version of cpng_jax reads {FORMAT}.')
    for key in _NEEDED:
        if key not in found:
            raise UserError(f'{path} is damaged (it lacks {key!r}): restore the folder.')
    return found


def read(folder: pathlib.Path) -> npz.Arrays:
    """Reads the weights of an entry, as they are stored.

    Args:
      folder: of the entry.

    Returns:
      Arrays by names such as params/conv01/conv/conv/kernel.

    Raises:
      UserError: they are not those that the card is about, or cannot be read.
    """
    path, expected = folder / WEIGHTS, card(folder)['sha256']
    try:
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror or error}): restore the folder.') from error
    if checksum != expected:
        raise UserError(
            f'{path} is not the file that its card is about: its sha256 is {checksum}, expected {expected}. '
            'It is damaged or another one: restore the folder.'
        )
    return npz.read(path)


def names() -> list[str]:
    """Lists the entries of the zoo, in alphabetic order."""
    return sorted(path.parent.name for path in home().glob(f'*/{CARD}'))


def home() -> pathlib.Path:
    """The folder of the zoo: within the package where that is installed, beside it in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    installed = package / 'zoo'
    return installed if installed.is_dir() else package.parent / 'zoo'


def is_entry(folder: pathlib.Path) -> bool:
    """Whether a folder is an entry of a zoo, to go by its card."""
    return (folder / CARD).is_file()


def located(path: pathlib.Path) -> pathlib.Path:
    """Says where a path leads: `zoo/NAME`, where there is none here, to the entry that comes with the package."""
    ours = home() / path.name
    return ours if path.parts[:-1] == ('zoo',) and not path.exists() and is_entry(ours) else path


def find(name: Name) -> pathlib.Path:
    """Finds the folder of an entry.

    Args:
      name: of an entry of the zoo, or a path, which is one if it has a slash in it or is no text.

    Returns:
      The folder.

    Raises:
      UserError: there is no such entry; the message has the nearest, and all.
    """
    text = os.fspath(name)
    is_name = isinstance(name, str) and not {os.sep, os.altsep or os.sep} & {*text}
    folder = home() / text if is_name else located(pathlib.Path(text))
    if text and is_entry(folder):
        return folder
    known = names()
    if not known:
        raise UserError(f'There is no zoo in {home()}: install cpng_jax anew, or name the path of a folder.')
    close = nearest(folder.name, known)
    what = f'the zoo has no network {text!r}' if is_name else f'{text!r} is no folder of a zoo: it has no {CARD}'
    raise UserError(f'{what[0].upper()}{what[1:]}; the nearest is {close!r} of {", ".join(known)}.')
