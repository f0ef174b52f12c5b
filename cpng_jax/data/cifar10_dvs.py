"""CIFAR10-DVS: 10,000 recordings of CIFAR-10 images moved before an event camera, 1,000 of each class.

Source: Li et al. 2017, "CIFAR10-DVS: an event-stream dataset for object classification".
"""

import hashlib
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging

from cpng_jax.data import tfds_builders
from cpng_jax.data.aedat import SENSOR, read_aedat
from cpng_jax.data.dataset import ArraySource, Dataset, Example, Subset
from cpng_jax.data.entry import EVENTS, Entry, event_frames
from cpng_jax.data.events import Events, cached_frames, random_shift, units
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.paths import local

_NAME, _VERSION = 'cifar10_dvs', '1.0.0'
_ARTICLE = 'https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671'
# By the number of a file: for programs, and for browsers; to a program the latter answers with nothing.
_FILES, _FOR_BROWSERS = 'https://api.figshare.com/v2/file/download/', 'https://ndownloader.figshare.com/files/'
# class: number of its archive at figshare, and its MD5 checksum as SpikingJelly's loader lists it
_ARCHIVES = {
    'airplane': ('7712788', '0afd5c4bf9ae06af762a77b180354fdd'),
    'automobile': ('7712791', '8438dfeba3bc970c94962d995b1b9bdd'),
    'bird': ('7712794', 'a9c207c91c55b9dc2002dc21c684d785'),
    'cat': ('7712812', '52c63c677c2b15fa5146a8daf4d56687'),
    'deer': ('7712815', 'b6bf21f6c04d21ba4e23fc3e36c8a4a3'),
    'dog': ('7712818', 'f379ebdf6703d16e0a690782e62639c3'),
    'frog': ('7712842', 'cad6ed91214b1c7388a5f6ee56d08803'),
    'horse': ('7712851', 'e7cbbf77bec584ffbf913f00e682782a'),
    'ship': ('7712836', '41c7bd7d6b251be82557c6cce9a7d5c9'),
    'truck': ('7712839', '89f3922fd147d9aeff89e76a2b0b70a7'),
}
_RECORDINGS = 1000
# The sensor sends at most a million events of 8 bytes a second, and a recording lasts 1.3 seconds.
_LARGEST_RECORDING = 16 << 20
_SPLIT_SEED = 0


def prepare(data_dir: pathlib.Path) -> None:
    """Turns the ten archives into a TFDS data set of ArrayRecord files; does nothing if that has been done.

    A split for each class holds its recordings, as the bytes of their AEDAT files, in the order of their numbers.
    One process at a time: what an earlier one has left unfinished is removed.

    Args:
      data_dir: the archives lie in its folder `downloads/manual`; the data set goes to `cifar10_dvs`.

    Raises:
      UserError: an archive is missing or cannot be right, or the data set cannot be written.
    """
    if tfds_builders.prepared_folder(_NAME, data_dir):
        return
    tfds = tfds_builders.import_tfds()
    manual = tfds_builders.manual_folder(data_dir)
    archives = {name: manual / f'{name}.zip' for name in _ARCHIVES}
    missing = [f'{name}.zip ({_FILES}{_ARCHIVES[name][0]})' for name, path in archives.items() if not path.is_file()]
    if missing:
        raise UserError(
            f'CIFAR10-DVS lacks {", ".join(missing)}: download into {manual}, with a browser also from {_ARTICLE} or, '
            f'with the same numbers, from {_FOR_BROWSERS}, which answers curl and wget with an empty file.'
        )
    # All are looked at before the first is unpacked, since that takes minutes.
    members = {name: _members(path) for name, path in archives.items()}
    for name, path in archives.items():
        _compare(path, _ARCHIVES[name][1])
    # Without shuffling, TFDS sorts a split by its keys, here the numbers.
    features = tfds.features.FeaturesDict(
        {'aedat': tfds.features.Tensor(shape=(), dtype=np.object_), 'number': np.int32}
    )

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
        name = _NAME
        archives = ()  # none that TFDS would fetch
        VERSION = tfds.core.Version(_VERSION)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=features, homepage=_ARTICLE, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {name: self._generate_examples(archives[name], members[name]) for name in archives}

        def _generate_examples(self, path: pathlib.Path, numbers: dict[int, str]) -> Iterator[tuple[int, Example]]:
            for number, data in _read(path, numbers):
                yield number, {'aedat': data, 'number': number}

    tfds_builders.write(Builder, data_dir)


