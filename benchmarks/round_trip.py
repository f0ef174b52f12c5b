"""Runs exported networks in the libraries that read NIR, and counts the spikes that are equal.

    python -m benchmarks.round_trip --peers_python=.venv-peers/bin/python

Of trained networks of the zoo; and, for a third of the images, of a residual one whose norms have the statistics of its
images, with leaky neurons and without leak. The files are those of `cpng-export`; spikes of all layers and time steps
are compared with those of the network itself, images are those of the test split. Prints the table, and puts it into
the page of --page.
"""

import functools
import os
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import linen as nn

from benchmarks.memory import table
from benchmarks.process import ROOT, peers_python
from cpng_jax import data
from cpng_jax.export import nir_read, nir_write, source
from cpng_jax.models import zoo
from cpng_jax.models.inputs import network_input
from cpng_jax.models.resnet import ResNet
from cpng_jax.nn.layers import TdBN
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime import command, files
from cpng_jax.runtime.config import from_flat

Arrays = dict[str, np.ndarray]

TRAINED = ('digits', 'fashion_mnist_mlp', 'fashion_mnist_cnn')
LIBRARIES = {'spikingjelly': 'SpikingJelly', 'snntorch': 'snnTorch', 'norse': 'Norse', 'spyx': 'spyx'}
OURS = 'cpng_jax'
_BATCH = 50
_MARKS = '<!-- benchmarks.round_trip -->', '<!-- end -->'

_PEERS = flags.DEFINE_string('peers_python', '.venv-peers/bin/python', 'Interpreter that has the other libraries.')
_IMAGES = flags.DEFINE_integer('images', 500, 'Images of each network, at most.', lower_bound=1)
_NETWORKS = flags.DEFINE_list('networks', [], 'Some of the networks alone, by the beginnings of their names.')
_PAGE = flags.DEFINE_string('page', None, 'File whose table is replaced, such as docs/export.md.')


class Case(NamedTuple):
    """A network and what it is shown.

    Attributes:
      name: of the network.
      module: linen.
      variables: its collections.
      images: as it takes them, `[N, H, W, C]`.
      time_steps: T.
    """

    name: str
    module: nn.Module
    variables: Any
    images: Array
    time_steps: int


