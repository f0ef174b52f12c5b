"""ImageNet-2012 (Russakovsky et al., 2015), through TFDS without TensorFlow."""

import io
import pathlib
import re
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from cpng_jax.data import tfds_builders
from cpng_jax.data.dataset import Dataset
from cpng_jax.data.encoded_records import EncodedRecords
from cpng_jax.data.entry import PHOTOGRAPHS, Entry, photographs
from cpng_jax.data.photographs import make_dataset
from cpng_jax.data.tfds_builders import Archive
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.paths import local

NAME = 'imagenet2012'
_PAGE = 'https://image-net.org/download-images'
TRAIN_ARCHIVE = 'ILSVRC2012_img_train.tar'
VALIDATION_ARCHIVE = 'ILSVRC2012_img_val.tar'
# As TFDS lists them.
ARCHIVES = (
    Archive(
        TRAIN_ARCHIVE,
        _PAGE,
        147897477120,
        'b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb',
        fetched=False,
    ),
    Archive(
        VALIDATION_ARCHIVE,
        _PAGE,
        6744924160,
        'c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0',
        fetched=False,
    ),
)
# Of the channels of the training images, in units of 0 to 1, as commonly used.
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def load(config: Config) -> Dataset:
    """Opens ImageNet: 1,281,167 training and 50,000 validation images, which serve as the test split.

    Args:
      config: `config.data`; `image_size` and `resize` say how images reach the network (`photographs.py`).

    Returns:
      The `Dataset`.

    Raises:
      UserError: it has not been prepared, is damaged, or Pillow is not installed.
    """
    builder = tfds_builders.open_builder(NAME, local(config.dir, 'config.data.dir'))
    train, test = (EncodedRecords(builder, split, name='file_name') for split in ('train', 'validation'))
    return make_dataset(config, train, test, builder.info.features['label'].names, (_MEAN, _STD))


def prepare(data_dir: pathlib.Path, archives: tuple[Archive, ...] = ARCHIVES) -> None:
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
    tfds_builders.write(builder_class(archives, data_dir), data_dir)


ENTRY = Entry(load, photographs(1000), ('dir', *PHOTOGRAPHS), prepare)


def builder_class(archives: tuple[Archive, ...], data_dir: pathlib.Path) -> Any:
    """Makes the TFDS builder of ImageNet that does without TensorFlow.

    The images are kept as they were published; the few that are CMYK or PNG are converted when they are decoded.

    Args:
      archives: what it is made from.
      data_dir: the archives lie in its folder `downloads/manual`.

    Returns:
      A subclass of the builder in TFDS.
    """
    tfds = tfds_builders.import_tfds()
    genuine = tfds.builder_cls(NAME)
    train, validation = (tfds_builders.manual_folder(data_dir) / archive.file for archive in archives)
    made_from = archives

    class Builder(genuine, skip_registration=True):  # pyright: ignore
        name = NAME
        archives = made_from

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            names = self.info.features['label'].names
            return {
                'train': _train_examples(train, names),
                'validation': _validation_examples(validation, _validation_labels(tfds)),
            }

    return Builder


def _train_examples(path: pathlib.Path, synsets: list[str]) -> Iterator[tuple[str, Any]]:
    """Yields the images of an archive of archives, one for each class."""
    known = set(synsets)
    for class_file, contents in _members(path, path.open('rb')):
        synset = class_file.removesuffix('.tar')
        if synset not in known:
            raise UserError(f'{path} holds {class_file!r}, expected archives named like {synsets[0]}.tar.')
        for name, image in _members(path, contents):
            yield name, {'file_name': name, 'image': io.BytesIO(image.read()), 'label': synset}


def _validation_examples(path: pathlib.Path, labels: list[str]) -> Iterator[tuple[str, Any]]:
    """Yields the validation images; their labels are in the order of the numbers in their names."""
    for name, image in _members(path, path.open('rb')):
        match = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(labels):
            raise UserError(f'{path} holds {name!r}, expected names like ILSVRC2012_val_00000001.JPEG.')
        yield name, {'file_name': name, 'image': io.BytesIO(image.read()), 'label': labels[number - 1]}


def _validation_labels(tfds: Any) -> list[str]:
    """The synsets of the validation images, which come with TFDS."""
    path = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt')
    return path.read_text().split()


def _members(path: pathlib.Path, file: Any) -> Iterator[tuple[str, Any]]:
    """Yields name and contents of the files in an archive, read from front to back; nothing is unpacked to the disk."""
    try:
        with file, tarfile.open(fileobj=file, mode='r|') as archive:
            for member in archive:
                contents = archive.extractfile(member) if member.isfile() else None
                if contents is not None:
                    yield pathlib.PurePosixPath(member.name).name, contents
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f'{path} is damaged ({error}): remove it and fetch it again.') from error
