import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpng_jax.data import events as module
from cpng_jax.data.events import Events, cached_frames, flip_and_roll, frames
from cpng_jax.runtime.errors import UserError


def recording(count: int, sensor: tuple[int, int], seed: int, duration: int = 1000) -> Events:
    rng = np.random.default_rng(seed)
    y, x = rng.integers(sensor, size=(count, 2)).T
    return Events(x, y, rng.integers(2, size=count).astype(np.uint8), np.sort(rng.integers(duration, size=count)) + 77)


def by_hand(events: Events, bounds, size: tuple[int, int], sensor: tuple[int, int]) -> np.ndarray:
    """Counts event by event between the given places in the stream."""
    counts = np.zeros((len(bounds) - 1, *size, 2), np.int64)
    for step in range(len(counts)):
        for event in range(bounds[step], bounds[step + 1]):
            row, column = (
                int(place[event] * of / whole)
                for place, of, whole in zip((events.y, events.x), size, sensor, strict=True)
            )
            counts[step, row, column, events.polarity[event]] += 1
    return np.minimum(counts, 255)


# Sensors are of 8 x 12 pixels.
SENSOR = (8, 12)
SHAPES = dict(
    count=st.integers(1, 200),
    time_steps=st.integers(1, 12),
    size=st.tuples(st.integers(1, 8), st.integers(1, 12)),
    seed=st.integers(0, 99),
)


