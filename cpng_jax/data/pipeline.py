"""From a data set to batches: shuffle, augment, batch, prefetch, with Grain.

The training batches are a pure function of seed and step: a run that is taken up at step n sees what the
uninterrupted run would have seen, so a checkpoint need not hold the state of the pipeline.
"""

from collections.abc import Callable, Iterator

import grain
import numpy as np
from grain.experimental import set_next_index

from cpng_jax.data.dataset import Augmentation, Dataset, Example, Source, as_it_is
from cpng_jax.errors import UserError

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
        shard: int = 0,
        shards: int = 1,
    ) -> None:
        """Sets the pipeline up.

        Args:
          source: the training split.
          augment: changes an example at random.
          batch_size: examples in a batch, all shards together.
          seed: of the order and of the augmentation.
          first_step: the step, counted from 0, whose batch comes first.
          threads: that read and augment ahead; 0 for none.
          shard: which share of each batch to make, from 0.
          shards: number of shares; the batch they make together does not depend on it.
        """
        used = len(source) // batch_size * batch_size
        shuffled = grain.MapDataset.source(source).seed(seed).shuffle().random_map(augment)
        # Every share of the whole batches of an epoch has the same length, so no process runs ahead of the others.
        dataset = shuffled[:used][shard::shards].batch(batch_size // shards, drop_remainder=True).repeat()
        self._iterator = iter(dataset.to_iter_dataset(_read_options(threads)))
        set_next_index(self._iterator, first_step)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Returns `image` uint8 `[B, H, W, C]` and `label` int32 `[B]`, B being the share of the batch."""
        return next(self._iterator)

    def __enter__(self) -> 'TrainBatches':
        return self

    def __exit__(self, *_: object) -> None:
        self._iterator.close()


def eval_batches(
    source: Source, batch_size: int, *, prepare: Callable[[Example], Example] = as_it_is, threads: int = 0
) -> Iterator[Batch]:
    """Yields each example of a split once, in order, in batches of one size.

    Args:
      source: the split.
      batch_size: examples in a batch; the last batch is filled up with copies of its first example.
      prepare: applied to each example.
      threads: that read and prepare ahead; 0 for none.

    Yields:
      `image` uint8 `[B, H, W, C]`, `label` int32 `[B]`, `weight` float32 `[B]`: 1 for an example, 0 for filling.
    """
    dataset = grain.MapDataset.source(source).map(prepare).batch(batch_size)
    for batch in dataset.to_iter_dataset(_read_options(threads)):
        examples = len(batch['label'])
        filling = batch_size - examples
        filled = {key: np.concatenate([value, np.repeat(value[:1], filling, axis=0)]) for key, value in batch.items()}
        yield filled | {'weight': np.repeat(np.array([1, 0], np.float32), [examples, filling])}


def _read_options(threads: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_PREFETCHED_BATCHES if threads else 0)
