"""Image classification data sets of TFDS by their names there, prepared as ArrayRecord: `tfds:NAME`."""

import functools
import pathlib
import re
from typing import Any, NamedTuple

from cpng_jax.data import tfds_builders
from cpng_jax.data.dataset import Dataset
from cpng_jax.data.encoded_records import EncodedRecords
from cpng_jax.data.entry import PHOTOGRAPHS, Entry, Kind, photographs
from cpng_jax.data.photographs import make_dataset
from cpng_jax.runtime import streams
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.paths import local

PREFIX = 'tfds:'
ANY = f'{PREFIX}NAME'
# As TFDS writes them: NAME, NAME/config, NAME:1.0.0, NAME/config:1.0.0.
_NAME = re.compile(PREFIX + r'(?P<name>\w+)(/(?P<config>[\w.+-]*\w))?(:(?P<version>\d+\.\d+\.\d+))?')


class Found(NamedTuple):
    """A data set that is there, and what of it is used.

    Attributes:
      builder: of TFDS.
      image: name of the feature that is the image.
      label: name of the feature that is the label.
      class_names: in the order of the labels.
    """

    builder: Any
    image: str
    label: str
    class_names: list[str]


def is_name(name: str) -> bool:
    """Says whether a text is `tfds:NAME`, with configuration and version as TFDS writes them."""
    return _NAME.fullmatch(name) is not None


def entry(name: str) -> Entry:
    """Makes the line that a data set of TFDS would have in the table.

    Args:
      name: `tfds:NAME`, maybe with configuration and version.

    Returns:
      The `Entry`.
    """
    return Entry(functools.partial(_load, name), functools.partial(_kind, name), ('dir', *PHOTOGRAPHS))


def _load(name: str, config: Config) -> Dataset:
    found = _find(name, config)
    train = _records(found, 'train')
    if train is None:
        raise _unusable(found.builder, f'no labelled split train, but {", ".join(found.builder.info.splits)}')
    test = _records(found, 'test')
    if test is None:
        test = _records(found, 'validation')
        if test is None:
            raise _unusable(
                found.builder, f'neither test nor validation with labels, but {", ".join(found.builder.info.splits)}'
            )
        streams.note(f'{name} has no labelled split test: the split validation serves as the test.')
    return make_dataset(config, train, test, found.class_names, pathlib.Path(found.builder.data_path))


def _kind(name: str, config: Config) -> Kind:
    return photographs(len(_find(name, config).class_names))(config)


def _find(name: str, config: Config) -> Found:
    """Opens what has been prepared, by its description alone."""
    data_dir = local(config.dir, 'config.data.dir')
    builder = tfds_builders.open_folder(_folder(name, data_dir), 'prepare it again as ArrayRecord (docs/data.md).')
    features = tfds_builders.import_tfds().features
    keys = builder.info.supervised_keys or ()
    image, label = keys if len(keys) == 2 and all(isinstance(key, str) for key in keys) else ('image', 'label')
    image, label = _feature(builder, features.Image, image), _feature(builder, features.ClassLabel, label)
    pixels, classes = builder.info.features[image].np_dtype, builder.info.features[label].num_classes
    if pixels not in ('uint8', 'uint16'):
        raise _unusable(builder, f'images of {pixels}, expected uint8')
    if not classes or classes < 2:
        raise _unusable(builder, f'a label {label!r} of {classes or "unknown"} classes, expected at least 2')
    return Found(builder, image, label, list(builder.info.features[label].names))


def _folder(name: str, data_dir: pathlib.Path) -> pathlib.Path:
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f'config.data.name is {name!r}, expected tfds:NAME, tfds:NAME/config or tfds:NAME:1.0.0.')
    inside = '/'.join(filter(None, (match['name'], match['config'])))
    version = match['version']
    folder = data_dir / inside / version if version else tfds_builders.prepared_folder(inside, data_dir)
    if folder is not None and folder.is_dir():
        return folder
    paths = [
        path.relative_to(data_dir) for deep in ('*', '*/*') for path in data_dir.glob(f'{deep}/*/dataset_info.json')
    ]
    there = sorted({f'{PREFIX}{path.parent.parent}:{path.parent.name}' for path in paths})
    raise UserError(
        f'config.data.name is {name!r}, which is not in {data_dir}'
        + (f'; there are {", ".join(there[:8])}. ' if there else '. ')
        + 'TFDS prepares it, for most data sets with TensorFlow at hand, by: python -c "import tensorflow_datasets; '
        f'tensorflow_datasets.data_source({name.removeprefix(PREFIX)!r}, data_dir={str(data_dir)!r})"'
    )


def _feature(builder: Any, kind: Any, preferred: str) -> str:
    """The name of the feature of a kind: the preferred one, or else the only one."""
    features = builder.info.features
    by_name = isinstance(features, tfds_builders.import_tfds().features.FeaturesDict)
    known = dict(sorted(features.items())) if by_name else {}
    names = [key for key, feature in known.items() if isinstance(feature, kind)]
    if preferred in names:
        return preferred
    if len(names) != 1:
        listed = ', '.join(f'{key} ({type(feature).__name__})' for key, feature in known.items()) or str(features)
        which = f'the {kind.__name__} features {" and ".join(names)}' if names else f'no {kind.__name__} feature'
        raise _unusable(builder, f'{which}, expected one; its features are {listed}')
    return names[0]


def _records(found: Found, split: str) -> EncodedRecords | None:
    """A split, unless it is missing, empty or, as TFDS marks by -1, without labels."""
    if split not in found.builder.info.splits:
        return None
    records = EncodedRecords(found.builder, split, image=found.image, label=found.label)
    return records if len(records) and records[0]['label'] >= 0 else None


def _unusable(builder: Any, what: str) -> UserError:
    return UserError(
        f'{builder.data_path} is no data set for image classification that can be used here: it has {what}.'
    )
