"""Weights that a run starts from, `config.init_from`, and the file that takes them from one place to another.

    python -m cpng_jax.training.weights --workdir=runs/digits --out=digits.npz

writes those of a run: parameters, running statistics of the norms, and width and height of the surrogate gradients,
as arrays by names such as `params/conv01/conv/conv/kernel`, `batch_stats/conv01/norm/norm/mean`,
`surrogate/conv01/lif/beta` and `scale/conv01/lif/scale`.
"""

import argparse
import fnmatch
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from cpng_jax.models import zoo
from cpng_jax.runtime import arrays, npz, safetensors
from cpng_jax.runtime.checkpoint_reader import shape_text
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError, nearest
from cpng_jax.runtime.npz import Arrays
from cpng_jax.runtime.paths import local

PyTree = Any

# Of a network, in the order that messages go through them.
COLLECTIONS = ('params', 'batch_stats', 'surrogate', 'scale')
# What rules set: greater than 0, and that of a layer serves each of its channels.
SET_BY_RULES = ('surrogate/', 'scale/')

# Names that a message lists.
_MOST_NAMES = 4


class Start(NamedTuple):
    """Where a run starts.

    Attributes:
      given: arrays by name, of the shapes and dtypes that the network has.
      source: what they are from, in words.
      step: of the checkpoint, None for a weights file.
      left: names of the arrays of the network that keep their own initial values.
      spread: names of the betas of a layer that each of its channels starts from.
    """

    given: Arrays
    source: str
    step: int | None
    left: list[str]
    spread: list[str]

    def message(self) -> str:
        """Says where the run starts, in a line or two."""
        beta = 'with' if any(name.startswith('surrogate/') for name in self.given) else 'without'
        lines = [f'starts from {self.source}: {len(self.given)} arrays, {beta} beta']
        if self.spread:
            lines.append(f'each channel starts from the beta of its layer: {_some(self.spread)}')
        if self.left:
            lines.append(f'left at their own initial values: {_some(self.left)}')
        return '\n'.join(lines)

    def row(self) -> dict[str, Any]:
        """The same for the metrics."""
        return {'source': self.source, 'source_step': self.step, 'arrays': len(self.given), 'left': self.left}


def start(config: Config, variables: PyTree, workdir: pathlib.Path | None = None) -> Start | None:
    """Reads what `config.init_from` names, and checks it against the network.

    Args:
      config: `init_from` is the folder of a run, a weights file or an entry of the zoo, or '' for none;
        `init_checkpoint` says which of the run's checkpoints; `init_skip` which arrays stay at their initial values.
        Beta and scale do, too, where no rule sets them.
      variables: of the network: arrays, or their shapes and dtypes.
      workdir: folder of the run that starts, which cannot be what it starts from.

    Returns:
      The arrays to start from; None for none.

    Raises:
      UserError: there is no such file or run, or its arrays are not those of the network.
    """
    if not config.init_from:
        return None
    path = zoo.located(local(config.init_from, 'config.init_from'))
    if workdir is not None and path.resolve() == workdir.resolve():
        raise UserError(
            f'config.init_from is {config.init_from!r}, the workdir itself: a run goes on from its own checkpoint '
            'without it; a new run needs another --workdir.'
        )
    found, source, step = _read(path, config.init_checkpoint)
    skip = config.init_skip
    if not config.cpng.enabled or config.cpng.rule in ('fixed', 'from_run'):
        skip += ',surrogate,scale'  # so that beta is what cpng.beta_init or cpng.beta_from says
    return fitted(found, variables, source=source, step=step, skip=skip)


def _read(path: pathlib.Path, which: str) -> tuple[Arrays, str, int | None]:
    """Arrays of a run, a weights file or an entry of the zoo, what they are from in words, and the step."""
    if path.is_dir() and not zoo.is_entry(path):
        saved = arrays.read_checkpoint(path, COLLECTIONS, which)
        return saved.arrays, f'{path}, checkpoint of step {saved.step}', saved.step
    if not path.exists():
        raise UserError(
            f'config.init_from is {str(path)!r}, which is neither the folder of a run nor a weights file; the zoo that '
            f'comes with cpng_jax has {", ".join(f"zoo/{name}" for name in zoo.names()) or "nothing"}.'
        )
    if which != 'latest':
        kind = 'an entry of the zoo' if path.is_dir() else 'a weights file'
        raise UserError(
            f'config.init_checkpoint is {which!r} and config.init_from {str(path)!r}, {kind}, which has one state '
            'alone: leave init_checkpoint out.'
        )
    if path.is_dir():
        return zoo.read(path), str(path), None
    return safetensors.read(path) if path.suffix == safetensors.SUFFIX else npz.read(path), str(path), None


def fitted(
    found: Arrays, variables: PyTree, *, source: str = 'the weights', step: int | None = None, skip: str = ''
) -> Start:
    """Checks arrays by names and shapes against a network.

    Args:
      found: arrays by name.
      variables: of the network: arrays, or their shapes and dtypes.
      source: what the arrays are from, for messages.
      step: of the checkpoint that they are from.
      skip: patterns, separated by commas, of arrays that keep their initial values; see `matching`.

    Returns:
      What to start from; a beta of a layer is spread over its channels where the network has one for each. Heights
      stay at their initial values where the arrays are from before there were any.

    Raises:
      UserError: an array is missing, too many, of another shape, or has values that it cannot have; or a pattern
        matches nothing.
    """
    expected = flat(variables)
    left = matching(skip, [*expected, *found])
    given, spread = {}, []
    has_heights = any(name.startswith('scale/') for name in found)
    for name in [*expected, *(name for name in found if name not in expected)]:
        if name in left or (name.startswith('scale/') and not has_heights):
            continue
        if name in expected and name in found and name.startswith(SET_BY_RULES) and found[name].ndim == 0:
            spread += [name] * (expected[name].ndim > 0 and name.startswith('surrogate/'))
            found = found | {name: np.broadcast_to(found[name], expected[name].shape)}
        reason = _misfit(name, found.get(name), expected.get(name))
        if reason:
            raise UserError(f'config.init_from: {name} {reason} in {source}. {_advice(name, found)}')
        given[name] = np.asarray(found[name], expected[name].dtype)
    if not given:
        raise UserError(f'config.init_skip is {skip!r}, which leaves nothing of {source} to start from.')
    return Start(given, source, step, [name for name in expected if name in left], spread)


