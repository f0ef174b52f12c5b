"""Batches ahead of the step, and the time spent waiting for them."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpng_jax.runtime import sharding
from cpng_jax.runtime.prefetch import Feed, Mark


class Busy:
    """Stands for an array that the devices still work on."""

    def is_ready(self):
        return False


def slow_batches(seconds):
    for number in range(10):
        time.sleep(seconds)
        yield {'image': np.full((4, 2), number, np.uint8), 'label': np.arange(4, dtype=np.int32)}


def make(seconds=0.05):
    mesh = sharding.make_mesh(4)
    return Feed(slow_batches(seconds), mesh), mesh


def test_batches_come_in_order_as_global_arrays():
    feed, mesh = make(0.0)
    for number in range(3):
        batch = feed.next()
        np.testing.assert_array_equal(batch['image'], np.full((4, 2), number))
        assert isinstance(batch['label'], jax.Array)
        assert batch['label'].sharding.is_equivalent_to(sharding.over_batch(mesh), 1)


def test_only_waits_that_leave_the_devices_idle_count():
    feed, _ = make()
    feed.next(Busy())  # pyright: ignore[reportArgumentType]
    assert feed.waited == 0
    feed.next()
    first = feed.waited
    assert first >= 0.05
    done = jax.block_until_ready(jnp.zeros(()))
    feed.next(done)
    assert feed.waited >= first + 0.05


def test_the_way_between_two_marks():
    feed, _ = make(0.0)
    assert Mark.now(7, feed)[1:] == (7, 0.0)
    pace = Mark(12.0, 30, 1.5).since(Mark(10.0, 20, 1.0), batch_size=64)
    assert pace == {'seconds': 2.0, 'images_per_second': 320.0, 'data_wait': 0.25}


@pytest.mark.parametrize('later', [10.0, 9.0])
def test_a_clock_that_stands_still_divides_nothing_by_zero(later):
    assert np.isfinite(Mark(later, 1, 0.0).since(Mark(10.0, 0, 0.0), 1)['images_per_second'])
