"""Shared by the tests of the program: a configuration small enough to train in seconds, and what is compiled once."""

import gc
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import flax
import jax
import pytest
from hypothesis import HealthCheck, settings

from configs import digits
from cpng_jax.runtime.config import Config
from tests.forked import plot_run_without_drawing

# A shell that puts the tests into the background has them ignore Ctrl-C, and nohup a closed terminal; what they start
# would do so too.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# What several tests, or processes of one, compile alike is compiled once; each worker of pytest-xdist has a folder of
# its own, since JAX does not write its files in one go.
_COMPILED = pathlib.Path(__file__).parents[1] / '.pytest_cache' / 'compiled' / os.environ.get('PYTEST_XDIST_WORKER', '')
for _name, _value in {
    'jax_compilation_cache_dir': str(_COMPILED),
    'jax_persistent_cache_min_compile_time_secs': 0,
    # Where in the source each operation comes from, which takes a tenth of all tracing and lowering.
    'jax_traceback_in_locations_limit': 0,
    'jax_include_full_tracebacks_in_locations': False,
}.items():
    jax.config.update(_name, _value)
    os.environ[_name.upper()] = str(_value)

# Nor is anything here profiled by the names of modules.
flax.config.update('flax_profile', False)
os.environ['FLAX_PROFILE'] = '0'

# Nearly all the time of the tests is that of compiling, most of it spent on making fast what runs for milliseconds.
_QUICK = ['--xla_backend_optimization_level=0', '--xla_cpu_parallel_codegen_split_count=1']
if jax.__version_info__ < (0, 11):  # later ones end at a flag that they no longer know
    _QUICK.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join([*_QUICK, os.environ.get('XLA_FLAGS', '')]).strip()

# Files that take minutes come first, so that at the end no worker waits for another's.
_LONG = (
    'test_processes.py',
    'test_idle.py',
    'test_configs.py',
    'test_zoo.py',
    'test_loop.py',
    'test_switches.py',
    'test_disk.py',
    'test_experiments.py',
    'test_networks.py',
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Brings the tests of long files to the front, and leaves the rest in its order."""
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))


def pytest_collection_finish() -> None:
    """Leaves what has been imported out of the search for garbage, and searches less often: traces are much of it."""
    gc.freeze()
    gc.set_threshold(20_000)


# The first example of a test compiles: time says nothing here, least of all on a busy machine.
settings.register_profile('cpng_jax', deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile('cpng_jax')


def _shrink(config: Config) -> Config:
    """Two spiking convolutions, three epochs of eleven steps; no threads, which would take turns with the steps."""
    config.epochs = 3
    config.batch_size = 32
    config.data.per_class = 36
    config.data.threads = 0
    config.model.time_steps = 2
    config.model.stages = ((4,), (8,))
    config.eval.batch_size = 100  # does not divide the 360 test digits
    return config


@pytest.fixture(scope='session')
def shrink() -> Callable[[Config], Config]:
    return _shrink


@pytest.fixture
def tiny_config() -> Config:
    return _shrink(digits.get_config())


@pytest.fixture(autouse=True)
def _pictures_are_not_drawn() -> Iterator[None]:
    """A run ends with pictures, a fifth of its time: here they are empty, other than those of `undisturbed`."""
    loop = sys.modules.get('cpng_jax.training.loop')  # tests of the library alone need none of it
    if loop is None:
        yield
        return
    with mock.patch.object(loop, 'plot_run', plot_run_without_drawing):
        yield


@pytest.fixture(scope='session')
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[str, Any]]:
    """A run of the tiny configuration with CPNG from start to end: its folder, to read only, and its result."""
    from tests.runs import run_with_pictures  # here, for tests of the library alone need none of it

    workdir = tmp_path_factory.mktemp('undisturbed')
    return workdir, run_with_pictures(_shrink(digits.get_config()), workdir)
