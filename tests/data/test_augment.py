import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import base
from cpng_jax.data.augment import cutout, random_crop, random_flip, standard
from cpng_jax.data.policies import autoaugment
from cpng_jax.runtime.errors import UserError


@given(height=st.integers(1, 9), width=st.integers(1, 9), padding=st.integers(0, 4), seed=st.integers(0, 2**32 - 1))
def test_a_crop_is_a_shift_with_zeros_behind(height, width, padding, seed):
    image = np.arange(1, 1 + height * width * 2, dtype=np.uint8).reshape(height, width, 2)
    crop = random_crop(image, padding, np.random.default_rng(seed))
    assert crop.shape == image.shape
    assert crop.dtype == image.dtype
    shifted = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(shifted, image.shape).reshape(-1, *image.shape)
    assert any(np.array_equal(crop, window) for window in windows)


def test_every_shift_comes_up_equally_often():
    image = np.zeros((5, 5, 1), np.uint8)
    image[2, 2] = 1
    rng = np.random.default_rng(0)
    places = [tuple(np.argwhere(random_crop(image, 1, rng)[..., 0])[0]) for _ in range(9000)]
    counts = np.unique(places, axis=0, return_counts=True)[1]
    assert len(counts) == 9
    # Nine cells of a thousand each, six standard deviations of the binomial.
    np.testing.assert_allclose(counts, 1000, atol=6 * np.sqrt(9000 / 9 * 8 / 9))


@given(seed=st.integers(0, 2**32 - 1), edge=st.integers(0, 12))
def test_cutout_blanks_one_square_and_leaves_the_rest(seed, edge):
    image = np.arange(1, 1 + 7 * 9 * 2, dtype=np.uint8).reshape(7, 9, 2)
    cut = cutout(image, edge, np.random.default_rng(seed))
    blank = (cut == 0).all(axis=-1)
    np.testing.assert_array_equal(cut[~blank], image[~blank])
    rows, columns = blank.any(axis=1), blank.any(axis=0)
    np.testing.assert_array_equal(blank, np.outer(rows, columns))
    assert max(rows.sum(), columns.sum()) <= edge
    assert (blank.sum() == 0) == (edge == 0)
    assert (image > 0).all()  # the image itself was not written to


def test_the_square_of_cutout_has_its_centre_anywhere():
    image = np.ones((5, 5, 1), np.uint8)
    rng = np.random.default_rng(0)
    centres = [tuple(np.argwhere(cutout(image, 1, rng)[..., 0] == 0)[0]) for _ in range(2500)]
    counts = np.unique(centres, axis=0, return_counts=True)[1]
    assert len(counts) == 25
    np.testing.assert_allclose(counts, 100, atol=6 * 10)


def test_half_of_the_images_are_mirrored():
    image = np.arange(2 * 3 * 4 * 2, dtype=np.uint8).reshape(2, 3, 4, 2)
    rng = np.random.default_rng(0)
    mirrored = 0
    for _ in range(400):
        flipped = random_flip(image, rng)
        changed = not np.array_equal(flipped, image)
        mirrored += changed
        np.testing.assert_array_equal(flipped, image[..., ::-1, :] if changed else image)
    assert 140 < mirrored < 260


class Coin:
    """A generator whose draws are known."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


@given(shape=st.tuples(*[st.integers(1, 5)] * 4), value=st.floats(0, 1, exclude_max=True))
def test_mirrored_twice_is_the_image(shape, value):
    image = np.arange(np.prod(shape)).reshape(shape)
    once = random_flip(image, Coin(value))
    np.testing.assert_array_equal(random_flip(once, Coin(value)), image)
    np.testing.assert_array_equal(once, np.flip(image, axis=2) if value < 0.5 else image)


def settings(**changes):
    config = base.get_config().data
    config.update(changes)
    return config


def test_without_any_augmentation_the_image_stays():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    example = standard(settings(), channels=3)({'image': image, 'label': 3}, np.random.default_rng(0))
    np.testing.assert_array_equal(example['image'], image)
    assert example['label'] == 3


def test_each_augmentation_can_be_turned_on():
    image = np.random.default_rng(0).integers(1, 256, (16, 16, 3), np.uint8)
    for changes in ({'crop_padding': 2}, {'flip': True}, {'policy': 'randaugment'}, {'cutout': 4}):
        augment = standard(settings(**changes), channels=3)
        seen = {augment({'image': image}, np.random.default_rng(seed))['image'].tobytes() for seed in range(20)}
        assert len(seen - {image.tobytes()}) > 0, changes


@given(seed=st.integers(0, 2**32 - 1))
def test_the_whole_is_a_function_of_its_generator(seed):
    image = np.random.default_rng(1).integers(0, 256, (12, 12, 3), np.uint8)
    before = image.copy()
    augment = standard(settings(crop_padding=2, flip=True, policy='autoaugment', cutout=4), channels=3)
    first, second = (augment({'image': image, 'label': 1}, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first['image'], second['image'])
    assert first['image'].shape == image.shape
    assert first['image'].dtype == np.uint8
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(('name', 'found_on'), [('cifar100', 'cifar10'), ('imagenet2012', 'imagenet')])
def test_imagenet_has_its_own_autoaugment(name, found_on):
    image = np.random.default_rng(1).integers(0, 256, (12, 12, 3), np.uint8)
    augment = standard(settings(name=name, policy='autoaugment'), channels=3)
    for seed in range(20):
        expected = autoaugment(image, np.random.default_rng(seed), policy=found_on)
        np.testing.assert_array_equal(augment({'image': image}, np.random.default_rng(seed))['image'], expected)


def test_a_policy_asks_for_colour():
    with pytest.raises(UserError, match=r"config.data.policy is 'autoaugment', which needs colour images"):
        standard(settings(policy='autoaugment'), channels=1)
