import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cpng_jax.data.augment import random_crop


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