def _misfit(name: str, found: np.ndarray | None, expected: Any) -> str:
    """What is wrong with an array, to go between its name and its source; '' where it fits."""
    if found is None:
        return f'is missing, expected {shape_text(expected.shape)},'
    if expected is None:
        return f'is {shape_text(found.shape)}, but this network has none,'
    if found.shape != expected.shape:
        return f'is {shape_text(found.shape)}, expected {shape_text(expected.shape)} for this network,'
    if not np.issubdtype(found.dtype, np.floating):
        return f'has the dtype {found.dtype}, expected {expected.dtype},'
    if not np.isfinite(found).all():
        return 'has values that are not finite,'
    if name.startswith(SET_BY_RULES) and not (found > 0).all():
        return 'has values that are not above 0,'
    return ''


def _advice(name: str, found: Arrays) -> str:
    if name.startswith(SET_BY_RULES):
        return (
            'config.init_skip=surrogate,scale starts from cpng.beta_init and cpng.scale_init '
            '(cpng.per says whether channels have their own).'
        )
    parts = name.split('/')
    layer = parts[1] if len(parts) > 1 else name
    if name not in found and any(other.split('/')[1:2] == [layer] for other in found):
        return f'config.init_skip=*/{parts[-1]} leaves what has that name at its own initial values.'
    return f'config.init_skip={layer} leaves that layer at its own initial values.'


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ', '.join(names[:_MOST_NAMES]) + (f' and {more} more' if more > 0 else '')


def matching(patterns: str, names: Iterable[str]) -> set[str]:
    """Finds the names that patterns are about.

    Args:
      patterns: separated by commas; each is a name with or without its collection, or the beginning of one up to a
        slash; `*` stands for any text. `output`, `params/output`, `surrogate` and `*/bias` are such.
      names: such as params/output/dense/kernel.

    Returns:
      The names.

    Raises:
      UserError: a pattern matches none; the message has the nearest.
    """
    beginnings = {name: _beginnings(name) for name in names}
    found = set()
    for pattern in filter(None, (pattern.strip().strip('/') for pattern in patterns.split(','))):
        matched = {name for name, of in beginnings.items() if any(fnmatch.fnmatchcase(one, pattern) for one in of)}
        if not matched:
            known = sorted({one for of in beginnings.values() for one in of})
            raise UserError(
                f'config.init_skip has {pattern!r}, which nothing matches; the nearest is {nearest(pattern, known)!r}.'
            )
        found |= matched
    return found


def _beginnings(name: str) -> list[str]:
    """A name and what it begins with, up to each slash; all of them also without the collection."""
    parts = name.split('/')
    return ['/'.join(parts[first:end]) for first in (0, 1) for end in range(first + 1, len(parts) + 1)]


def flat(variables: Mapping[str, PyTree]) -> dict[str, Any]:
    """Names the arrays of a network.

    Args:
      variables: its collections, such as `TrainState.variables`.

    Returns:
      The arrays by name, such as params/conv01/conv/conv/kernel, collection after collection.
    """
    return {
        f'{part}/{name}': leaf for part in COLLECTIONS for name, leaf in arrays.by_name(variables.get(part, {})).items()
    }


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """Lays arrays out as a network takes them, the inverse of `flat`: `model.apply(nested(named), images)`."""
    return traverse_util.unflatten_dict(dict(named), sep='/')


def replaced(variables: Mapping[str, PyTree], given: Mapping[str, Any]) -> dict[str, PyTree]:
    """Puts given arrays, by name, into the variables of a network; the rest stays."""
    return nested(flat(variables) | dict(given))


def write(path: pathlib.Path, variables: Mapping[str, PyTree]) -> None:
    """Writes a weights file.

    Args:
      path: of a new file, which ends with .npz.
      variables: collections of a network.

    Raises:
      UserError: the file is there already, or cannot be written.
    """
    npz.write(path, {name: np.asarray(leaf) for name, leaf in flat(variables).items()})


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a weights file: the variables, laid out as a network takes them.

    Raises:
      UserError: it cannot be read, or is no such file.
    """
    return nested(npz.read(path))


def main(arguments: list[str] | None = None) -> int:
    """Writes the weights of a run into a file; returns the exit code, 2 after a sentence on what can be set right."""
    parser = argparse.ArgumentParser(prog='python -m cpng_jax.training.weights', description=__doc__)
    parser.add_argument('--workdir', required=True, help='folder of the run')
    parser.add_argument('--out', required=True, help='the new file, which ends with .npz')
    parser.add_argument('--checkpoint', choices=('latest', 'best'), default='latest', help='default: latest')
    flags = parser.parse_args(arguments)
    try:
        workdir, out = local(flags.workdir, '--workdir'), local(flags.out, '--out')
        saved = arrays.read_checkpoint(workdir, COLLECTIONS, flags.checkpoint)
        npz.write(out, saved.arrays)
    except UserError as error:
        print(f'weights: {error}', file=sys.stderr)
        return 2
    print(f'{out}: {len(saved.arrays)} arrays of {workdir}, checkpoint of step {saved.step}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
