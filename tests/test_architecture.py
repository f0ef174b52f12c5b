"""The rooms of the package import each other one way: read from the sources, also inside functions and for types."""

import ast
import pathlib
import sys
from collections.abc import Iterator, Mapping

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = 'cpng_jax'

# Each room with those it may import; '' is the package's own __init__.py, the public names.
ORDER = {
    'nn': (),
    'control': ('nn',),
    'runtime': (),
    'configs': (),  # of a checkout: where the configurations lie, which import training
    'models': ('nn', 'control', 'runtime'),
    'data': ('runtime',),
    'training': ('nn', 'control', 'models', 'data', 'runtime'),
    'convert': ('nn', 'control', 'models', 'data', 'runtime', 'training'),
    'experiments': ('nn', 'control', 'models', 'data', 'runtime', 'training', 'convert'),
    'analysis': ('nn', 'control', 'models', 'data', 'runtime', 'training'),
    'export': ('nn', 'control', 'models', 'data', 'runtime', 'training'),
    '': ('nn', 'control', 'models'),
}
# What someone reads and installs who imports the library.
LIBRARY = ('nn', 'control')
LIBRARY_NEEDS = {'jax', 'flax', 'optax', 'numpy', 'jaxtyping', PACKAGE} | set(sys.stdlib_module_names)
MOST_LINES = 400


def breaches(sources: Mapping[str, str]) -> list[str]:
    """Lists what goes against the architecture, a sentence for each.

    Args:
      sources: text of each file of the package by its path, such as `cpng_jax/nn/neuron.py`.
    """
    found, graph = [], {}
    for path, text in sources.items():
        room = room_of(path)
        if room not in ORDER:
            found.append(f'{path} is in no room of the package: expected one of {", ".join(filter(None, ORDER))}.')
            continue
        lines = len(text.splitlines())
        if lines > MOST_LINES:
            found.append(f'{path} has {lines} lines, expected at most {MOST_LINES}.')
        graph[path] = set()
        for line, module in imports(path, text):
            where = f'{path}:{line} imports {module}'
            if module.partition('.')[0] == PACKAGE:
                file = file_of(module, sources)
                graph[path].add(file)
                if room_of(file) not in (room, *ORDER[room]):
                    found.append(
                        f'{where}: {room or "__init__.py"} may import {", ".join(ORDER[room]) or "no other room"}.'
                    )
            elif room in LIBRARY and module.partition('.')[0] not in LIBRARY_NEEDS:
                found.append(f'{where}: {room} needs jax, flax, optax, numpy, jaxtyping alone.')
    circle = circle_in(graph)
    return found + ([f'These files import each other in a circle: {" -> ".join(circle)}.'] if circle else [])


def room_of(path: str) -> str | None:
    """The room of a file: its folder; '' for the package's `__init__.py`, None for another file beside that."""
    _, *folders, name = path.split('/')
    if folders:
        return folders[0]
    return '' if name == '__init__.py' else None


def imports(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Line and full name of each module, or name in a module, that a file imports."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(path.split('/')[: -node.level]) if node.level else ''
            module = '.'.join(filter(None, (base, node.module)))
            yield from ((node.lineno, f'{module}.{alias.name}') for alias in node.names)


def file_of(module: str, sources: Mapping[str, str]) -> str:
    """The file of a module; a name in it belongs to the longest part of the name that is a file."""
    parts = module.split('.')
    for end in range(len(parts), 0, -1):
        stem = '/'.join(parts[:end])
        for path in (f'{stem}.py', f'{stem}/__init__.py'):
            if path in sources:
                return path
    return f'{PACKAGE}/__init__.py'


def circle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """Files of a circle of imports, the first again at the end; none if there is no circle."""
    finished: set[str] = set()

    def search(file: str, way: list[str]) -> list[str]:
        if file in way:
            return [*way[way.index(file) :], file]
        if file not in finished:
            for other in sorted(graph.get(file, ())):
                if circle := search(other, [*way, file]):
                    return circle
        finished.add(file)
        return []

    return next((circle for file in sorted(graph) if (circle := search(file, []))), [])


def test_the_package_keeps_to_its_architecture():
    files = sorted((ROOT / PACKAGE).rglob('*.py'))
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in files}
    assert len(sources) > 50
    found = breaches(sources)
    assert not found, '\n'.join(['', *found])