def cases(most: int) -> Iterator[Case]:
    """Makes the networks, one after the other, with at most so many images."""
    images: Any = None
    for name in TRAINED:
        found = source.read(zoo.find(name))
        test = data.load(from_flat(zoo.card(name)['config']).data).test
        count = min(most, len(test))
        shown = jnp.asarray(np.stack([test[index]['image'] for index in range(count)]))
        images = network_input(shown, found.mean, found.std)
        yield Case(name, *found.network(), images, found.time_steps)
    images = images[: -(-most // 3)]
    for name, tau in (('residual', 0.5), ('residual, tau = 1', 1.0)):
        module = ResNet(
            classes=10,
            blocks=(2, 2),
            widths=(8, 16),
            stem_width=8,
            neuron=functools.partial(LIF, tau=tau),
            norm=functools.partial(TdBN, momentum=0.0),
        )
        variables = module.init(jax.random.key(0), images[:1])
        _, statistics = module.apply(variables, images[:_BATCH], train=True, mutable=['batch_stats'])
        yield Case(f'{name}, not trained', module, {**variables, **statistics}, images, module.time_steps)


def in_batches(run: Any, images: Array, axis: int) -> Arrays:
    """Runs a compiled function over images, and joins what it gives: outputs and spikes by name, as bytes."""
    parts = []
    for start in range(0, images.shape[axis], _BATCH):
        found = run(jax.lax.slice_in_dim(images, start, min(start + _BATCH, images.shape[axis]), axis=axis))
        parts.append({name: np.asarray(each if name == 'outputs' else each != 0) for name, each in found.items()})
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def of_the_network(case: Case) -> Arrays:
    """Outputs and spikes of the network itself, the spikes by the names and in the layout that its graph has."""
    of_neurons = lambda module, method: isinstance(module, LIF) and method == '__call__'

    @jax.jit
    def run(images: Array) -> dict[str, Array]:
        outputs, captured = case.module.apply(
            case.variables, images, capture_intermediates=of_neurons, mutable=['intermediates']
        )
        leaves = jax.tree_util.tree_leaves_with_path(captured['intermediates'])
        named = {'.'.join(key.key for key in path[:-2]): leaf for path, leaf in leaves}
        return {'outputs': outputs} | {
            name: jnp.moveaxis(leaf, -1, 2) if leaf.ndim == 5 else leaf for name, leaf in named.items()
        }

    return in_batches(run, case.images, 0)


def in_library(library: str, graph: pathlib.Path, frames: Array, folder: pathlib.Path) -> tuple[Arrays, str]:
    """Runs a graph in a library; returns what it gives, and its version, or nothing, and what it raised."""
    if library == OURS:
        network = nir_read.read(graph)

        @jax.jit
        def run(frames: Array) -> dict[str, Array]:
            ran = network(frames)
            return {'outputs': ran.outputs, **ran.spikes}

        return in_batches(run, frames, 1), ''
    given, out = folder / 'frames.npz', folder / 'out.npz'
    np.savez(given, frames=np.asarray(frames))
    out.unlink(missing_ok=True)
    python = [peers_python(_PEERS.value), '-m', 'benchmarks.readers', library]
    environment = {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ}  # on busy cores, threads that spin slow PyTorch down
    done = subprocess.run(
        [*python, graph, given, out], check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        return {}, f'`{done.stderr.strip().splitlines()[-1]}`'
    with np.load(out) as found:
        arrays = {name: found[name] for name in found.files}
    return arrays, str(arrays.pop('version'))


def row(expected: Arrays, found: Arrays, note: str) -> list[str]:
    """Cells of the table: shares of equal spikes, of time steps and images with all of them, and of equal classes."""
    if not found:
        return ['-', '-', note]
    outputs, theirs = expected['outputs'], found['outputs']
    if theirs.shape != outputs.shape:
        shape = ' x '.join(map(str, theirs.shape[2:]))
        return ['-', '-', f'its output is that of another node, {shape}']
    names = [name for name in expected if name != 'outputs' and name in found]
    total = sum(expected[name].size for name in names)
    equal = sum(int(np.sum(expected[name] == found[name])) for name in names)
    classes = [each.mean(axis=0).argmax(axis=-1) for each in (outputs, theirs)]
    largest = np.abs(outputs - theirs).max()
    return [
        f'{equal:,} of {total:,}' if names else '-',
        f'{np.sum(classes[0] == classes[1]):,} of {len(classes[0]):,}',
        f'outputs within {largest:.0e}' if largest else 'outputs exactly',
    ]


def main(_: list[str]) -> None:
    """Exports, runs and prints."""
    rows, versions = [], set()
    for case in cases(_IMAGES.value):
        if _NETWORKS.value and not case.name.startswith(tuple(_NETWORKS.value)):
            continue
        expected, frames = of_the_network(case), nir_read.frames_of(case.images, case.time_steps)
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            shape = case.images.shape[1:]
            graph = nir_write.write(folder / 'a.nir', nir_write.to_nir(case.module, case.variables, shape))
            for library in (OURS, *LIBRARIES):
                found, note = in_library(library, graph, frames, folder)
                if found and library != OURS:
                    versions.add(f'{LIBRARIES[library]} {note}')
                rows.append([case.name, LIBRARIES.get(library, library), *row(expected, found, note)])
                print(' | '.join(rows[-1]), flush=True)
    columns = ['network', 'read by', 'spikes that are equal', 'classes that are equal', '']
    text = f'{table(columns, rows)}\n\n{", ".join(sorted(versions))}; jax {jax.__version__}.'
    print(f'\n{text}')
    if _PAGE.value is not None:
        page = pathlib.Path(_PAGE.value)
        start, end = map(re.escape, _MARKS)
        put = lambda match: f'{match[1]}\n\n{text}\n\n{match[2]}'
        files.replace(page, re.sub(f'({start}).*?({end})', put, page.read_text('utf-8'), flags=re.DOTALL))


if __name__ == '__main__':
    command.run(main)
