"""CIFAR10 and CIFAR100 (Krizhevsky, 2009), through TFDS without TensorFlow."""

import functools
import io
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from cpng_jax.data import tfds_builders
from cpng_jax.data.arrays import from_arrays
from cpng_jax.data.dataset import Dataset
from cpng_jax.data.entry import COLOUR, Entry, Kind
from cpng_jax.data.tfds_builders import Archive
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.paths import local

_SERVER = 'https://www.cs.toronto.edu/~kriz/'
# As TFDS lists them.
ARCHIVES = {
    'cifar10': (
        Archive(
            'cifar-10-binary.tar.gz',
            _SERVER + 'cifar-10-binary.tar.gz',
            170052171,
            'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
        ),
    ),
    'cifar100': (
        Archive(
            'cifar-100-binary.tar.gz',
            _SERVER + 'cifar-100-binary.tar.gz',
            168513733,
            '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
        ),
    ),
}
_EDGE = 32
_IMAGE_BYTES = 3 * _EDGE * _EDGE


def _load(name: str, config: Config) -> Dataset:
    """Reads CIFAR into memory: 50,000 training and 10,000 test images of 32 x 32 pixels.

    Args:
      name: 'cifar10' or 'cifar100'.
      config: `config.data`.

    Returns:
      The `Dataset`.

    Raises:
      UserError: it has not been prepared, or is damaged.
    """
    builder = tfds_builders.open_builder(name, local(config.dir, 'config.data.dir'))
    names = builder.info.features['label'].names
    # TFDS shuffles what it writes; ids restore the order of the archive.
    place = lambda example: bytes(example['id'])
    train, test = (tfds_builders.read_images(builder, split, (_EDGE, _EDGE, 3), place) for split in ('train', 'test'))
    return from_arrays(config, train, test, class_names=names)


def prepare(name: str, data_dir: pathlib.Path, archives: tuple[Archive, ...] | None = None) -> None:
    """Makes CIFAR10 or CIFAR100 from its archive, which is downloaded if it was not placed.

    Args:
      name: 'cifar10' or 'cifar100'.
      data_dir: where data sets lie.
      archives: what it is made from, if not the published one.

    Raises:
      UserError: the archive cannot be had or is not the published one, or the disk cannot be written to.
    """
    archives = archives or ARCHIVES[name]
    placed = tfds_builders.manual_folder(data_dir) / archives[0].file
    if placed.exists():
        tfds_builders.verify(placed, archives[0])
    tfds_builders.write(builder_class(name, archives), data_dir)


def _entry(name: str, classes: int) -> Entry:
    return Entry(
        functools.partial(_load, name),
        lambda _: Kind((_EDGE, _EDGE, 3), classes),
        ('dir', *COLOUR),
        functools.partial(prepare, name),
    )


CIFAR10, CIFAR100 = _entry('cifar10', 10), _entry('cifar100', 100)


def builder_class(name: str, archives: tuple[Archive, ...]) -> Any:
    """Makes the TFDS builder of 'cifar10' or 'cifar100' that does without TensorFlow.

    Args:
      name: of the data set.
      archives: what it is made from.

    Returns:
      A subclass of the builder in TFDS.
    """
    tfds = tfds_builders.import_tfds()
    genuine = tfds.builder_cls(name)
    checksums = tfds_builders.url_infos(archives)
    data_set = name

    class Builder(genuine, skip_registration=True):  # pyright: ignore
        name = data_set
        url_infos = checksums

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            info = self._cifar_info
            path = pathlib.Path(dl_manager.download(archives[0].source))
            contents = _contents(path, [*info.train_files, *info.test_files, *info.label_files])
            for key, file in zip(info.label_keys, info.label_files, strict=True):
                self.info.features[key].names = contents[file].decode().split()
            return {
                split: self._generate_examples(split, [contents[file] for file in files], path)
                for split, files in (('train', info.train_files), ('test', info.test_files))
            }

        def _generate_examples(  # pyright: ignore
            self, split: str, files: list[bytes], path: pathlib.Path
        ) -> Iterator[tuple[int, Any]]:
            keys = self._cifar_info.label_keys
            classes = [self.info.features[key].num_classes for key in keys]
            records = b''.join(files)
            size = len(keys) + _IMAGE_BYTES
            if not records or len(records) % size:
                raise UserError(
                    f'{path} holds {len(records)} bytes of {split} images, expected a multiple of {size}: '
                    'remove it and fetch it again.'
                )
            for index, record in enumerate(np.frombuffer(records, np.uint8).reshape(-1, size)):
                labels = record[: len(keys)]
                if (labels >= classes).any():
                    raise UserError(f'{path}: {split} image {index} has labels {labels.tolist()}, expected {classes}.')
                pixels = record[len(keys) :].reshape(3, _EDGE, _EDGE).transpose(1, 2, 0)
                named = dict(zip(keys, labels.tolist(), strict=True))
                yield index, {**named, 'id': f'{split}_{index:05d}', 'image': io.BytesIO(tfds_builders.png(pixels))}

    Builder.archives = archives  # pyright: ignore
    return Builder


def _contents(path: pathlib.Path, wanted: list[str]) -> dict[str, bytes]:
    """Reads files of an archive into memory, by name without folder; nothing is unpacked to the disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, 'r|gz') as archive:
            for member in archive:
                name = pathlib.PurePosixPath(member.name).name
                file = archive.extractfile(member) if name in wanted and member.isfile() else None
                if file is not None:
                    found[name] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f'{path} is damaged ({error}): remove it and fetch it again.') from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f'{path} lacks {", ".join(missing)}: remove it and fetch it again.')
    return found
