import numpy as np
import pytest

from configs import base
from cpng_jax import data
from cpng_jax.runtime.errors import UserError


@pytest.mark.parametrize('name', [name for name in data.DATASETS if name != 'folder'])
def test_examples_have_the_shape_and_the_labels_announced(name):
    config = base.get_config()
    config.data.update(name=name, fake=True, fake_examples=100, event_size=12, image_size=20)
    config.model.time_steps = 3
    dataset = data.load(config.data)
    assert (len(dataset.train), len(dataset.test)) == (100, 25)
    rng = np.random.default_rng(0)
    for example in (dataset.augment(dataset.train[99], rng), dataset.prepare(dataset.test[0])):
        assert example['image'].shape == dataset.image_shape
        assert example['image'].dtype == np.uint8
        assert example['image'].std() > 50
        assert 0 <= example['label'] < len(dataset.class_names)
    assert dataset.mean.shape == dataset.std.shape == dataset.image_shape[-1:]
    if name in ('digits_events', 'cifar10_dvs'):
        assert dataset.image_shape == (3, 12, 12, 2)


def test_few_of_each_class_are_as_many_as_of_the_data_set_itself():
    config = base.get_config()
    config.data.update(name='cifar100', fake=True, fake_examples=4000, per_class=3)
    dataset = data.load(config.data)
    labels = [dataset.train[index]['label'] for index in range(len(dataset.train))]
    assert np.bincount(labels).tolist() == [3] * 100
    assert len(dataset.test) == 1000


def test_a_crop_of_nothing_but_padding_is_one_sentence():
    config = base.get_config()
    config.data.update(fake=True, crop_padding=9)
    with pytest.raises(UserError, match=r'config\.data\.crop_padding is 9, expected at most the 8 of an image\.'):
        data.load(config.data)
