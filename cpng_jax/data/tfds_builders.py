"""TFDS data sets made and read without TensorFlow.

TFDS reads ArrayRecord files without TensorFlow, but the builders it ships need it to make them. The builders here are
subclasses of those that only read the archives in another way, so what they write are the genuine data sets.
"""

import functools
import hashlib
import io
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from cpng_jax.data.kept import kept
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.lock import held


class Archive(NamedTuple):
    """A file that a data set is made from.

    Attributes:
      file: its name.
      source: where to get it.
      size: in bytes.
      sha256: of its contents, hexadecimal.
      fetched: whether `source` can be downloaded from without an account.
    """

    file: str
    source: str
    size: int
    sha256: str
    fetched: bool = True


def import_tfds() -> Any:
    """Imports tensorflow_datasets.

    Returns:
      The module.

    Raises:
      UserError: it is not installed.
    """
    try:
        import importlib_resources  # noqa: F401  TFDS needs it without saying so
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f'This data set needs two packages, one of which is missing ({error}): '
            'pip install tensorflow-datasets importlib_resources'
        ) from error
    return tensorflow_datasets


def manual_folder(data_dir: pathlib.Path) -> pathlib.Path:
    """Returns where TFDS looks for archives that the user has placed."""
    return data_dir / 'downloads' / 'manual'


def verify(path: pathlib.Path, archive: Archive) -> None:
    """Compares an archive with what was published, with a progress bar for the large ones.

    Args:
      path: of the file.
      archive: what it should be.

    Raises:
      UserError: size or checksum differ.
    """
    size = path.stat().st_size
    wrong, instead = f'{path} is not the published archive', f'Remove it and fetch it again from {archive.source}.'
    if size != archive.size:
        raise UserError(f'{wrong}: it has {size:,} bytes, expected {archive.size:,}. {instead}')
    from rich.progress import Progress

    digest = hashlib.sha256()
    with Progress(transient=True) as progress, path.open('rb') as file:
        task = progress.add_task(f'checking {path.name}', total=size)
        while block := file.read(1 << 24):
            digest.update(block)
            progress.advance(task, len(block))
    if digest.hexdigest() != archive.sha256:
        raise UserError(f'{wrong}: its SHA-256 is {digest.hexdigest()}, expected {archive.sha256}. {instead}')


