"""Fashion-MNIST (Xiao et al., 2017), MNIST and KMNIST: four files of one format, through TFDS without TensorFlow.

Each data set has 60,000 training and 10,000 test images of 28 x 28 grey pixels in ten classes, in files named alike.
"""

import functools
import gzip
import hashlib
import io
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from cpng_jax.data import tfds_builders
from cpng_jax.data.arrays import from_arrays
from cpng_jax.data.dataset import Dataset
from cpng_jax.data.entry import IMAGES, Entry, Kind
from cpng_jax.data.tfds_builders import Archive
from cpng_jax.runtime import distributed, streams
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.paths import local

SHAPE = (28, 28, 1)
_CLASSES = 10
_IMAGES, _LABELS = 'images-idx3-ubyte', 'labels-idx1-ubyte'
_SPLITS = {'train': ('train', 60_000), 'test': ('t10k', 10_000)}
# What the first four bytes say: unsigned bytes, with so many axes.
_MAGIC = {_IMAGES: 0x803, _LABELS: 0x801}


class IdxFile(NamedTuple):
    """One of the four files of a data set.

    Attributes:
      split: 'train' or 'test'.
      kind: `images-idx3-ubyte` or `labels-idx1-ubyte`.
      count: examples in it.
      archive: as it is published, with gzip.
      contents: SHA-256 of what is in it, hexadecimal; '' where nobody has published that.
    """

    split: str
    kind: str
    count: int
    archive: Archive
    contents: str = ''


class Idx(NamedTuple):
    """A data set of idx files.

    Attributes:
      files: the four.
      package: name and folder of the Debian package that has them.
    """

    files: tuple[IdxFile, ...]
    package: tuple[str, pathlib.Path] | None = None


def _files(server: str, *facts: tuple[int, str, str]) -> tuple[IdxFile, ...]:
    """Names the files: size and SHA-256 of each as TFDS lists them, and SHA-256 of what is in it."""
    names = [(split, prefix, kind, count) for split, (prefix, count) in _SPLITS.items() for kind in _MAGIC]
    return tuple(
        IdxFile(split, kind, count, Archive(f'{prefix}-{kind}.gz', f'{server}{prefix}-{kind}.gz', size, sha), contents)
        for (split, prefix, kind, count), (size, sha, contents) in zip(names, facts, strict=True)
    )


# fmt: off
DATASETS = {
    'fashion_mnist': Idx(_files(
        'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/',
        (26421880, '3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84',
                   'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888'),
        (29515, 'a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845',
                'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9'),
        (4422102, '346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073',
                  '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b'),
        (5148, '67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5',
               '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34'),
    ), ('dataset-fashion-mnist', pathlib.Path('/usr/share/datasets/fashion-mnist'))),
    'mnist': Idx(_files(
        'https://storage.googleapis.com/cvdf-datasets/mnist/',
        (9912422, '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609',
                  'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db'),
        (28881, '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c',
                '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5'),
        (1648877, '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6',
                  '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7'),
        (4542, 'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6',
               'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2'),
    )),
    'kmnist': Idx(_files(
        'http://codh.rois.ac.jp/kmnist/dataset/kmnist/',
        (18165135, '51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4', ''),
        (29497, 'e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17', ''),
        (3041136, 'edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5', ''),
        (5120, '20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c', ''),
    )),
}
# fmt: on


def load(config: Config) -> Dataset:
    """Reads a data set into memory: 60,000 training and 10,000 test images of 28 x 28 pixels.

    Where it has not been prepared and its files are at hand, placed or from the Debian package, that is done first.

    Args:
      config: `config.data`; `name` is a key of `DATASETS`.

    Returns:
      The `Dataset`.

    Raises:
      UserError: it has not been prepared and a file is missing or wrong, or it is damaged.
    """
    data_dir = local(config.dir, 'config.data.dir')
    distributed.on_primary(lambda: _prepare_what_is_at_hand(config.name, data_dir))
    builder = tfds_builders.open_builder(config.name, data_dir)
    train, test = (tfds_builders.read_images(builder, split, SHAPE, _digest) for split in ('train', 'test'))
    return from_arrays(config, train, test, class_names=builder.info.features['label'].names)


def _prepare_what_is_at_hand(name: str, data_dir: pathlib.Path) -> None:
    """Prepares a data set, unless that has been done, or something would have to be downloaded."""
    source, manual = DATASETS[name], tfds_builders.manual_folder(data_dir) / name
    if tfds_builders.prepared_folder(name, data_dir) or not all(_find(file, manual, source) for file in source.files):
        return
    streams.note(f'preparing {name} in {data_dir / name}, which is done once.')
    prepare(name, data_dir)


def _digest(example: Mapping[str, Any]) -> bytes:
    """What an example is sorted by: TFDS keeps no number of it, and by its pixels the dark ones would come first."""
    return hashlib.blake2b(example['image'], digest_size=16, salt=bytes([example['label']])).digest()