def load(config: Config) -> Dataset:
    """Opens the recordings as frames; they are integrated at the first use, in some minutes, and then kept.

    The split 'fixed' tests on the last tenth of each class in the order of the recordings' numbers, 'random' on a
    tenth of each class that was drawn once and for all.

    Args:
      config: `config.data`.

    Returns:
      The `Dataset`; its images are frames of events, uint8 `[T, size, size, 2]`, read from the file as needed.

    Raises:
      UserError: the data set is not there, the frames are larger than the sensor or cannot be written.
    """
    if config.event_size > SENSOR:
        raise UserError(f'config.data.event_size is {config.event_size}, expected at most the {SENSOR} of the sensor.')
    folder, counts, recordings = _open(local(config.dir, 'config.data.dir'))
    frames = cached_frames(
        # Beside the recordings they come from, so that they go when those are made anew.
        folder / f'frames-T{config.time_steps}-{config.slicing}-{config.event_size}.npy',
        sum(counts),
        recordings,
        time_steps=config.time_steps,
        slicing=config.slicing,
        size=(config.event_size, config.event_size),
        sensor=(SENSOR, SENSOR),
        scale=config.frame_scale,
    )
    recorded = ArraySource(frames, np.repeat(np.arange(len(counts)), counts))
    train, test = split_indices(counts, config.split)
    mean, std = units(config.frame_scale)
    return Dataset(
        train=Subset(recorded, train),
        test=Subset(recorded, test),
        augment=random_shift(config),
        class_names=list(_ARCHIVES),
        image_shape=frames.shape[1:],
        mean=mean,
        std=std,
    )


ENTRY = Entry(load, event_frames(len(_ARCHIVES)), ('dir', 'split', *EVENTS), prepare)


def split_indices(counts: list[int], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Divides the recordings of each class nine to one.

    Args:
      counts: recordings of each class.
      split: 'fixed': the last tenth of each class is for the test; 'random': a tenth drawn once and for all.

    Returns:
      Indices of the recordings for training and for the test, the classes lying one after the other.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    train, test = [], []
    for first, count in zip(np.cumsum([0, *counts]), counts, strict=False):
        order = first + (rng.permutation(count) if split == 'random' else np.arange(count))
        tested = -(-count // 10)
        train.append(np.sort(order[: count - tested]))
        test.append(np.sort(order[count - tested :]))
    return np.concatenate(train), np.concatenate(test)


def _open(data_dir: pathlib.Path) -> tuple[pathlib.Path, list[int], Callable[[], Iterator[Events]]]:
    """Returns the folder, the number of recordings of each class, and a function that reads them class by class."""
    builder = tfds_builders.open_builder(_NAME, data_dir)
    folder = pathlib.Path(builder.data_path)
    damaged = f'{folder} is damaged: remove it and run python -m cpng_jax.data.prepare {_NAME} again.'
    try:
        counts = [builder.info.splits[name].num_examples for name in _ARCHIVES]
    except KeyError as error:
        raise UserError(damaged) from error

    def recordings() -> Iterator[Events]:
        logging.info('Integrating the events of CIFAR10-DVS to frames; this is done once.')
        for name in _ARCHIVES:
            source = tfds_builders.records(builder, name)
            try:
                for example in source:
                    yield read_aedat(example['aedat'], f'recording {example["number"]} of {name} in {folder}')
            except (OSError, ValueError, RuntimeError) as error:
                raise UserError(damaged) from error

    return folder, counts, recordings


def _members(path: pathlib.Path) -> dict[int, str]:
    """Lists the recordings of an archive by number, after a look at what it says of them."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f'{path} is not a whole zip archive ({error}): download it again.') from error
    pattern = re.compile(rf'(?:.*/)?cifar10_{path.stem}_(\d{{1,6}})\.aedat')
    recordings: dict[int, str] = {}
    for info in infos:
        parts = info.filename.replace('\\', '/').split('/')
        if '..' in parts or not parts[0] or ':' in parts[0]:
            raise UserError(f'{path} is not to be trusted: its member {info.filename!r} leads out of the archive.')
        match = pattern.fullmatch(info.filename)
        if not match:
            continue
        if info.file_size > _LARGEST_RECORDING or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(
                f'{path} is not to be trusted: its member {info.filename!r} unpacks to {info.file_size} bytes '
                f'by method {info.compress_type}, expected at most {_LARGEST_RECORDING} by method 0 or 8.'
            )
        number = int(match[1])
        if number in recordings:
            raise UserError(f'{path} holds recording {number} twice: {recordings[number]!r} and {info.filename!r}.')
        recordings[number] = info.filename
    if not 2 <= len(recordings) <= _RECORDINGS:
        raise UserError(
            f'{path} holds {len(recordings)} recordings named like cifar10_{path.stem}_0.aedat, expected {_RECORDINGS}.'
        )
    return recordings


def _compare(path: pathlib.Path, published: str) -> None:
    """Says so if an archive is not the one that was published; whatever it holds is checked all the same."""
    with path.open('rb') as file:
        found = hashlib.file_digest(file, 'md5').hexdigest()
    if found != published:
        logging.warning('%s is not the published archive: its MD5 is %s, expected %s.', path, found, published)


def _read(path: pathlib.Path, numbers: dict[int, str]) -> Iterator[tuple[int, bytes]]:
    """Yields number and bytes of each recording, which has been read on trial; nothing is unpacked to the disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            for number, member in numbers.items():
                with archive.open(member) as file:
                    # Never more than the directory says, which has been checked; a false length fails the checksum.
                    data = file.read(_LARGEST_RECORDING)
                read_aedat(data, f'{member} in {path}')
                yield number, data
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f'{path} is damaged ({error}): download it again.') from error
