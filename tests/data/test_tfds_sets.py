"""Data sets of TFDS by their names, from builders that write ArrayRecord without TensorFlow, to batches."""

import io
import pathlib
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs import base
from cpng_jax import data
from cpng_jax.data import digits, tfds_builders
from cpng_jax.data.dataset import labels_of
from cpng_jax.data.pipeline import TrainBatches, eval_batches
from cpng_jax.runtime.errors import UserError

IMAGES, LABELS = digits.scans()
KINDS = {
    'image': tfds.features.Image(shape=(None, None, 1)),
    'label': tfds.features.ClassLabel(names=[f'digit {digit}' for digit in range(10)]),
}


def encode(image):
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, 'PNG')
    return buffer.getvalue()


def examples(count, image='image', label='label', labels=LABELS, **others):
    return [
        {image: encode(pixels), label: int(digit), **others}
        for pixels, digit in zip(IMAGES[:count], labels[:count], strict=True)
    ]


def write(
    folder, splits, *, called='scans', kinds=KINDS, file_format='array_record', version='1.0.0', keys=None, config=None
):
    """Writes a data set as TFDS does."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = called
        archives = ()
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            features = tfds.features.FeaturesDict(kinds) if isinstance(kinds, dict) else kinds
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=keys)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows) for split, rows in splits.items()}

        def _generate_examples(self, rows):
            yield from enumerate(rows)

    Builder(data_dir=folder, file_format=file_format).download_and_prepare()


def load(folder, name='tfds:scans', **changes):
    config = base.get_config()
    config.data.update(name=name, dir=str(folder), image_size=8, resize='fixed')
    config.data.update(**changes)
    return data.load(config.data)


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scans')
    write(folder, {'train': examples(60), 'test': examples(20), 'validation': examples(10)})
    return folder


def test_images_and_labels_are_those_put_in(scans):
    dataset = load(scans)
    assert dataset.class_names == KINDS['label'].names
    expected = {image.tobytes(): label for image, label in zip(IMAGES[:60], LABELS[:60], strict=True)}
    assert (len(dataset.train), len(dataset.test)) == (60, 20)
    for index in range(60):
        image = dataset.prepare(dataset.train[index])['image']
        assert image.shape == dataset.image_shape == (8, 8, 3)
        assert expected[image[..., :1].tobytes()] == dataset.train[index]['label'] == labels_of(dataset.train)[index]
    scaled = IMAGES[:60] / 255
    np.testing.assert_allclose(dataset.mean, [scaled.mean()] * 3, rtol=1e-5)
    np.testing.assert_allclose(dataset.std, [scaled.std()] * 3, rtol=1e-5)


def test_labels_and_statistics_are_read_once(scans, monkeypatch):
    first = load(scans)
    expected = labels_of(first.train)
    again = load(scans)
    monkeypatch.setattr(tfds_builders, 'read_all', lambda _: pytest.fail('read again'))
    monkeypatch.setattr(type(again.train), '__getitem__', lambda *_: pytest.fail('read again'))
    np.testing.assert_array_equal(labels_of(again.train), expected)
    np.testing.assert_array_equal(again.mean, first.mean)
    assert labels_of(again.train).dtype == np.int32


def test_batches_with_a_validation_share_and_workers_of_their_own(scans):
    dataset = load(scans, resize='crop', flip=True, validation=0.25, per_class=2)
    source = pickle.loads(pickle.dumps(dataset.train))
    with TrainBatches(source, dataset.augment, batch_size=10, seed=0, threads=2) as batches:
        assert next(batches)['image'].shape == (10, 8, 8, 3)
    assert dataset.validation is not None
    (batch,) = eval_batches(dataset.validation, 15, prepare=dataset.prepare)
    assert batch['weight'].sum() == 15


def test_a_dry_run_needs_the_description_alone(scans):
    fake = load(scans, fake=True, image_size=12)
    assert fake.image_shape == (12, 12, 3)
    assert len(fake.class_names) == 10


@pytest.mark.parametrize('labels', [None, -1 * np.ones(10, int)], ids=['no test', 'no labels in test'])
def test_without_a_labelled_test_split_validation_serves(tmp_path, capfd, labels):
    splits = {'train': examples(20), 'validation': examples(15)}
    if labels is not None:
        splits['test'] = examples(10, labels=labels)
    write(tmp_path, splits)
    assert len(load(tmp_path).test) == 15
    told = capfd.readouterr().err
    assert 'tfds:scans has no labelled split test: the split validation serves as the test.' in told


def test_names_as_tfds_writes_them(tmp_path):
    for version, count in (('1.0.0', 11), ('1.2.0', 12), ('1.10.0', 13)):
        write(tmp_path, {'train': examples(count), 'test': examples(10)}, version=version, config='grey')
    for name, count in (('/grey', 13), ('/grey:1.2.0', 12), ('/grey:1.0.0', 11)):
        assert len(load(tmp_path, f'tfds:scans{name}').train) == count
    with pytest.raises(
        UserError, match=r'which is not in .*; there are tfds:scans/grey:1\.0\.0, tfds:scans/grey:1\.10'
    ):
        load(tmp_path, 'tfds:scans')
    with pytest.raises(UserError, match=r"'tfds:scans/grey:3\.0\.0', which is not in"):
        load(tmp_path, 'tfds:scans/grey:3.0.0')
    for name in ('tfds:', 'tfds:../scans', 'tfds:scans:latest', 'tfds:scans/'):
        with pytest.raises(UserError, match=r'expected tfds:NAME, tfds:NAME/config or tfds:NAME:1\.0\.0'):
            load(tmp_path, name)


def test_features_of_other_names(tmp_path):
    """The only ones of their kind; or those that TFDS would hand to a supervised training."""
    kinds = {'picture': KINDS['image'], 'digit': KINDS['label'], 'id': tfds.features.Text()}
    rows = lambda count: examples(count, image='picture', label='digit', id='one')
    write(tmp_path, {'train': rows(20), 'test': rows(10)}, kinds=kinds)
    assert sorted(labels_of(load(tmp_path).train)) == sorted(LABELS[:20])
    kinds = {'image': KINDS['image'], 'label': KINDS['label'], 'coarse': tfds.features.ClassLabel(num_classes=2)}
    rows = [{**row, 'coarse': row['label'] % 2} for row in examples(20)]
    for keys, called, classes in ((('image', 'coarse'), 'by_keys', 2), (None, 'by_names', 10)):
        write(tmp_path, {'train': rows, 'test': rows}, kinds=kinds, keys=keys, called=called)
        assert len(load(tmp_path, f'tfds:{called}').class_names) == classes


TEXT = tfds.features.Text()


@pytest.mark.parametrize(
    ('kinds', 'rows', 'sentence'),
    [
        (
            {**KINDS, 'label': np.int64},
            examples(3),
            r'it has no ClassLabel feature, expected one; its features are image \(',
        ),
        ({'image': TEXT, 'label': KINDS['label']}, [{'image': 'a', 'label': 0}], r'it has no Image feature'),
        (
            {'a': KINDS['label'], 'b': KINDS['label'], 'image': KINDS['image']},
            [{'a': 0, 'b': 1, 'image': encode(IMAGES[0])}],
            r'it has the ClassLabel features a and b, expected one',
        ),
        (
            {**KINDS, 'label': tfds.features.ClassLabel(num_classes=1)},
            examples(3, labels=np.zeros(3, int)),
            r"a label 'label' of 1 classes, expected at least 2",
        ),
    ],
    ids=['number', 'no image', 'two labels', 'one class'],
)
def test_what_is_no_image_classification_is_one_sentence(tmp_path, kinds, rows, sentence):
    write(tmp_path, {'train': rows, 'test': rows}, kinds=kinds)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path)


@pytest.mark.parametrize(
    ('splits', 'sentence'),
    [
        ({'test': examples(3)}, 'it has no labelled split train, but test'),
        ({'train': examples(3)}, 'it has neither test nor validation with labels, but train'),
    ],
)
def test_missing_splits_are_named(tmp_path, splits, sentence):
    write(tmp_path, splits)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path)


def test_what_is_not_there_is_named_with_the_command(tmp_path):
    with pytest.raises(
        UserError, match=r"'tfds:scans', which is not in .*\. TFDS prepares it.*data_source\('scans', data_"
    ):
        load(tmp_path)


def test_tfrecord_and_damage_are_named(tmp_path):
    write(tmp_path, {'train': examples(3), 'test': examples(3)})
    info = pathlib.Path(tmp_path, 'scans', '1.0.0', 'dataset_info.json')
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(UserError, match=r'was prepared as tfrecord, which needs TensorFlow'):
        load(tmp_path)
    info.write_text('{')
    with pytest.raises(
        UserError, match=r'scans/1\.0\.0 cannot be read .*: remove it and prepare it again as ArrayRecord'
    ):
        load(tmp_path)


def test_images_that_are_no_bytes_are_named(tmp_path):
    """TFDS puts float32 into the four channels of a PNG; to write one it needs TensorFlow."""
    write(tmp_path, {'train': examples(3), 'test': examples(3)})
    description = tmp_path / 'scans' / '1.0.0' / 'features.json'
    description.write_text(description.read_text().replace('"uint8"', '"float32"'))
    with pytest.raises(UserError, match=r'it has images of float32, expected uint8'):
        load(tmp_path)