def prepare(name: str, data_dir: pathlib.Path, source: Idx | None = None) -> None:
    """Makes a data set from its four files: those that were placed, those of a Debian package, or downloads.

    Args:
      name: a key of `DATASETS`.
      data_dir: where data sets lie; files are placed in its folder `downloads/manual/NAME`, with or without gzip.
      source: what it is made from, if not the published files.

    Raises:
      UserError: a file cannot be had or is not the published one, or the disk cannot be written to.
    """
    source = source or DATASETS[name]
    manual = tfds_builders.manual_folder(data_dir) / name
    found = {file: path for file in source.files if (path := _find(file, manual, source))}
    # All are looked at before anything is downloaded.
    contents = {file: read(path, file) for file, path in found.items()}
    hint = ''
    if source.package:
        hint = f'On Debian and Ubuntu, apt-get install {source.package[0]} has the files: run this command again then. '
    tfds_builders.write(_builder_class(name, source, contents), data_dir, place=manual, otherwise=hint)


ENTRIES = {
    name: Entry(load, lambda _: Kind(SHAPE, _CLASSES), ('dir', *IMAGES), functools.partial(prepare, name))
    for name in DATASETS
}


def _find(file: IdxFile, manual: pathlib.Path, source: Idx) -> pathlib.Path | None:
    """Where a file lies, if it does."""
    folders = [manual, *([source.package[1]] if source.package else [])]
    names = [file.archive.file, file.archive.file.removesuffix('.gz')]
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def read(path: pathlib.Path, file: IdxFile) -> np.ndarray:
    """Reads an idx file, with or without gzip, and compares it with the published one.

    Args:
      path: where it lies.
      file: what it should be.

    Returns:
      Images, uint8 `[N, 28, 28, 1]`, or labels, uint8 `[N]`.

    Raises:
      UserError: it cannot be read, is damaged, cut off, another file, or not the published one.
    """
    again = f'Remove it and fetch it again from {file.archive.source}.'
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f'Cannot read {path}: {error.strerror}.') from error
    shape = (file.count, *(SHAPE if file.kind == _IMAGES else ()))
    contents = _unpacked(data, path, again, most=16 + int(np.prod(shape)))
    array = _parsed(contents, path, file, again).reshape(shape)
    if file.contents:
        what, digest, expected = 'what is in it', hashlib.sha256(contents).hexdigest(), file.contents
    else:
        what, digest, expected = 'the file', hashlib.sha256(data).hexdigest(), file.archive.sha256
    if digest != expected:
        raise UserError(
            f'{path} is not the published {file.archive.file}: the SHA-256 of {what} is {digest}, expected {expected}. '
            f'Is it that of another data set? {again}'
        )
    return array


def _unpacked(data: bytes, path: pathlib.Path, again: str, *, most: int) -> bytes:
    """The bytes without gzip, and no more of them than there can be."""
    if data[:2] != b'\x1f\x8b':
        return data
    try:
        with gzip.open(io.BytesIO(data)) as file:
            # One more than right, so that the checksum at the end is read, and a file that is too long shows.
            return file.read(most + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f'{path} is damaged ({error}). {again}') from error


def _parsed(contents: bytes, path: pathlib.Path, file: IdxFile, again: str) -> np.ndarray:
    """The numbers behind the header, which has to announce what the file should hold."""
    axes = [file.count, *(SHAPE[:2] if file.kind == _IMAGES else ())]
    head, length = 4 * (1 + len(axes)), int(np.prod(axes))
    header = np.frombuffer(contents[: len(contents[:head]) // 4 * 4], '>u4')
    if not len(header) or header[0] not in _MAGIC.values():
        raise UserError(f'{path} is no idx file of bytes: it begins with {contents[:4].hex() or "nothing"}. {again}')
    if header[0] != _MAGIC[file.kind]:
        other = next(kind for kind, magic in _MAGIC.items() if magic == header[0])
        raise UserError(
            f'{path} holds {other.partition("-")[0]}, expected {file.kind.partition("-")[0]}: were files mixed up? '
            f'{again}'
        )
    if list(header[1:]) != axes[: len(header) - 1] or len(header) < 1 + len(axes):
        told = ' x '.join(map(str, header[1:]))
        raise UserError(f'{path} announces {told}, expected {" x ".join(map(str, axes))}: were files mixed up? {again}')
    if len(contents) != head + length:
        what = 'is cut off: it holds' if len(contents) < head + length else 'is too long: it holds at least'
        raise UserError(f'{path} {what} {len(contents):,} bytes, expected {head + length:,}. {again}')
    return np.frombuffer(contents, np.uint8, offset=head)


def _builder_class(name: str, source: Idx, contents: Mapping[IdxFile, np.ndarray]) -> Any:
    """The TFDS builder that does without TensorFlow, and fetches what is not at hand."""
    genuine = tfds_builders.import_tfds().builder_cls(name)
    to_fetch = tuple(file.archive for file in source.files if file not in contents)
    data_set, checksums = name, tfds_builders.url_infos(to_fetch)

    class Builder(genuine, skip_registration=True):  # pyright: ignore
        name = data_set
        url_infos = checksums
        archives = to_fetch

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            fetched = {
                file: read(pathlib.Path(dl_manager.download(file.archive.source)), file)
                for file in source.files
                if file not in contents
            }
            arrays = {(file.split, file.kind): array for file, array in {**contents, **fetched}.items()}
            return {split: self._generate_examples(arrays[split, _IMAGES], arrays[split, _LABELS]) for split in _SPLITS}

        def _generate_examples(  # pyright: ignore
            self, images: np.ndarray, labels: np.ndarray
        ) -> Iterator[tuple[int, Any]]:
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield index, {'image': io.BytesIO(tfds_builders.png(image)), 'label': int(label)}

    return Builder
