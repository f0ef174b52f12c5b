"""A data set that a function of the user's makes: `package.module:function`."""

import functools
import importlib
import os
import re
import traceback
import types
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from cpng_jax.data.dataset import Dataset, Source
from cpng_jax.data.entry import Entry
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError, nearest
from cpng_jax.runtime.paths import import_last

_NAME = re.compile(r'(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<function>[^\W\d]\w*)')


def is_name(name: str) -> bool:
    """Says whether a text is `package.module:function`."""
    return _NAME.fullmatch(name) is not None


def entry(name: str) -> Entry:
    """Makes the line that a function would have in the table.

    Args:
      name: `package.module:function`, of a function from `config.data` to a `Dataset`.

    Returns:
      The `Entry`; its function is looked for when the data set is opened.
    """
    return Entry(functools.partial(_load, name))


def _load(name: str, config: Config) -> Dataset:
    function = _function(name)
    try:
        dataset = function(config)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's function may raise
        raise _failure(name, error) from error
    if not isinstance(dataset, Dataset):
        raise _wrong(name, f'returns {_type(dataset)}, expected a cpng_jax.data.Dataset')
    try:
        _check(name, dataset)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise _failure(name, error) from error
    return dataset


def _function(name: str) -> Callable[[Config], Dataset]:
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f'config.data.name is {name!r}, expected package.module:function.')
    module = _import(name, match['module'])
    function = getattr(module, match['function'], None)
    if callable(function):
        return cast(Callable[[Config], Dataset], function)
    where = getattr(module, '__file__', None) or match['module']
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith('_')]
    near = f'; the nearest is {nearest(match["function"], functions)!r}' if functions else ''
    raise UserError(f'config.data.name is {name!r}, but {where} has no function {match["function"]!r}{near}.')


def _import(name: str, module: str) -> types.ModuleType:
    """Imports a module: an installed one, one beside the configuration file, or one in the current folder."""
    here = os.getcwd()
    import_last(here)
    try:
        return importlib.import_module(module)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name and f'{module}.'.startswith(f'{error.name}.'):
            raise UserError(
                f'config.data.name is {name!r}, but there is no module {error.name!r} beside the configuration file, '
                f'in the current folder {here}, or installed: start where it lies, or put that folder on PYTHONPATH.'
            ) from error
        raise _failure(name, error) from error
    except (Exception, SystemExit) as error:
        raise _failure(name, error) from error


def _failure(name: str, error: BaseException) -> UserError:
    """A sentence on what the user's code has raised, with the last line of it that was run."""
    ours = os.path.dirname(__file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _of_user(frame.filename, ours)]
    place = f' in {frames[-1].filename}, line {frames[-1].lineno}' if frames else ''
    text = f': {error}' if str(error) else ''
    return UserError(f'config.data.name is {name!r}, which fails with {type(error).__name__}{place}{text}')


def _of_user(file: str, ours: str) -> bool:
    return not (file.startswith((ours, '<')) or f'{os.sep}site-packages{os.sep}' in file or file == importlib.__file__)


def _check(name: str, dataset: Dataset) -> None:
    """Looks at what is cheap to look at: numbers, and the first example of each split as it reaches the network."""
    shape, classes = tuple(dataset.image_shape), len(dataset.class_names)
    if len(shape) not in (3, 4) or not all(isinstance(edge, int | np.integer) and edge > 0 for edge in shape):
        raise _wrong(name, f'gives image_shape {shape}, expected (H, W, C), or (T, H, W, C) of events')
    if classes < 2 or not all(isinstance(text, str) for text in dataset.class_names):
        raise _wrong(name, f'gives class_names {list(dataset.class_names)[:5]}, expected at least two texts')
    for what, value in (('mean', dataset.mean), ('std', dataset.std)):
        if np.shape(value) != shape[-1:] or not np.isfinite(value).all():
            raise _wrong(name, f'gives {what} {value}, expected a number for each of the {shape[-1]} channels')
    if not np.all(np.asarray(dataset.std) > 0):
        raise _wrong(name, f'gives std {dataset.std}, expected numbers above 0')
    for split, source in (('train', dataset.train), ('test', dataset.test)):
        if not len(source):
            raise _wrong(name, f'gives no example in {split}, expected at least one')
        _check_labels(name, split, source, classes)
        example = source[0]
        seen = dataset.augment(example, np.random.default_rng(0)) if split == 'train' else dataset.prepare(example)
        _check_example(name, split, seen, shape, classes)


def _check_labels(name: str, split: str, source: Source, classes: int) -> None:
    labels = getattr(source, '__dict__', {}).get('labels')
    if labels is None:
        return  # to read them all may take long
    labels = np.asarray(labels)
    if labels.shape != (len(source),) or labels.dtype.kind not in 'iu':
        raise _wrong(
            name, f'gives {split} labels {labels.dtype} {list(labels.shape)}, expected integers [{len(source)}]'
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise _wrong(
            name,
            f'gives {split} labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}, the places '
            'in class_names',
        )


def _check_example(name: str, split: str, example: Any, shape: tuple[int, ...], classes: int) -> None:
    where = f'gives a first example of {split}'
    if not isinstance(example, dict) or not {'image', 'label'} <= example.keys():
        raise _wrong(name, f'{where} {_type(example)}, expected a dict with image and label')
    image, label = example['image'], np.asarray(example['label'])
    if getattr(image, 'dtype', None) != np.uint8 or image.shape != shape:
        what = f'{image.dtype} {image.shape}' if hasattr(image, 'dtype') else _type(image)
        raise _wrong(name, f'{where} whose image is {what}, expected uint8 {shape}, its image_shape')
    if label.shape or label.dtype.kind not in 'iu' or not 0 <= label < classes:
        raise _wrong(name, f'{where} whose label is {example["label"]!r}, expected an integer from 0 to {classes - 1}')


def _type(value: Any) -> str:
    return 'None' if value is None else f'a {type(value).__name__}'


def _wrong(name: str, what: str) -> UserError:
    return UserError(f'config.data.name is {name!r}, which {what}.')
