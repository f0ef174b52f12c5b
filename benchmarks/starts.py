"""Seconds from start to end of each program that works on a run: with nothing compiled yet, and once more.

    python -m benchmarks.starts
    python -m benchmarks.starts --config=cifar100_vgg16 --also=--config.data.fake=True \
        --also=--config.data.fake_examples=64 --also=--config.batch_size=16

An epoch is trained, twice, in folders of their own; the first run is then evaluated and put through each analysis, each
twice. Compiled programs are kept in a new folder, which is empty at first.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from absl import flags

from benchmarks.memory import table
from benchmarks.process import ROOT
from cpng_jax.analysis.__main__ import ANALYSES
from cpng_jax.runtime import command
from cpng_jax.runtime.environment import processor
from cpng_jax.runtime.errors import UserError

TRAIN = 'train.py'


def programs(config: str, also: Sequence[str], folder: pathlib.Path) -> Iterator[tuple[str, list[list[str]]]]:
    """Lists what is run.

    Args:
      config: `--config` of train.py.
      also: flags of train.py besides.
      folder: for the runs.

    Yields:
      A name, and the command lines of the first and the second time, after that of Python.
    """
    workdirs = [f'--workdir={folder / name}' for name in ('run', 'again')]
    run = [TRAIN, f'--config={config}', '--config.epochs=1', *also]
    yield TRAIN, [[*run, workdir] for workdir in workdirs]
    yield f'{TRAIN} --mode=eval', [[*run, workdirs[0], '--mode=eval']] * 2
    for name in ANALYSES:
        yield f'analysis {name}', [['-m', 'cpng_jax.analysis', name, workdirs[0]]] * 2


def seconds_to_run(arguments: Sequence[str], caches: pathlib.Path) -> float:
    """Runs Python to its end.

    Args:
      arguments: of its command line.
      caches: folder that programs keep what they compiled in.

    Returns:
      Seconds.

    Raises:
      UserError: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment | {'XDG_CACHE_HOME': str(caches)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ['without a word'])[-1]
        raise UserError(f'{" ".join(arguments)} failed: {last}')
    return time.perf_counter() - began


def main(_: list[str]) -> None:
    """Measures and prints."""
    values = flags.FLAGS
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for what, both in programs(values.config, values.also, folder):
            rows.append([what, *(f'{seconds_to_run(arguments, folder / "caches"):.1f} s' for arguments in both)])
    print(f'{processor()}; {values.config}, one epoch\n')
    print(table(['program', 'first', 'second'], rows))


if __name__ == '__main__':
    flags.DEFINE_string('config', 'digits', 'Of train.py.')
    flags.DEFINE_multi_string('also', [], 'A flag of train.py besides; again for others.')
    command.run(main)
