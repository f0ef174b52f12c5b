"""Makes a data set ready for training: `python -m cpng_jax.data.prepare cifar10 --data_dir=data`.

Archives that lie in `data_dir/downloads/manual` are taken, others downloaded where that needs no account. The command
can be interrupted and run again at any time: a data set is there as a whole or not at all.
"""

import argparse
import functools
import pathlib
import signal
import sys
from collections.abc import Callable

from cpng_jax.data import cifar, cifar10_dvs, idx, imagenet, tfds_builders
from cpng_jax.data.tfds_builders import Archive
from cpng_jax.runtime import streams
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.paths import local

Archives = tuple[Archive, ...]


def prepare_cifar(name: str, data_dir: pathlib.Path, archives: Archives | None = None) -> None:
    """Makes CIFAR10 or CIFAR100 from its archive, which is downloaded if it was not placed.

    Args:
      name: 'cifar10' or 'cifar100'.
      data_dir: where data sets lie.
      archives: what it is made from, if not the published one.

    Raises:
      UserError: the archive cannot be had or is not the published one, or the disk cannot be written to.
    """
    archives = archives or cifar.ARCHIVES[name]
    placed = tfds_builders.manual_folder(data_dir) / archives[0].file
    if placed.exists():
        tfds_builders.verify(placed, archives[0])
    tfds_builders.write(cifar.builder_class(name, archives), data_dir)


def prepare_imagenet(data_dir: pathlib.Path, archives: Archives = imagenet.ARCHIVES) -> None:
    """Makes ImageNet-2012 from the two archives that the user has placed.

    Args:
      data_dir: where data sets lie.
      archives: those of training and validation images.

    Raises:
      UserError: an archive is missing or not the published one, or the disk cannot be written to.
    """
    folder = tfds_builders.manual_folder(data_dir)
    missing = [archive.file for archive in archives if not (folder / archive.file).is_file()]
    if missing:
        raise UserError(
            f'ImageNet needs {" and ".join(missing)} in {folder}: register at {archives[0].source}, '
            'download, place them there, and run this command again.'
        )
    for archive in archives:
        tfds_builders.verify(folder / archive.file, archive)
    tfds_builders.write(imagenet.builder_class(archives, data_dir), data_dir)


PREPARE: dict[str, Callable[[pathlib.Path], None]] = {
    'cifar10': lambda data_dir: prepare_cifar('cifar10', data_dir),
    'cifar100': lambda data_dir: prepare_cifar('cifar100', data_dir),
    **{name: functools.partial(idx.prepare, name) for name in idx.DATASETS},
    'cifar10_dvs': cifar10_dvs.prepare,
    imagenet.NAME: prepare_imagenet,
}


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
