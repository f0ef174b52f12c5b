import itertools
import pathlib
import signal
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpng_jax.data.dataset import ArraySource
from cpng_jax.data.pipeline import TrainBatches, eval_batches, steps_per_epoch
from cpng_jax.runtime.errors import UserError
from tests import forked


def numbered(count: int) -> ArraySource:
    """Images that hold their own number."""
    return ArraySource(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), np.arange(count))


def noisy(example, rng):
    return {**example, 'noise': rng.integers(2**31, size=3)}


def take(count, *, seed=7, size=23, batch_size=5, **options):
    with TrainBatches(numbered(size), noisy, batch_size=batch_size, seed=seed, **options) as batches:
        return list(itertools.islice(batches, count))


def equal(first, second):
    return all(np.array_equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


def test_each_epoch_shows_examples_once_in_an_order_of_its_own():
    batches = take(12)
    epochs = [np.concatenate([batch['label'] for batch in batches[start : start + 4]]) for start in (0, 4, 8)]
    for epoch in epochs:
        assert len(set(epoch)) == 20
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for batch in batches:
        np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], batch['label'])
        assert batch['image'].dtype == np.uint8
        assert batch['label'].dtype == np.int32


def test_augmentation_differs_between_epochs_and_examples():
    batches = take(8)
    noise = np.concatenate([batch['noise'] for batch in batches])
    assert len(np.unique(noise, axis=0)) == len(noise)


@pytest.mark.parametrize('first_step', [1, 3, 4, 9])
@pytest.mark.parametrize('threads', [0, 3])
def test_batches_are_a_function_of_seed_and_step(first_step, threads):
    whole = take(12)
    assert equal(take(12 - first_step, first_step=first_step, threads=threads), whole[first_step:])
    assert not equal(take(12, seed=8), whole)


@pytest.mark.parametrize('shards', [2, 3, 6])
def test_shards_together_make_the_batch_of_one_process(shards):
    whole = take(9, batch_size=6)
    parts = [take(9, batch_size=6, shard=shard, shards=shards, threads=shard) for shard in range(shards)]
    for step, batch in enumerate(whole):
        for key, value in batch.items():
            together = np.concatenate([part[step][key] for part in parts])
            np.testing.assert_array_equal(together, value)


@pytest.mark.processes
def test_worker_processes_change_nothing():
    whole = take(6)
    assert equal(take(4, first_step=2, workers=2, threads=1), whole[2:])
    plain, ahead = (list(eval_batches(numbered(40), 7, workers=workers)) for workers in (0, 2))
    assert equal(plain, ahead)


READS = """
import multiprocessing, os, signal, time
from cpng_jax.data.pipeline import TrainBatches
from tests.data.test_pipeline import noisy, numbered

if __name__ == '__main__':
    with TrainBatches(numbered(23), noisy, batch_size=5, seed=7, workers=1) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(worker.pid, signum)
        for _ in range(50):
            next(batches)
        print(worker.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.processes
def test_a_worker_leaves_signals_to_the_run_and_ends_with_it(tmp_path):
    (tmp_path / 'reads.py').write_text(READS)
    process = forked.run(tmp_path / 'reads.py')
    assert process.returncode == -signal.SIGKILL, process.stderr
    worker = pathlib.Path('/proc', process.stdout.strip(), 'stat')
    deadline = time.monotonic() + 20
    while worker.exists() and worker.read_text().rpartition(')')[2].split()[0] != 'Z':
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_batch_larger_than_the_data_is_refused():
    class Small:
        train = numbered(3)

    assert steps_per_epoch(Small, 3) == 1
    with pytest.raises(UserError, match=r'batch_size is 4, but there are only 3 training examples'):
        steps_per_epoch(Small, 4)


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_evaluation_counts_each_example_once(count, batch_size):
    doubled = lambda example: {**example, 'image': example['image'] * 2}
    batches = list(eval_batches(numbered(count), batch_size, prepare=doubled))
    assert all(len(batch['label']) == batch_size for batch in batches)
    weights = np.concatenate([batch['weight'] for batch in batches])
    labels = np.concatenate([batch['label'] for batch in batches])
    assert set(weights) <= {0.0, 1.0}
    images = np.concatenate([batch['image'] for batch in batches])
    np.testing.assert_array_equal(labels[weights == 1], np.arange(count))
    np.testing.assert_array_equal(images[:, 0, 0, 0], 2 * labels)


def test_threads_do_not_change_the_order_of_evaluation():
    plain, threaded = (list(eval_batches(numbered(40), 7, threads=threads)) for threads in (0, 3))
    assert equal(plain, threaded)


@given(count=st.integers(1, 40), shares=st.integers(1, 4), rows=st.integers(1, 6))
def test_shares_of_an_evaluation_make_the_batches_of_one_process(count, shares, rows):
    whole = list(eval_batches(numbered(count), shares * rows))
    parts = [list(eval_batches(numbered(count), shares * rows, shard=shard, shards=shares)) for shard in range(shares)]
    together = [
        {key: np.concatenate([row[key] for row in rows]) for key in rows[0]} for rows in zip(*parts, strict=True)
    ]
    assert equal(whole, together)
