"""Data sets of arrays and of event recordings: splits, frames, and what is no data set."""

import numpy as np
import pytest

from configs import base
from cpng_jax.data import from_arrays, from_recordings
from cpng_jax.data.events import Events, frames
from cpng_jax.runtime.errors import UserError


def settings(folder='nowhere', **changes):
    config = base.get_config()
    config.model.time_steps = 3
    config.data.update(dir=str(folder), event_size=8, **changes)
    return config.data


RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 5, 7, 3), np.uint8)
LABELS = np.arange(40) % 4


def test_a_split_that_is_given_is_kept():
    dataset = from_arrays(settings(), (IMAGES[:30], LABELS[:30]), (IMAGES[30:], LABELS[30:]), class_names='abcd')
    np.testing.assert_array_equal([dataset.test[index]['image'] for index in range(10)], IMAGES[30:])
    assert [dataset.train[index]['label'] for index in range(30)] == LABELS[:30].tolist()
    assert dataset.class_names == ['a', 'b', 'c', 'd']
    assert dataset.image_shape == (5, 7, 3)
    np.testing.assert_allclose(dataset.mean, IMAGES[:30].mean(axis=(0, 1, 2)) / 255, rtol=1e-5)
    np.testing.assert_allclose(dataset.std, IMAGES[:30].std(axis=(0, 1, 2)) / 255, rtol=1e-5)


def test_a_split_that_is_drawn_has_a_fifth_of_each_class_and_is_the_same_again():
    first, again = (from_arrays(settings(), (IMAGES, LABELS.tolist())) for _ in range(2))
    assert np.bincount(first.test.labels).tolist() == [2] * 4
    both = np.concatenate([first.train.images, first.test.images])
    assert {image.tobytes() for image in both} == {image.tobytes() for image in IMAGES}
    np.testing.assert_array_equal(first.test.images, again.test.images)
    assert first.class_names == ['0', '1', '2', '3']


def test_frames_reach_the_network_as_counts_and_roll():
    counts = RNG.integers(0, 9, (20, 3, 5, 7, 2), np.uint8)
    dataset = from_arrays(settings(roll=1, flip=True), (counts, LABELS[:20]))
    np.testing.assert_allclose((counts / 255 - dataset.mean) / dataset.std, counts, rtol=1e-6)
    changed = dataset.augment(dataset.train[0], np.random.default_rng(1))['image']
    assert changed.sum() == dataset.train[0]['image'].sum()
    assert not np.array_equal(changed, dataset.train[0]['image'])