TOY = {
    'cpng_jax/__init__.py': 'from cpng_jax.nn.neuron import LIF',
    'cpng_jax/nn/__init__.py': '',
    'cpng_jax/nn/neuron.py': 'import math\nimport jax.numpy as jnp\nfrom flax import linen as nn\nLIF = 1',
    'cpng_jax/control/__init__.py': '',
    'cpng_jax/control/cpng.py': 'import optax\nfrom cpng_jax.nn import neuron\nfrom cpng_jax.nn.neuron import LIF',
    'cpng_jax/runtime/__init__.py': '',
    'cpng_jax/runtime/metrics.py': 'import rich.console',
    'cpng_jax/training/__init__.py': '',
    'cpng_jax/training/loop.py': 'from cpng_jax.control import cpng\nfrom cpng_jax.runtime.metrics import read',
}


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({}, None),
        (
            {'cpng_jax/nn/neuron.py': 'import jax\n\nfrom cpng_jax.control import cpng'},
            'cpng_jax/nn/neuron.py:3 imports cpng_jax.control.cpng: nn may import no other room.',
        ),
        (
            {'cpng_jax/control/cpng.py': 'import cpng_jax.training.loop as loop'},
            'cpng_jax/control/cpng.py:1 imports cpng_jax.training.loop: control may import nn.',
        ),
        (
            {'cpng_jax/runtime/metrics.py': 'def read():\n    from cpng_jax.training import loop'},
            'cpng_jax/runtime/metrics.py:2 imports cpng_jax.training.loop: runtime may import no other room.',
        ),
        (
            {'cpng_jax/runtime/metrics.py': 'import typing\nif typing.TYPE_CHECKING:\n    from cpng_jax import LIF'},
            'cpng_jax/runtime/metrics.py:3 imports cpng_jax.LIF: runtime may import no other room.',
        ),
        (
            {'cpng_jax/nn/neuron.py': 'from ..runtime import metrics'},
            'cpng_jax/nn/neuron.py:1 imports cpng_jax.runtime.metrics: nn may import no other room.',
        ),
        (
            {'cpng_jax/__init__.py': 'from cpng_jax.training.loop import run'},
            'cpng_jax/__init__.py:1 imports cpng_jax.training.loop.run: __init__.py may import nn, control, models.',
        ),
        (
            {'cpng_jax/control/cpng.py': 'def update():\n    import scipy.stats'},
            'cpng_jax/control/cpng.py:2 imports scipy.stats: control needs jax, flax, optax, numpy, jaxtyping alone.',
        ),
        (
            {'cpng_jax/nn/neuron.py': 'from ml_collections import ConfigDict'},
            'cpng_jax/nn/neuron.py:1 imports ml_collections.ConfigDict: nn '
            'needs jax, flax, optax, numpy, jaxtyping alone.',
        ),
        (
            {'cpng_jax/train.py': ''},
            'cpng_jax/train.py is in no room of the package: expected one of nn, control, runtime, configs, '
            'models, data, training, convert, experiments, analysis, export.',
        ),
        (
            {'cpng_jax/attic/old.py': ''},
            'cpng_jax/attic/old.py is in no room of the package: expected one of nn, control, runtime, configs, '
            'models, data, training, convert, experiments, analysis, export.',
        ),
        ({'cpng_jax/nn/long.py': 'x = 1\n' * 400}, None),
        ({'cpng_jax/nn/long.py': 'x = 1\n' * 401}, 'cpng_jax/nn/long.py has 401 lines, expected at most 400.'),
        (
            {
                'cpng_jax/nn/a.py': 'from cpng_jax.nn import b',
                'cpng_jax/nn/b.py': 'def f():\n    from cpng_jax.nn.c import g',
                'cpng_jax/nn/c.py': 'from .a import h',
            },
            'These files import each other in a circle: cpng_jax/nn/a.py -> cpng_jax/nn/b.py -> cpng_jax/nn/c.py -> '
            'cpng_jax/nn/a.py.',
        ),
    ],
)
def test_each_kind_of_breach_is_found_and_named(changes, expected):
    found = breaches(TOY | changes)
    assert found == [] if expected is None else expected in found
