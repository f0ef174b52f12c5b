"""Makes a data set ready for training: `cpng-prepare cifar10 --data_dir=data`.

`python -m cpng_jax.data.prepare` is the same program.
Archives that lie in `data_dir/downloads/manual` are taken, others downloaded where that needs no account. The command
can be interrupted and run again at any time: a data set is there as a whole or not at all.
"""

import argparse
import pathlib
import signal
import sys

from cpng_jax.runtime import programs, streams

try:
    from cpng_jax.data import DATASETS, tfds_builders
    from cpng_jax.data.entry import Entry
    from cpng_jax.runtime.errors import UserError, if_alike
    from cpng_jax.runtime.paths import local
except ModuleNotFoundError as missing:
    sys.exit(programs.missing(missing))

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
        raise UserError(f'NAME is {name!r}, expected one of {", ".join(PREPARE)}{if_alike(name, PREPARE)}.')
    if tfds_builders.prepared_folder(name, data_dir) is None:
        PREPARE[name](data_dir)
    return pathlib.Path(tfds_builders.open_builder(name, data_dir).data_path)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code, 2 after one sentence on what the user can set right."""
    parser = argparse.ArgumentParser(prog=programs.command('prepare'), description=__doc__)
    parser.add_argument('name', metavar='NAME', help=', '.join(PREPARE))
    parser.add_argument('--data_dir', default='data', help='default: data')
    flags = parser.parse_args(arguments)
    try:
        folder = prepare(flags.name, local(flags.data_dir, '--data_dir'))
    except UserError as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'{parser.prog}: interrupted; the same command starts again.', file=sys.stderr)
        return 130
    print(f'{flags.name} is ready in {folder}')
    return 1 if streams.output_error() else 0


def program() -> None:
    """Runs the command with the arguments of the command line."""
    streams.outlive_readers()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # an exception, so that what is unfinished is removed
    sys.exit(main())


if __name__ == '__main__':
    program()
