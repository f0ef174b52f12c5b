"""A folder of images, one folder for each class: `train/CLASS/*.png` and `test/CLASS/*.png`."""

import concurrent.futures
import hashlib
import itertools
import os
import pathlib
from typing import NamedTuple

import numpy as np

from cpng_jax.data.dataset import Dataset, Example
from cpng_jax.data.entry import PHOTOGRAPHS, Entry, Kind, photographs
from cpng_jax.data.jpeg import decode_resize, import_pillow
from cpng_jax.data.kept import kept
from cpng_jax.data.photographs import make_dataset
from cpng_jax.runtime import streams
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.paths import local

_ENDINGS = ('.png', '.jpg', '.jpeg')
_LAYOUT = f'train/CLASS/* and test/CLASS/*, images whose names end in {", ".join(_ENDINGS)}'
# What is passed over without a word, next to names that begin with a dot.
_STRAY = ('thumbs.db', 'desktop.ini', 'readme')
# From so many images on, what takes long is said.
_MANY = 2000
# Where a folder keeps what was found out about it.
_KEPT = '.cpng_jax'


class Split(NamedTuple):
    """What is in the folder of a split.

    Attributes:
      classes: their names, sorted.
      files: paths of the images within the split, in the order of classes, then names.
      labels: of these, int32 `[N]`.
    """

    classes: list[str]
    files: list[str]
    labels: np.ndarray


class FolderSource:
    """A split of image files; it can be sent to worker processes."""

    def __init__(self, folder: pathlib.Path, split: Split) -> None:
        """Names the files of a split that lies in a folder."""
        self.folder, self.files, self.labels = folder, split.files, split.labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        path = self.folder / self.files[index]
        try:
            return {'image': path.read_bytes(), 'label': self.labels[index], 'name': str(path)}
        except OSError as error:
            raise UserError(f'{path} cannot be read: {error.strerror or error}.') from error


def load(config: Config) -> Dataset:
    """Opens the images in `config.dir`; at the first use, and after files came or went, all are decoded on trial.

    Args:
      config: `config.data`; `image_size` and `resize` say how images reach the network (`photographs.py`).

    Returns:
      The `Dataset`; its classes are the names of the folders, sorted.

    Raises:
      UserError: there is no such folder, its classes are not those of a classification, or an image cannot be decoded.
    """
    folder = local(config.dir, 'config.data.dir')
    splits = _splits(folder)
    train, test = (FolderSource(folder / name, split) for name, split in splits.items())
    place = folder / _KEPT / _digest(folder, splits)
    kept(place / 'decoded.npz', lambda: _decoded(folder, train, test))
    return make_dataset(config, train, test, splits['train'].classes, place)


def _kind(config: Config) -> Kind:
    splits = _splits(local(config.dir, 'config.data.dir'))
    return photographs(len(splits['train'].classes))(config)


ENTRY = Entry(load, _kind, ('dir', *PHOTOGRAPHS))


def _splits(folder: pathlib.Path) -> dict[str, Split]:
    """Lists both splits, which must have the same classes, at least two."""
    try:
        if not folder.is_dir():
            raise UserError(f'config.data.dir is {str(folder)!r}, which is not a folder; expected one with {_LAYOUT}.')
        train, test = (_list(_split_folder(folder, name)) for name in ('train', 'test'))
    except OSError as error:
        raise UserError(f'{error.filename or folder} cannot be read: {error.strerror or error}.') from error
    unpaired = sorted({*train.classes} ^ {*test.classes})
    if unpaired:
        has, lacks = ('train', 'test') if unpaired[0] in train.classes else ('test', 'train')
        raise UserError(
            f'{folder / has} has the class {unpaired[0]!r}, which {folder / lacks} lacks: expected the same in both.'
        )
    if len(train.classes) < 2:
        raise UserError(f'{folder / "train"} has one class, {train.classes[0]!r}, expected folders of at least two.')
    return {'train': train, 'test': test}


def _split_folder(folder: pathlib.Path, name: str) -> pathlib.Path:
    if (folder / name).is_dir():
        return folder / name
    advice = ''
    if name == 'test':
        others = [path.name for path in sorted(folder.glob('[vV]al*')) if path.is_dir()]
        advice = f': rename {others[0]} to test' if others else ': move a share of the images of each class there'
    raise UserError(f'{folder} has no folder {name}, expected {_LAYOUT}{advice}.')


def _list(split: pathlib.Path) -> Split:
    """Lists the images of a split; what is neither an image nor known to lie about is told."""
    classes = sorted(entry.name for entry in os.scandir(split) if entry.is_dir() and not entry.name.startswith('.'))
    if not classes:
        raise UserError(f'{split} has no folders, expected one for each class: {_LAYOUT}.')
    files, counts, others = [], [], []
    for name in classes:
        entries = sorted((entry.name, entry.is_file()) for entry in os.scandir(split / name))
        images = [entry for entry, is_file in entries if is_file and _is_image(entry)]
        others += [
            f'{name}/{entry}' for entry, is_file in entries if not ((is_file and _is_image(entry)) or _stray(entry))
        ]
        if not images:
            instead = f'; {others[-1]} is none' if others and others[-1].startswith(f'{name}/') else ''
            raise UserError(f'{split / name} holds no image, expected some {", ".join(_ENDINGS)}{instead}.')
        files += [f'{name}/{image}' for image in images]
        counts.append(len(images))
    if others:
        streams.note(
            f'{len(others)} files or folders in {split} are passed over, since they are no {", ".join(_ENDINGS)}; '
            f'the first is {others[0]}.'
        )
    return Split(classes, files, np.repeat(np.arange(len(classes), dtype=np.int32), counts))


def _is_image(name: str) -> bool:
    return name.lower().endswith(_ENDINGS) and not name.startswith('.')


def _stray(name: str) -> bool:
    return name.startswith('.') or name.lower().startswith(_STRAY)


def _digest(folder: pathlib.Path, splits: dict[str, Split]) -> str:
    """Tells apart folders by the names of their images, and by when these were put there."""
    digest = hashlib.sha256()
    for name, split in splits.items():
        changed = [os.stat(folder / name / label).st_mtime_ns for label in split.classes]
        digest.update(b'\0'.join(map(os.fsencode, [name, *split.files, *map(str, changed)])))
    return digest.hexdigest()[:16]


def _decoded(folder: pathlib.Path, *sources: FolderSource) -> dict[str, np.ndarray]:
    """Decodes all images on trial, and says which cannot be."""
    import_pillow()
    count = sum(map(len, sources))
    if count >= _MANY:
        streams.note(f'looking whether the {count:,} images in {folder} can be decoded; this is done once.')

    def fault(source: FolderSource, index: int) -> UserError | None:
        try:
            example = source[index]
            decode_resize(example['image'], 1, name=example['name'])
        except UserError as error:
            return error
        return None

    faults = []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for source in sources:
            for start in range(0, len(source), _MANY):
                indices = range(start, min(start + _MANY, len(source)))
                faults += filter(None, pool.map(fault, itertools.repeat(source), indices))
    if faults:
        more = f' {len(faults) - 1} more cannot, the last being: {faults[-1]}' if faults[1:] else ''
        raise UserError(f'{faults[0]}{more}')
    return {'count': np.array(count)}