@pytest.mark.parametrize(
    ('train', 'test', 'sentence'),
    [
        ((IMAGES / 255, LABELS), None, r'images of train are float64 \[40, 5, 7, 3\], expected uint8 \[N, H, W, C\]'),
        ((IMAGES[..., 0], LABELS), None, r'are uint8 \[40, 5, 7\], expected .*; grey images have C = 1'),
        ((IMAGES.tolist(), LABELS), None, r'images of train are list, expected'),
        (
            (IMAGES, LABELS[:39]),
            None,
            r'labels of train are int64 \[39\] from 0 on, expected integers \[40\] from 0 on',
        ),
        ((IMAGES, LABELS - 1), None, r'labels of train are int64 \[40\] from -1 on'),
        ((IMAGES, LABELS / 1), None, r'labels of train are float64 \[40\], expected integers'),
        ((IMAGES, LABELS), (IMAGES[:0], LABELS[:0]), r'labels of test are int64 \[0\], expected'),
        ((IMAGES, LABELS), (IMAGES[:, :4], LABELS), r'have the shapes .*, expected one'),
        ((IMAGES, LABELS + 1), None, r'labels go up to 4, expected below 4, the number of class_names'),
    ],
)
def test_what_are_no_arrays_of_a_data_set_is_named(train, test, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_arrays(settings(), train, test, class_names='abcd')


def test_a_policy_needs_colour():
    with pytest.raises(UserError, match=r"config\.data\.policy is 'randaugment', which needs colour images"):
        from_arrays(settings(policy='randaugment'), (IMAGES[..., :1], LABELS))


SENSOR = (6, 10)


def recording(seed, count=50):
    rng = np.random.default_rng(seed)
    y, x = rng.integers(SENSOR, size=(count, 2)).T
    return x, y, np.sort(rng.integers(1000, size=count)), rng.integers(2, size=count)


RECORDINGS = [recording(seed) for seed in range(10)]
TWO = np.arange(10) % 2


@pytest.mark.parametrize('polarity', [lambda p: p, lambda p: p.astype(bool), lambda p: 2 * p - 1])
def test_recordings_become_frames_in_proportion_to_the_sensor(tmp_path, polarity):
    given = [(x, y, t, polarity(p)) for x, y, t, p in RECORDINGS]
    config = settings(tmp_path)
    dataset = from_recordings(config, (given[:8], TWO[:8]), (given[8:], TWO[8:]), sensor=SENSOR, cache='mine')
    options = dict(time_steps=3, slicing='count', size=(5, 8), sensor=SENSOR)
    expected = [frames(Events(x, y, p.astype(np.uint8), t), **options) for x, y, t, p in RECORDINGS]
    assert dataset.image_shape == (3, 5, 8, 2)
    for source, places in ((dataset.train, range(8)), (dataset.test, range(8, 10))):
        for index, place in enumerate(places):
            np.testing.assert_array_equal(source[index]['image'], expected[place])
            assert source[index]['label'] == TWO[place]
    assert {path.parent for path in tmp_path.rglob('*.npy')} == {tmp_path / 'mine'}
    scaled = from_recordings(settings(tmp_path, frame_scale='max'), (given, TWO), sensor=SENSOR, cache='mine')
    np.testing.assert_allclose([*scaled.std, *dataset.std], [1, 1, 1 / 255, 1 / 255])
    assert max(scaled.train[index]['image'].max() for index in range(8)) > 20 > max(map(np.max, expected))


class Counted:
    """Recordings that are read when asked for."""

    def __init__(self, recordings):
        self.recordings, self.asked = recordings, []

    def __len__(self):
        return len(self.recordings)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.recordings[index]


def test_frames_are_made_once_and_again_for_other_recordings(tmp_path):
    load = lambda given, **changes: from_recordings(
        settings(tmp_path, **changes), (given, TWO[: len(given)]), sensor=SENSOR, cache='mine'
    )
    given = Counted(RECORDINGS)
    first = load(given)
    assert len(first.test) == 2
    assert set(given.asked) == set(range(10))
    given.asked.clear()
    np.testing.assert_array_equal(load(given).train.images, first.train.images)
    assert set(given.asked) == {0, 9}, 'the first and the last tell recordings apart'
    for others, changes in ((RECORDINGS[:8], {}), (RECORDINGS[::-1], {}), (RECORDINGS, {'slicing': 'time'})):
        given = Counted(others)
        load(given, **changes)
        assert set(given.asked) == set(range(len(others)))


X, Y, T, P = RECORDINGS[1]


@pytest.mark.parametrize(
    ('spoilt', 'sentence'),
    [
        ((X, Y, T), r'recording 1 of train has 3 parts, expected the four arrays \(x, y, t, p\)'),
        ((X, Y, T, P[:9]), r'has x, y, t, p of \[50\], \[50\], \[50\], \[9\], expected one length'),
        ((X[:0], Y[:0], T[:0], P[:0]), r'expected one length of at least 1'),
        ((Y, X, T, P), r'has y from 0 to 9 \(int64\), expected integers from 0 to 5 of the sensor'),
        ((X / 1, Y, T, P), r'has x from 0\.0 to 9\.0 \(float64\), expected integers from 0 to 9'),
        ((X, Y, T / 1e6, P), r'has times in float64, expected integers: microseconds'),
        ((X, Y, T[::-1], P), r'goes back in time at event \d+: sort it by t'),
    ],
)
def test_what_is_no_recording_is_named(tmp_path, spoilt, sentence):
    given = [RECORDINGS[0], spoilt, *RECORDINGS[2:]]
    with pytest.raises(ValueError, match=sentence):
        from_recordings(settings(tmp_path), (given, TWO), sensor=SENSOR, cache='mine')
    assert not [*tmp_path.rglob('*.npy'), *tmp_path.rglob('*.tmp')]


def test_sizes_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(UserError, match=r'config\.data\.event_size is 8, expected at most the 7 of the sensor'):
        from_recordings(settings(tmp_path), (RECORDINGS, TWO), sensor=(6, 7), cache='mine')
    with pytest.raises(ValueError, match=r'train has 10 recordings and 9 labels, expected equally many'):
        from_recordings(settings(tmp_path), (RECORDINGS, TWO[:9]), sensor=SENSOR, cache='mine')
