"""From archives of the true format to a trained and evaluated network, for each data set that has archives."""

import importlib

import numpy as np
import pytest

from cpng_jax.data import cifar10_dvs
from cpng_jax.training import loop
from tests.data import test_cifar, test_cifar10_dvs, test_imagenet


def place_cifar100(folder):
    images, labels = test_cifar.examples(8, 100, 0)
    row = test_cifar.records(images, labels % 20, labels)
    names = {f'{kind}_label_names.txt': '\n'.join(getattr(test_cifar, kind.upper())) for kind in ('fine', 'coarse')}
    files = {'train.bin': row, 'test.bin': row, **{name: text.encode() for name, text in names.items()}}
    test_cifar.place(folder, 'cifar100', {f'cifar-100-binary/{name}': content for name, content in files.items()})


def place_cifar10(folder):
    test_cifar.place(folder, 'cifar10', test_cifar.cifar10_files()[0])


def place_dvs(folder):
    test_cifar10_dvs.write_archives(folder, 3)
    cifar10_dvs.prepare(folder)


def place_imagenet(folder):
    train_files = {f'{synset}.tar': test_imagenet.tar(files) for synset, files in test_imagenet.train_files().items()}
    test_imagenet.place(folder, test_imagenet.tar(train_files), test_imagenet.tar(test_imagenet.VALIDATION))


@pytest.mark.trains
@pytest.mark.parametrize(
    ('name', 'place', 'tested'),
    [
        ('cifar10_resnet19', place_cifar10, 5),
        ('cifar100_vgg16', place_cifar100, 8),
        ('cifar10_dvs_vgg11_tet', place_dvs, 10),
        ('imagenet_sew_resnet34', place_imagenet, 3),
    ],
)
def test_prepare_train_eval(tmp_path, name, place, tested):
    place(tmp_path / 'data')
    config = importlib.import_module(f'configs.{name}').get_config()
    config.data.dir = str(tmp_path / 'data')
    config.epochs = 2
    config.batch_size = 6
    config.model.name = 'vgg' if 'dvs' not in name else 'vgg11'  # a short one, that compiles in seconds
    for field in ('head', 'stem_width', 'connect'):
        if field in config.model:
            del config.model[field]
    if config.model.name == 'vgg':
        config.model.stages = ((4,), (8,))
    config.model.width = 1 / 16 if config.model.name == 'vgg11' else 1.0
    config.model.time_steps = 2
    if 'imagenet' in name:
        config.data.image_size = 32
    if 'dvs' in name:
        config.data.event_size, config.data.roll = 16, 1
    config.eval.batch_size = 4
    trained = loop.run(config, tmp_path / 'run')
    measured = loop.run(config, tmp_path / 'run', 'eval')
    assert measured['step'] == trained['step'] > 1
    assert measured['examples'] == tested
    assert measured['test_accuracy'] == pytest.approx(trained['test_accuracy'])
    assert np.isfinite(measured['test_loss'])
