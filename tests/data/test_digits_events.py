import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from cpng_jax.data import digits, digits_events
from cpng_jax.data.dataset import stratified_split
from cpng_jax.data.digits_events import Camera, recordings, simulate
from cpng_jax.data.pipeline import TrainBatches
from cpng_jax.runtime.errors import UserError


def config(folder, **changes) -> ConfigDict:
    values = dict(dir=str(folder), time_steps=4, slicing='count', frame_scale='none', event_size=10, flip=False, roll=1)
    return ConfigDict(values | changes)


@pytest.mark.parametrize('sign', [1, -1])
def test_a_ramp_passes_thresholds_at_known_times(sign):
    # From 0 to 3.5 thresholds of 0.2 in 700 microseconds, by two segments of one slope: an event each 200.
    ramp = sign * np.array([0, 0.3, 0.7]).reshape(3, 1, 1)
    events = simulate(ramp, np.array([0, 300, 700]), 0.2)
    assert events.t.tolist() == [200, 400, 600]
    assert events.polarity.tolist() == [max(sign, 0)] * 3
    assert events.x.tolist() == events.y.tolist() == [0, 0, 0]


def test_a_pixel_that_turns_round_must_go_a_whole_threshold_back():
    # Up past 1 and 2 to 2.5, then down: 1 lies a threshold below the last event, at 2; 2 itself makes none.
    there_and_back = np.array([0, 2.5, 0]).reshape(3, 1, 1)
    events = simulate(there_and_back, np.array([0, 250, 500]), 1.0)
    assert events.t.tolist() == [100, 200, 400, 500]
    assert events.polarity.tolist() == [1, 1, 0, 0]


def one_by_one(log_intensity, times, contrast) -> list[tuple[int, int, int, float]]:
    """The pixel's definition, event by event."""
    events = []
    for y, x in np.ndindex(log_intensity.shape[1:]):
        line, threshold = log_intensity[:, y, x], contrast[y, x]
        reference = line[0]
        for step in range(len(line) - 1):
            start, end = line[step], line[step + 1]
            sign = 1 if end > start else -1
            while sign * (end - reference) >= threshold:
                reference += sign * threshold
                when = times[step] + (reference - start) / (end - start) * (times[step + 1] - times[step])
                events.append((x, y, max(sign, 0), when))
    return sorted(events, key=lambda event: event[3])


@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 6), scale=st.floats(0.01, 5))
def test_events_are_those_of_the_definition(seed, steps, scale):
    rng = np.random.default_rng(seed)
    log_intensity = scale * rng.standard_normal((steps + 1, 2, 3))
    times = np.cumsum(rng.integers(1, 10_000, size=steps + 1))
    contrast = rng.uniform(0.1, 1, size=(2, 3))
    events = simulate(log_intensity, times, contrast)
    expected = one_by_one(log_intensity, times, contrast)
    assert np.all(np.diff(events.t) >= 0)
    np.testing.assert_allclose(events.t, [event[3] for event in expected], atol=0.5 + 1e-6)
    # Events of one microsecond may come in any order.
    assert sorted(zip(events.x, events.y, events.polarity, strict=True)) == sorted(event[:3] for event in expected)
    signed = np.zeros((2, 3))
    np.add.at(signed, (events.y, events.x), 2.0 * events.polarity - 1)
    assert np.all(np.abs(signed * contrast - (log_intensity[-1] - log_intensity[0])) <= contrast * (1 + 1e-9))


def test_on_a_closed_path_brighter_and_darker_even_out():
    images = digits.scans()[0][:5, ..., 0] / 255
    for events in recordings(images, 12, Camera()):
        signed = np.zeros((12, 12), int)
        np.add.at(signed, (events.y, events.x), 2 * events.polarity.astype(int) - 1)
        assert np.abs(signed).max() <= 1
        assert events.t[0] >= 0
        assert events.t[-1] <= 300_000
        assert set(events.polarity) == {0, 1}


def test_nothing_moves_nothing_fires():
    still = Camera(path=((0.2, 0.1),) * 3)
    (events,) = recordings(np.eye(8)[None], 16, still)
    assert not len(events.t)


@given(shift=st.floats(-3, 3), size=st.integers(4, 20))
def test_enlarging_is_linear_interpolation_with_black_around(shift, size):
    line = np.random.default_rng(0).uniform(size=8)
    (matrix,) = digits_events._interpolation(8, size, np.array([shift]))
    centres = (np.arange(size) + 0.5) / size * 8 - 0.5 - shift
    np.testing.assert_allclose(matrix @ line, np.interp(centres, np.arange(-1, 9), [0, *line, 0]), atol=1e-12)


