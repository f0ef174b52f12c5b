import numpy as np
import pytest
from sklearn.datasets import load_digits

from configs import base
from cpng_jax import data
from cpng_jax.data.dataset import few_of_each
from cpng_jax.runtime.errors import UserError


def settings(**changes):
    config = base.get_config().data
    config.update(changes)
    return config


@pytest.fixture(scope='module')
def digits():
    return data.load(settings(crop_padding=1))


def test_the_split_is_stratified_and_has_every_scan_once(digits):
    assert len(digits.train) == 1437
    assert len(digits.test) == 360
    pixels, labels = load_digits(return_X_y=True)
    both = np.concatenate([digits.train.images, digits.test.images]).reshape(-1, 64)
    original = np.round(pixels * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, both)) == sorted(map(bytes, original))
    for label in range(10):
        assert np.sum(digits.test.labels == label) == pytest.approx(np.sum(labels == label) * 0.2, abs=1)


def test_the_split_is_the_same_each_time(digits):
    again = data.load(settings(crop_padding=0))
    np.testing.assert_array_equal(again.test.images, digits.test.images)
    np.testing.assert_array_equal(again.train.labels, digits.train.labels)


def test_mean_and_std_are_those_of_the_training_scans(digits):
    scaled = digits.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(digits.mean, [scaled.mean()], rtol=1e-6)
    np.testing.assert_allclose(digits.std, [scaled.std()], rtol=1e-6)


def test_augmentation_shifts_by_at_most_the_padding(digits):
    example = digits.train[0]
    padded = np.pad(example['image'], ((1, 1), (1, 1), (0, 0)))
    shifts = {bytes(padded[top : top + 8, left : left + 8]) for top in range(3) for left in range(3)}
    rng = np.random.default_rng(0)
    seen = {bytes(digits.augment(example, rng)['image']) for _ in range(200)}
    assert seen == shifts


def test_an_unknown_data_set_is_named():
    with pytest.raises(UserError, match=r"config.data.name is 'digit', expected one of digits"):
        data.load(settings(name='digit'))


def test_few_labels():
    config = settings()
    whole = data.load(config)
    config.per_class = 7
    few = data.load(config)
    assert np.bincount(few.train.labels).tolist() == [7] * 10
    firsts = [np.flatnonzero(whole.train.labels == label)[:7] for label in range(10)]
    images = np.stack([few.train[index]['image'] for index in range(70)])
    np.testing.assert_array_equal(images, whole.train.images[np.sort(np.concatenate(firsts))])
    np.testing.assert_array_equal(few.test.images, whole.test.images)
    np.testing.assert_array_equal(few.mean, whole.mean)
    config.per_class = 1000
    with pytest.raises(UserError, match=r'config\.data\.per_class is 1000, but class \d has 1\d\d training examples'):
        data.load(config)
    with pytest.raises(UserError, match='tells no labels'):
        few_of_each([{'image': np.zeros(1), 'label': 0}], 1)
