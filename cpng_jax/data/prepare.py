"""Makes a data set ready for training: `python -m cpng_jax.data.prepare cifar10 --data_dir=data`.

Archives that lie in `data_dir/downloads/manual` are taken, others downloaded where that needs no account. The command
can be interrupted and run again at any time: a data set is there as a whole or not at all.
"""

import argparse
import pathlib
import signal
import sys

from cpng_jax.data import DATASETS, tfds_builders
from cpng_jax.data.entry import Entry
from cpng_jax.runtime import streams
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.paths import local

PREPARE = {name: line.prepare for name, line in DATASETS.items() if isinstance(line, Entry) and line.prepare}


def prepare(name: str, data_dir: pathlib.Path) -> pathlib.Path:
    """Makes a data set ready; does nothing if it is.

    Args:
      name: a key of `PREPARE`.
      data_dir: where data sets lie.

    Returns:
      The folder of the data set.

    Raises:
      UserError: no data set has that name, or it cannot be made.
    """
    if name not in PREPARE:
        raise UserError(f'NAME is {name!r}, expected one of {", ".join(PREPARE)}.')
    if tfds_builders.prepared_folder(name, data_dir) is None:
        PREPARE[name](data_dir)
    return pathlib.Path(tfds_builders.open_builder(name, data_dir).data_path)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code, 2 after one sentence on what the user can set right."""
    parser = argparse.ArgumentParser(prog='python -m cpng_jax.data.prepare', description=__doc__)
    parser.add_argument('name', metavar='NAME', help=', '.join(PREPARE))
    parser.add_argument('--data_dir', default='data', help='default: data')
    flags = parser.parse_args(arguments)
    try:
        folder = prepare(flags.name, local(flags.data_dir, '--data_dir'))
    except UserError as error:
        print(f'prepare: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('prepare: interrupted; the same command starts again.', file=sys.stderr)
        return 130
    print(f'{flags.name} is ready in {folder}')
    return 1 if streams.output_error() else 0


if __name__ == '__main__':
    streams.outlive_readers()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # an exception, so that what is unfinished is removed
    sys.exit(main())
