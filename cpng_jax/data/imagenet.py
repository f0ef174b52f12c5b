"""ImageNet-2012 (Russakovsky et al., 2015), through TFDS without TensorFlow."""

import io
import pathlib
import re
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from cpng_jax.data import tfds_builders
from cpng_jax.data.augment import standard
from cpng_jax.data.dataset import Dataset, Example
from cpng_jax.data.jpeg import decode_random_resized_crop, decode_resize_centre_crop
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


class JpegSource:
    """A split of encoded images; it can be sent to worker processes."""

    def __init__(self, records: Any) -> None:
        """Wraps what `tfds_builders.records` gives, images not decoded."""
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        example = self.records[index]
        return {'image': example['image'], 'label': np.int32(example['label']), 'name': example['file_name']}


def load(config: Config) -> Dataset:
    """Opens ImageNet: 1,281,167 training and 50,000 validation images, which serve as the test split.

    Training images get a random crop of random size and aspect, validation images are scaled to 256/224 of the size
    and cropped in the centre (A.1).

    Args:
      config: `config.data`; `image_size` is the edge of the crops, which the augmentation then applies to.

    Returns:
      The `Dataset`.

    Raises:
      UserError: it has not been prepared, is damaged, or Pillow is not installed.
    """
    tfds = tfds_builders.import_tfds()
    builder = tfds_builders.open_builder(NAME, local(config.dir, 'config.data.dir'))
    options = {'decoders': {'image': tfds.decode.SkipDecoding()}}
    size, change = config.image_size, standard(config, channels=3)

    def augment(example: Example, rng: np.random.Generator) -> Example:
        image = decode_random_resized_crop(example['image'], size, rng, name=_text(example['name']))
        return change({'image': image, 'label': example['label']}, rng)

    def prepare(example: Example) -> Example:
        resize = round(size * 256 / 224)
        image = decode_resize_centre_crop(example['image'], resize, size, name=_text(example['name']))
        return {'image': image, 'label': example['label']}

    return Dataset(
        train=JpegSource(tfds_builders.records(builder, 'train', **options)),
        test=JpegSource(tfds_builders.records(builder, 'validation', **options)),
        augment=augment,
        class_names=builder.info.features['label'].names,
        image_shape=(size, size, 3),
        mean=_MEAN,
        std=_STD,
        prepare=prepare,
    )


def _text(name: bytes | str) -> str:
    return name.decode(errors='replace') if isinstance(name, bytes) else str(name)


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