def prepared_folder(name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
    """Finds the newest prepared version of a data set: `data_dir/name/version`, or None."""
    versions = [folder for folder in (data_dir / name).glob('[0-9]*.[0-9]*.[0-9]*') if folder.is_dir()]
    number = lambda folder: [int(part) if part.isdigit() else -1 for part in folder.name.split('.')]
    return max(versions, key=number, default=None)


def write(
    builder_class: Any, data_dir: pathlib.Path, *, place: pathlib.Path | None = None, otherwise: str = ''
) -> None:
    """Makes a data set; what an earlier attempt has left unfinished is removed first.

    TFDS writes into a folder whose name begins with `incomplete` and renames it at the end, so a data set is there as
    a whole or not at all.

    Args:
      builder_class: of TFDS.
      data_dir: where data sets lie.
      place: where a user puts what cannot be downloaded, if not in `manual_folder`.
      otherwise: what else a user can do where there is no download, a sentence.

    Raises:
      UserError: an archive cannot be downloaded or is not the published one, the disk cannot be written to, or another
        process is making the same data set.
    """
    tfds = import_tfds()
    no_download = functools.partial(_no_download, builder_class, place or manual_folder(data_dir), otherwise=otherwise)
    config = tfds.download.DownloadConfig(manual_dir=manual_folder(data_dir), try_download_gcs=False)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        name = builder_class.name
        with held(data_dir, f'The preparation of {name}', file_name=f'.{name}.lock'):
            _reach(builder_class.archives, data_dir)
            for unfinished in (data_dir / name).glob('incomplete.*'):
                shutil.rmtree(unfinished)
            builder = builder_class(data_dir=data_dir, file_format='array_record')
            builder.download_and_prepare(download_dir=data_dir / 'downloads', download_config=config)
    except UserError:
        raise
    except tfds.download.DownloadError as error:
        raise no_download(error) from error
    except OSError as error:
        # requests reports a network that is not there as an OSError too, without a file.
        if error.filename is None and error.strerror is None:
            raise no_download(error) from error
        raise UserError(f'Cannot write {builder_class.name} to {data_dir}: {error.strerror or error}.') from error
    except Exception as error:
        if type(error).__name__ == 'NonMatchingChecksumError':
            raise UserError(f'The download of {builder_class.name} is damaged, try again: {error}') from error
        raise


def _reach(archives: tuple[Archive, ...], data_dir: pathlib.Path) -> None:
    """Knocks at the servers, since TFDS tries for minutes before it finds that there is no network."""
    import requests

    # TFDS writes an INFO file next to what it has downloaded as a whole.
    cached = any((data_dir / 'downloads').rglob('*.INFO'))
    for archive in archives:
        if archive.fetched and not cached and not (manual_folder(data_dir) / archive.file).exists():
            requests.head(archive.source, timeout=20)


def _no_download(builder_class: Any, place: pathlib.Path, error: Exception, *, otherwise: str) -> UserError:
    files = ' and '.join(archive.source for archive in builder_class.archives if archive.fetched)
    reason = str(error).splitlines()[0][:200]
    return UserError(
        f'Cannot download {builder_class.name} ({reason}). {otherwise}Fetch {files} on a machine that can, '
        f'place it in {place} and run this command again.'
    )


def url_infos(archives: tuple[Archive, ...]) -> Mapping[str, Any]:
    """Writes checksums as TFDS has them, by address."""
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.utils import Size

    return {
        archive.source: UrlInfo(size=Size(archive.size), checksum=archive.sha256, filename=archive.file)
        for archive in archives
    }


def open_builder(name: str, data_dir: pathlib.Path) -> Any:
    """Opens a prepared data set.

    Args:
      name: of the data set.
      data_dir: where data sets lie.

    Returns:
      A TFDS builder that can read.

    Raises:
      UserError: it is not there, was prepared as TFRecord, or is damaged.
    """
    command = f'python -m cpng_jax.data.prepare {name} --data_dir={data_dir}'
    folder = prepared_folder(name, data_dir)
    if folder is None:
        raise UserError(f'{name} is not in {data_dir}: run {command}')
    return open_folder(folder, f'run {command}')


def open_folder(folder: pathlib.Path, advice: str) -> Any:
    """Opens a prepared data set by its folder.

    Args:
      folder: of one version of it.
      advice: how to make it again, for messages.

    Returns:
      A TFDS builder that can read.

    Raises:
      UserError: it was prepared as TFRecord, or is damaged.
    """
    try:
        builder = import_tfds().builder_from_directory(folder)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged description makes TFDS raise
        raise UserError(f'{folder} cannot be read ({error}): remove it and {advice}') from error
    if builder.info.file_format.value != 'array_record':
        raise UserError(
            f'{folder} was prepared as {builder.info.file_format.value}, which needs TensorFlow and cannot be read '
            f'at random; ArrayRecord is needed. Move it away, or choose another --config.data.dir, and {advice}'
        )
    return builder


def records(builder: Any, split: str, **options: Any) -> Any:
    """Opens a split for random access.

    Args:
      builder: from `open_builder`.
      split: its name.
      **options: of TFDS's `as_data_source`.

    Returns:
      A sequence of examples.

    Raises:
      UserError: the split is missing or its files are damaged.
    """
    try:
        return builder.as_data_source(split=split, **options)
    except Exception as error:
        raise UserError(
            f'The split {split!r} in {builder.data_path} cannot be read ({error}): '
            'remove the folder and prepare it again.'
        ) from error


def read_all(source: Any) -> Iterator[Any]:
    """Yields the examples of a split in order, in blocks, which is much faster than one by one."""
    block = 1024
    for start in range(0, len(source), block):
        yield from source.__getitems__(list(range(start, min(start + block, len(source)))))


def read_images(
    builder: Any, split: str, shape: tuple[int, ...], place: Callable[[Mapping[str, Any]], bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a split of images of one size into memory.

    It is decoded once, which takes some 0.2 ms an image, and kept beside its records where these can be written to.

    Args:
      builder: from `open_builder`.
      split: its name.
      shape: of an image, `(H, W, C)`.
      place: what to sort by, of an example whose image is still encoded: an order that depends on no version of TFDS,
        which shuffles what it writes.

    Returns:
      Images, uint8 `[N, H, W, C]`, and labels, int32 `[N]`.

    Raises:
      UserError: the split is missing or damaged.
    """
    source = records(builder, split, decoders={'image': import_tfds().decode.SkipDecoding()})

    def right(images: np.ndarray, labels: np.ndarray) -> bool:
        found = (images.shape, images.dtype, labels.shape, labels.dtype)
        return found == ((len(source), *shape), np.uint8, (len(source),), np.int32)

    path = pathlib.Path(builder.data_path) / f'decoded-{split}.npz'
    found = kept(path, lambda: _decoded(source, shape, place), right)
    return found['images'], found['labels']


def _decoded(source: Any, shape: tuple[int, ...], place: Callable[[Mapping[str, Any]], bytes]) -> dict[str, np.ndarray]:
    from PIL import Image

    images, labels, places = np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int32), []
    for index, example in enumerate(read_all(source)):
        places.append(place(example))
        images[index] = np.asarray(Image.open(io.BytesIO(example['image']))).reshape(shape)
        labels[index] = example['label']
    order = np.argsort(np.array(places))
    return {'images': images[order], 'labels': labels[order]}


def png(pixels: np.ndarray) -> bytes:
    """Encodes an image, uint8 `[H, W, 1 or 3]`, without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, 'PNG', compress_level=1)
    return buffer.getvalue()
