"""Mixup and CutMix: what they do to a batch, and the law of their shares."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cpng_jax.data.mixing import cutmix, mix, mixup

CLASSES = 5


def make(shape=(6, 8, 9, 2)):
    """Images whose every pixel holds the number of its image, and labels one-hot."""
    numbers = np.arange(1, 1 + shape[0], dtype=np.float32)
    images = np.broadcast_to(numbers.reshape(-1, *[1] * (len(shape) - 1)), shape)
    return images, np.eye(CLASSES, dtype=np.float32)[np.arange(shape[0]) % CLASSES]


def test_mixup_mixes_images_and_labels_alike():
    images = np.random.default_rng(0).normal(size=(6, 3, 3, 1)).astype(np.float32)
    _, labels = make()
    mixed, shares = mixup(images, labels, jax.random.key(3), 0.8)
    share = float(shares[1, 1])
    assert 0 < share < 1
    np.testing.assert_allclose(mixed, share * images + (1 - share) * images[::-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shares, share * labels + (1 - share) * labels[::-1], atol=1e-6)


@given(seed=st.integers(0, 10_000), alpha=st.sampled_from([0.2, 1.0, 3.0]), events=st.booleans())
def test_cutmix_labels_are_the_shares_of_the_pixels(seed, alpha, events):
    images, labels = make((6, 2, 8, 9, 2) if events else (6, 8, 9, 2))
    mixed, shares = (np.asarray(array) for array in cutmix(images, labels, jax.random.key(seed), alpha))
    own = np.mean(mixed[0] == images[0])
    assert set(np.unique(mixed[0])) <= {1.0, 6.0}
    np.testing.assert_allclose(shares, own * labels + (1 - own) * labels[::-1], atol=1e-5)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    pasted = mixed[0].reshape(-1, 8, 9, 2)[..., 0] != 1
    assert (pasted == pasted[0]).all()  # one rectangle for all time steps
    rows, columns = pasted[0].any(axis=1), pasted[0].any(axis=0)
    np.testing.assert_array_equal(pasted[0], np.outer(rows, columns))
    for line in (rows, columns):  # without gaps
        assert np.count_nonzero(np.diff(np.concatenate([[False], line, [False]]).astype(int))) in (0, 2)


def test_shares_follow_the_beta_distribution():
    images, labels = make((2, 64, 64, 1))
    keys = jax.random.split(jax.random.key(0), 800)
    for alpha in (0.3, 1.0):
        shares = jax.vmap(lambda key, alpha=alpha: mixup(images, labels, key, alpha)[1][0, 0])(keys)
        assert stats.kstest(np.asarray(shares), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_one_of_both_is_taken_for_each_batch():
    images, labels = make()
    kinds = set()
    both = jax.jit(lambda key: mix(images, labels, key, mixup_alpha=1.0, cutmix_alpha=1.0))
    for seed in range(20):
        mixed, _ = both(jax.random.key(seed))
        values = len(np.unique(np.asarray(mixed[0]).round(5)))
        kinds.add('mixup' if values == 1 and float(mixed[0, 0, 0, 0]) not in (1.0, 6.0) else 'cutmix')
    assert kinds == {'mixup', 'cutmix'}


@pytest.mark.parametrize('alphas', [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_each_can_be_had_alone_or_none(alphas):
    images, labels = make()
    key = jax.random.key(1)
    mixed, shares = mix(images, labels, key, mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
    assert mixed.shape == images.shape
    changed = not np.array_equal(mixed, images)
    assert changed == any(alphas)
    assert np.array_equal(shares, labels) == (not changed)
