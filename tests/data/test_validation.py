"""The share of the training examples that is kept to choose by."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import base
from cpng_jax import data
from cpng_jax.data.dataset import ArraySource, Dataset, Subset, labels_of, with_validation
from cpng_jax.runtime.errors import UserError


def numbered(labels):
    """A data set whose images are the numbers of the examples."""
    labels = np.asarray(labels)
    images = np.arange(len(labels)).astype(np.uint8).reshape(-1, 1, 1, 1)
    source = ArraySource(images, labels)
    as_it_is = lambda example, rng: example
    one = np.ones(1, np.float32)
    return Dataset(source, source, as_it_is, [str(name) for name in np.unique(labels)], (1, 1, 1), one, one)


def numbers(source):
    return [int(source[index]['image'].item()) for index in range(len(source))]


@given(st.lists(st.integers(2, 20), min_size=2, max_size=5), st.floats(0.1, 0.5))
def test_each_example_is_in_one_split_and_each_class_in_both_by_its_share(counts, share):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    kept = round(share * len(labels))
    if not len(counts) <= kept <= len(labels) - len(counts):
        with pytest.raises(UserError, match=r'config\.data\.validation is .* expected a share that leaves each of'):
            with_validation(numbered(labels), share)
        return
    split = with_validation(numbered(labels), share)
    assert split.validation is not None
    train, validation = numbers(split.train), numbers(split.validation)
    assert sorted(train + validation) == list(range(len(labels)))
    assert len(validation) == kept
    assert train == sorted(train) and validation == sorted(validation)
    for label, count in enumerate(counts):
        assert abs(np.sum(labels[validation] == label) - kept * count / len(labels)) < 1 + 1e-9
    np.testing.assert_array_equal(labels_of(split.train), labels[train])
    assert [split.validation[index]['label'] for index in range(kept)] == labels[validation].tolist()


def test_the_draw_is_the_same_whatever_else_is_chosen():
    config = base.get_config().data
    config.validation = 0.2
    first = data.load(config)
    assert first.validation is not None
    assert (len(first.train), len(first.validation), len(first.test)) == (1150, 287, 360)
    config.crop_padding, config.per_class = 1, 20
    second = data.load(config)
    assert len(second.train) == 200, 'few labels are counted in what is left to learn from'
    assert second.validation is not None
    np.testing.assert_array_equal(second.validation.indices, first.validation.indices)
    assert not set(first.validation.indices) & set(second.train.source.indices[second.train.indices])


def test_a_class_that_cannot_be_in_both_is_told():
    with pytest.raises(UserError, match=r'is 0\.5, 3 of 5 .* smallest has 1\.|is 0\.5, 2 of 5 .* smallest has 1\.'):
        with_validation(numbered([0, 0, 0, 0, 1]), 0.5)


def test_what_tells_no_labels_is_told():
    class Unlabelled:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {'image': np.zeros((1, 1, 1), np.uint8), 'label': np.int32(index)}

    for source in (Unlabelled(), Subset(Unlabelled(), np.arange(2))):
        with pytest.raises(UserError, match=r'tells no labels without its images: take 0 for config\.data\.validation'):
            labels_of(source)
