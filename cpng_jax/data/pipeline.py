"""From a data set to batches: shuffle, augment, batch, prefetch, with Grain.

The training batches are a pure function of seed and step: a run that is taken up at step n sees what the
uninterrupted run would have seen, so a checkpoint need not hold the state of the pipeline.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from cpng_jax.data.dataset import Augmentation, Dataset, Example, Source, as_it_is
from cpng_jax.runtime import signals
from cpng_jax.runtime.errors import UserError

Batch = dict[str, np.ndarray]

_PREFETCHED_BATCHES = 8


def steps_per_epoch(dataset: Dataset, batch_size: int) -> int:
    """Counts the full batches of the training split; what is left over is dropped, other examples each epoch.

    Args:
      dataset: the data set.
      batch_size: examples in a batch.

    Returns:
      The number of steps, at least 1.

    Raises:
      UserError: the batch is larger than the training split.
    """
    steps = len(dataset.train) // batch_size
    if not steps:
        raise UserError(
            f'config.batch_size is {batch_size}, but there are only {len(dataset.train)} training examples: '
            'choose a smaller batch.'
        )
    return steps


class TrainBatches:
    """Endless training batches from a given step on; close it, or use it in a `with`, to end its threads."""

    def __init__(
        self,
        source: Source,
        augment: Augmentation,
        *,
        batch_size: int,
        seed: int,
        first_step: int = 0,
        threads: int = 0,
        workers: int = 0,
        shard: int = 0,
        shards: int = 1,
    ) -> None:
        """Sets the pipeline up.

        Args:
          source: the training split.
          augment: changes an example at random.
          batch_size: examples in a batch, all shards together; a multiple of `shards`.
          seed: of the order and of the augmentation.
          first_step: the step, counted from 0, whose batch comes first.
          threads: that read and augment ahead; 0 for none.
          workers: processes that do so, each with its own threads; 0 for none but this one.
          shard: which share of each batch to make, from 0.
          shards: number of shares; their rows one below the other are the batch that a single share would be.
        """
        used = len(source) // batch_size * batch_size
        shuffled = grain.MapDataset.source(source).seed(seed).shuffle().random_map(augment)
        batches = _Share(shuffled[:used], batch_size, shard, shards).batch(batch_size // shards).repeat()
        self._iterator = _read_ahead(batches[first_step:], threads, workers)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Returns `image` uint8 `[B, H, W, C]` and `label` int32 `[B]`, B being the share of the batch."""
        return next(self._iterator)

    def __enter__(self) -> 'TrainBatches':
        return self

    def __exit__(self, *_: object) -> None:
        self._iterator.close()


class _Share(grain.MapDataset):
    """Of a data set cut into batches, the same rows of each; all shares have the same length, so none runs ahead."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, shard: int, shards: int) -> None:
        super().__init__(parent)
        self._source, self._batch_size, self._shard, self._rows = parent, batch_size, shard, batch_size // shards

    def __len__(self) -> int:
        return len(self._source) // self._batch_size * self._rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        # Beyond its length a data set goes on with the next epoch, and so do whole batches.
        batch, row = divmod(index, self._rows)
        return self._source[batch * self._batch_size + self._shard * self._rows + row]


def eval_batches(
    source: Source,
    batch_size: int,
    *,
    prepare: Callable[[Example], Example] = as_it_is,
    threads: int = 0,
    workers: int = 0,
    shard: int = 0,
    shards: int = 1,
) -> Iterator[Batch]:
    """Yields each example of a split once, in order, in batches of one size.

    Args:
      source: the split.
      batch_size: examples in a batch, all shards together; a multiple of `shards`. The last batch is filled up with
        copies of the last example.
      prepare: applied to each example.
      threads: that read and prepare ahead; 0 for none.
      workers: processes that do so, each with its own threads; 0 for none but this one.
      shard: which share of each batch to make, from 0.
      shards: number of shares; each has the same number of batches.

    Yields:
      `image` uint8 `[B, H, W, C]`, `label` int32 `[B]`, `weight` float32 `[B]`: 1 for an example, 0 for filling. B is
      the share of the batch.
    """
    examples, last = len(source), len(source) - 1

    def example(index: int) -> dict[str, Any]:
        return {**prepare(source[min(index, last)]), 'weight': np.float32(index <= last)}

    filled = grain.MapDataset.range(-(-examples // batch_size) * batch_size)
    batches = _Share(filled, batch_size, shard, shards).map(example).batch(batch_size // shards)
    yield from _read_ahead(batches, threads, workers)


def _read_ahead(batches: grain.MapDataset, threads: int, workers: int) -> Any:
    """What iterates over the batches, and may be closed."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_PREFETCHED_BATCHES if threads else 0)
    ahead = batches.to_iter_dataset(options)
    if not workers:
        return iter(ahead)
    # Grain's workers ask for flags, which only a program that uses absl has parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return _FromWorkers(ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _end_with_parent))


class _FromWorkers:
    """Batches of Grain's workers, which a signal to the whole group, such as Ctrl-C, leaves to the run that stops."""

    def __init__(self, batches: grain.IterDataset) -> None:
        self._iterator = iter(batches)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        with signals.kept_from_children():  # The first batch is what starts them.
            return next(self._iterator)

    def close(self) -> None:
        self._iterator.close()


def _end_with_parent(*_: int) -> None:
    """Ends a worker when the process that it works for has died: Grain's would wait for it for ever."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent:
            parent.join()
            os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
