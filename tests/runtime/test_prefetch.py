"""Batches ahead of the step, and the time spent waiting for them."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpng_jax.runtime import prefetch, sharding
from cpng_jax.runtime.prefetch import Prefetcher, Timer


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
    return Prefetcher(slow_batches(seconds), mesh), mesh


def test_batches_come_in_order_as_global_arrays():
    prefetcher, mesh = make(0.0)
    for number in range(3):
        batch = prefetcher.next()
        np.testing.assert_array_equal(batch['image'], np.full((4, 2), number))
        assert isinstance(batch['label'], jax.Array)
        assert batch['label'].sharding.is_equivalent_to(sharding.over_batch(mesh), 1)


def test_only_waits_that_leave_the_devices_idle_count():
    prefetcher, _ = make()
    prefetcher.next(Busy())  # pyright: ignore[reportArgumentType]
    assert prefetcher.waited == 0
    prefetcher.next()
    first = prefetcher.waited
    assert first >= 0.05
    done = jax.block_until_ready(jnp.zeros(()))
    prefetcher.next(done)
    assert prefetcher.waited >= first + 0.05


def make_timer(monkeypatch, times, step):
    """A timer of batches of 64 whose clock shows the given times."""
    clock, (prefetcher, _) = iter(times), make(0.0)
    monkeypatch.setattr(prefetch.time, 'monotonic', lambda: next(clock))
    prefetcher.waited = 1.0
    return Timer(prefetcher, 64, step), prefetcher


def test_throughput_is_that_since_the_last_reset(monkeypatch):
    timer, prefetcher = make_timer(monkeypatch, [10.0, 12.0, 20.0, 22.0], 20)
    prefetcher.waited = 1.5
    assert timer.throughput(30) == {'seconds': 2.0, 'images_per_second': 320.0, 'data_wait': 0.25}
    timer.reset(30)
    assert timer.throughput(40) == {'seconds': 2.0, 'images_per_second': 320.0, 'data_wait': 0.0}


@pytest.mark.parametrize('later', [10.0, 9.0])
def test_a_clock_that_stands_still_divides_nothing_by_zero(monkeypatch, later):
    timer, _ = make_timer(monkeypatch, [10.0, later], 0)
    assert np.isfinite(timer.throughput(1)['images_per_second'])