@given(**SHAPES)
def test_slices_of_equal_count(count, time_steps, size, seed):
    events = recording(count, SENSOR, seed)
    counted = frames(events, time_steps=time_steps, slicing='count', size=size, sensor=SENSOR)
    bounds = [count // time_steps * step for step in range(time_steps)] + [count]
    np.testing.assert_array_equal(counted, by_hand(events, bounds, size, SENSOR))
    assert counted.dtype == np.uint8
    sums = counted.sum(axis=(1, 2, 3), dtype=np.int64)
    assert sums.sum() == count
    assert set(sums[:-1]) <= {count // time_steps}


@given(**SHAPES, duration=st.integers(1, 500))
def test_slices_of_equal_time(count, time_steps, size, seed, duration):
    events = recording(count, SENSOR, seed, duration)
    counted = frames(events, time_steps=time_steps, slicing='time', size=size, sensor=SENSOR)
    # Slice k begins at the time k / T of the recording, whose last microsecond belongs to it.
    starts = events.t[0] + np.arange(time_steps + 1) * (events.t[-1] + 1 - events.t[0]) / time_steps
    np.testing.assert_array_equal(counted, by_hand(events, np.searchsorted(events.t, starts - 1e-9), size, SENSOR))


def test_from_128_to_48_every_event_is_kept_and_no_pixel_is_empty():
    y, x = (axis.reshape(-1) for axis in np.indices((128, 128)))
    events = Events(x, y, np.ones(128**2, np.uint8), np.arange(128**2))
    counted = frames(events, time_steps=1, slicing='count', size=(48, 48), sensor=(128, 128))
    assert counted[..., 1].sum() == 128**2
    assert set(np.unique(counted[..., 1])) == {4, 6, 9}
    assert not counted[..., 0].any()


def test_counts_end_at_255():
    events = Events(*np.zeros((3, 300), np.uint8), np.arange(300))
    assert frames(events, time_steps=1, slicing='count', size=(1, 1), sensor=(1, 1)).tolist() == [[[[255, 0]]]]


def averages(edge: int, size: int) -> np.ndarray:
    """Bilinear reduction of a line, `[size, edge]`: a tent over each new pixel that ends at the next centre."""
    pixel = edge / size
    centres, places = (np.arange(size) + 0.5) * pixel, np.arange(edge) + 0.5
    tents = np.maximum(0, 1 - np.abs(places - centres[:, None]) / pixel)
    return tents / tents.sum(axis=1, keepdims=True)


@pytest.mark.parametrize('size', [SENSOR, (4, 6), (3, 5), (1, 12)])
@pytest.mark.parametrize('count', [1000, 5])
def test_frames_by_their_maximum(size, count):
    events = recording(count, SENSOR, 3)
    options = dict(time_steps=3, slicing='time', sensor=SENSOR)
    counts = frames(events, size=SENSOR, **options)
    # 5 events leave a slice empty.
    assert (counts.max(axis=(1, 2, 3)) > 0).tolist() == [True, count > 5, True]
    expected = [np.floor(255 * frame / max(frame.max(), 1)) for frame in np.float64(counts)]
    scaled = frames(events, size=size, scale='max', **options)
    assert scaled.dtype == np.uint8
    if size == SENSOR:
        np.testing.assert_array_equal(scaled, expected)
        return
    rows, columns = (averages(edge, to) for edge, to in zip(SENSOR, size, strict=True))
    reduced = np.einsum('ij,tjkc,lk->tilc', rows, expected, columns)
    # Pillow rounds to bytes after each direction.
    np.testing.assert_allclose(scaled, reduced, atol=1.01)
    assert abs((scaled - reduced).mean()) < 0.2


def test_wrong_arguments_are_named():
    events = recording(5, SENSOR, 0)
    with pytest.raises(ValueError, match="slicing is 'number', expected one of count, time"):
        frames(events, time_steps=1, slicing='number', size=(4, 4), sensor=SENSOR)
    with pytest.raises(ValueError, match="scale is 'mean', expected one of none, max"):
        frames(events, time_steps=1, slicing='time', size=(4, 4), sensor=SENSOR, scale='mean')
    with pytest.raises(ValueError, match='size is 9 x 9, expected at most the 8 x 12 pixels'):
        frames(events, time_steps=1, slicing='time', size=(9, 9), sensor=SENSOR)
    with pytest.raises(ValueError, match='no event'):
        frames(recording(0, SENSOR, 0), time_steps=1, slicing='time', size=(4, 4), sensor=SENSOR)


def test_flip_and_roll_do_the_same_to_all_slices_and_nothing_else():
    frame = np.arange(5 * 4 * 2, dtype=np.uint8).reshape(5, 4, 2)
    stack = np.stack([frame, frame + 100])
    rng = np.random.default_rng(0)
    expected = {
        bytes(np.roll(picture, (down, right), (0, 1)))
        for picture in (frame, frame[:, ::-1])
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    }
    seen = set()
    for _ in range(400):
        changed = flip_and_roll(stack, rng, flip=True, roll=1)
        np.testing.assert_array_equal(changed[1], changed[0] + 100)
        seen.add(bytes(changed[0]))
    assert len(expected) == 18
    assert seen == expected


def test_flip_and_roll_can_be_switched_off():
    stack = np.arange(2 * 3 * 3 * 2, dtype=np.uint8).reshape(2, 3, 3, 2)
    rng = np.random.default_rng(0)
    for _ in range(20):
        np.testing.assert_array_equal(flip_and_roll(stack, rng, flip=False, roll=0), stack)
        flipped = flip_and_roll(stack, rng, flip=True, roll=0)
        assert np.array_equal(flipped, stack) or np.array_equal(flipped, stack[:, :, ::-1])


OPTIONS = dict(time_steps=2, slicing='count', size=(4, 6), sensor=SENSOR)


def test_frames_are_made_once_and_again_if_the_file_is_damaged(tmp_path):
    path = tmp_path / 'deep' / 'frames.npy'
    made = []

    def recordings():
        made.append(1)
        return [recording(50, SENSOR, seed) for seed in range(3)]

    first = cached_frames(path, 3, recordings, **OPTIONS)
    np.testing.assert_array_equal(first, [frames(events, **OPTIONS) for events in recordings()])
    made.clear()
    np.testing.assert_array_equal(cached_frames(path, 3, recordings, **OPTIONS), first)
    assert not made
    expected = np.array(first)
    del first
    for damage in (path.read_bytes()[:-1], b'', b'nothing like it'):
        path.write_bytes(damage)
        np.testing.assert_array_equal(cached_frames(path, 3, recordings, **OPTIONS), expected)
    assert len(made) == 3
    assert [file.name for file in path.parent.iterdir()] == ['frames.npy']
    # Those of another scale are kept beside them.
    scaled = cached_frames(path, 3, recordings, **OPTIONS, scale='max')
    assert not np.array_equal(scaled, expected)
    np.testing.assert_array_equal(cached_frames(path, 3, recordings, **OPTIONS), expected)
    assert sorted(file.name for file in path.parent.iterdir()) == ['frames-max.npy', 'frames.npy']


@pytest.mark.parametrize('error', [KeyboardInterrupt, UserError])
def test_an_interruption_leaves_nothing_behind(tmp_path, error):
    def recordings():
        yield recording(50, SENSOR, 0)
        raise error

    with pytest.raises(error):
        cached_frames(tmp_path / 'frames.npy', 2, recordings, **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_is_named(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module.os, 'fsync', full)
    with pytest.raises(UserError, match=r'Cannot write the event frames to .*frames.npy: No space left on device'):
        cached_frames(tmp_path / 'frames.npy', 1, lambda: [recording(5, SENSOR, 0)], **OPTIONS)
    assert not list(tmp_path.iterdir())