def test_the_movement_is_along_the_path():
    # A white column moved right by a pixel of the scan: what lies right of it gets brighter.
    image = np.zeros((8, 8))
    image[:, 3] = 1
    camera = Camera(path=((0.0, 0.0), (0.0, 1.0)), saccade=1000, mismatch=0)
    (events,) = recordings(image[None], 8, camera)
    first = events.t <= 1000
    assert set(events.x[first & (events.polarity == 1)]) == {4}
    assert set(events.x[first & (events.polarity == 0)]) == {3}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


def test_the_split_is_that_of_the_digits(folder):
    dataset = digits_events.load(config(folder))
    labels = digits.scans()[1]
    train, test = stratified_split(labels, 0.2)
    np.testing.assert_array_equal(dataset.train.labels, labels[train])
    np.testing.assert_array_equal(dataset.test.labels, labels[test])
    assert dataset.train.images.shape == (1437, 4, 10, 10, 2)
    assert dataset.image_shape == (4, 10, 10, 2)
    # A slice of each recording holds as many events as the others, the last one up to three more.
    sums = dataset.test.images.sum(axis=(2, 3, 4), dtype=int)
    assert sums.min() > 50
    assert np.all(sums[:, :3] == sums[:, :1])
    assert np.all((sums[:, 3] - sums[:, 0] >= 0) & (sums[:, 3] - sums[:, 0] < 4))


def test_frames_are_kept_apart_by_what_they_depend_on(folder, monkeypatch):
    first = digits_events.load(config(folder)).test.images
    files = set((folder / 'digits_events').iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(digits_events, 'recordings', lambda *_: pytest.fail('simulated again'))
        np.testing.assert_array_equal(digits_events.load(config(folder)).test.images, first)
    for change in (dict(time_steps=2), dict(slicing='time'), dict(event_size=9), dict(frame_scale='max')):
        other = digits_events.load(config(folder, **change))
        assert other.train.images.shape[1:] == other.image_shape
    assert len(set((folder / 'digits_events').iterdir()) - files) == 4
    scaled = digits_events.load(config(folder, frame_scale='max'))
    largest = first.max((2, 3, 4), keepdims=True)
    np.testing.assert_array_equal(scaled.test.images, np.floor(255 * first.astype(float) / largest))
    # What the program makes of a byte is its share of the largest.
    np.testing.assert_array_equal(scaled.mean, [0, 0])
    np.testing.assert_array_equal(scaled.std, [1, 1])


def test_simulation_is_the_same_each_time(folder, tmp_path):
    digits_events.load(config(folder))
    digits_events.load(config(tmp_path))
    (name,) = (tmp_path / 'digits_events').iterdir()
    assert name.read_bytes() == (folder / 'digits_events' / name.name).read_bytes()


def test_batches_are_counts_of_events_shifted_a_little(folder):
    dataset = digits_events.load(config(folder))
    with TrainBatches(dataset.train, dataset.augment, batch_size=8, seed=0) as batches:
        batch = next(iter(itertools.islice(batches, 1)))
    assert batch['image'].shape == (8, *dataset.image_shape)
    assert batch['image'].dtype == np.uint8
    for image, label in zip(batch['image'], batch['label'], strict=True):
        originals = dataset.train.images[dataset.train.labels == label]
        shifted = [np.roll(originals, (down, right), (2, 3)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        assert any(np.any(np.all(candidates == image, axis=(1, 2, 3, 4))) for candidates in shifted)
    # What the program makes of a byte is the count itself.
    np.testing.assert_allclose(
        (np.arange(256)[:, None] / 255 - dataset.mean) / dataset.std, np.arange(256)[:, None].repeat(2, 1), rtol=1e-5
    )


@pytest.mark.parametrize('size', [1, 3])
def test_a_sensor_too_small_for_an_event_is_one_sentence(tmp_path, size):
    with pytest.raises(UserError, match=rf'config\.data\.event_size is {size}, expected at least 4: a smaller sensor'):
        digits_events.load(config(tmp_path, event_size=size))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'Cannot write the event frames to .*file/digits_events/.*: Not a directory'):
        digits_events.load(config(tmp_path / 'file'))
