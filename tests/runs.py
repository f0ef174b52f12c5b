"""Runs of train.py in processes of their own, and what they leave."""

import contextlib
import functools
import os
import signal
import socket
import time
from unittest import mock

import jax
import numpy as np

from configs import digits
from cpng_jax.runtime import checkpoint_reader, metrics, plots, sharding
from cpng_jax.runtime.config import flatten
from cpng_jax.training import loop
from cpng_jax.training.setup import build_for_seeds
from tests import forked

# Grain draws a place in the order of few examples by trial and error, a quarter of a millisecond each; runs of tests
# draw the same again and again.
with contextlib.suppress(ImportError):
    from grain._src.python.experimental.index_shuffle.python import index_shuffle_module as places

    places.index_shuffle = functools.cache(places.index_shuffle)

# Runs of one configuration, started again and again, need not be traced again and again.
build_once = build_for_seeds(most=6)


def run_shared(config, workdir, mode='train'):
    """A run in this process that shares what it builds with others of equal configurations."""
    return loop.run(config, workdir, mode, build=build_once)


def run_with_pictures(config, workdir):
    """A run in this process whose pictures are drawn, too."""
    with mock.patch.object(loop, 'plot_run', plots.plot_run):
        return run_shared(config, workdir)


def start(workdir, config, environment=None, mode='train'):
    """train.py in a process of its own, with the values of a configuration as flags."""
    base = flatten(digits.get_config())
    values = [f'--config.{key}={_flag(value)}' for key, value in flatten(config).items() if value != base[key]]
    return forked.start('train.py', f'--workdir={workdir}', f'--mode={mode}', *values, environment=environment)


def _flag(value):
    if not isinstance(value, list):
        return value
    return tuple(tuple(inner) if isinstance(inner, list) else inner for inner in value)


def start_together(workdir, config, processes=2, devices=2, mode='train'):
    """Processes that form one run, each with some CPU devices."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    common = {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
        'no_grpc_proxy': '127.0.0.1',
    }
    together = {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', 'JAX_NUM_PROCESSES': str(processes)}
    return [
        start(workdir, config, common | (together | {'JAX_PROCESS_ID': str(i)} if processes > 1 else {}), mode)
        for i in range(processes)
    ]


@contextlib.contextmanager
def stopped_at(batch):
    """Has this process get SIGTERM when a run sends its batch of that number, one ahead of the step."""
    put_batch, calls = sharding.put_batch, []

    def put_batch_and_signal(examples, mesh):
        calls.append(1)
        if len(calls) == batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return put_batch(examples, mesh)

    with mock.patch.object(sharding, 'put_batch', put_batch_and_signal):
        yield


def finish(processes, timeout=300):
    """Waits for the end of all: exit codes and what each wrote to standard output and standard error."""
    try:
        texts = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [process.returncode for process in processes], texts


def wait_for_checkpoint(process, workdir, step):
    """Waits until a run has saved a step, or ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if latest(workdir) >= step:
            return
        time.sleep(0.002)


def latest(workdir):
    """The step of the latest checkpoint, 0 before the first."""
    names = [path.name for path in (workdir / 'checkpoints').glob('*')]
    return max((int(name) for name in names if name.isdigit()), default=0)


def final_state(config, workdir):
    """The latest checkpoint of a run as numpy arrays by path."""
    restored = checkpoint_reader.restore(workdir, build_once(config).state_shapes)
    assert restored is not None
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(restored[0]))
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


def contents(folder):
    """What is in a folder, down to the bytes and the times of its files."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [folder, *folder.rglob('*')]
    }


def assert_bitwise_equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.tobytes() == second[name].tobytes(), name


def epoch_rows(workdir):
    """Rows of the epochs without what depends on the clock."""
    clock = ('seconds', 'wall_seconds', 'images_per_second', 'data_wait')
    rows = [row for row in metrics.read(workdir) if row['event'] == 'epoch']
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]
