"""Splits of TFDS data sets whose images stay encoded."""

import functools
import pathlib
from typing import Any

import numpy as np

from cpng_jax.data import tfds_builders
from cpng_jax.data.dataset import Example
from cpng_jax.data.kept import kept
from cpng_jax.runtime.errors import UserError


class EncodedRecords:
    """A split of encoded images; it can be sent to worker processes."""

    def __init__(self, builder: Any, split: str, *, image: str = 'image', label: str = 'label', name: str = '') -> None:
        """Opens a split.

        Args:
          builder: of TFDS, prepared as ArrayRecord.
          split: its name.
          image: name of the feature that is the image.
          label: name of the feature that is the label.
          name: name of the feature that is the name of an image; '' names images by their places.
        """
        skip = tfds_builders.import_tfds().decode.SkipDecoding()
        self.records = tfds_builders.records(builder, split, decoders={image: skip})
        self._folder, self._split = pathlib.Path(builder.data_path), split
        self._image, self._label, self._name = image, label, name

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        example = self.records[index]
        name = example[self._name] if self._name else f'Image {index} of {self._split} in {self._folder}'
        return {'image': example[self._image], 'label': np.int32(example[self._label]), 'name': name}

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The labels, int32 `[N]`: all records are read for them once, then they are kept beside these."""

        def read() -> dict[str, np.ndarray]:
            try:
                return {'labels': np.array([example[self._label] for example in tfds_builders.read_all(self.records)])}
            except (OSError, ValueError, RuntimeError) as error:
                raise UserError(
                    f'The split {self._split!r} in {self._folder} cannot be read ({error}): prepare it again.'
                ) from error

        path = self._folder / f'labels-{self._split}-{self._label}.npz'
        return kept(path, read, lambda labels: labels.shape == (len(self),))['labels'].astype(np.int32)
