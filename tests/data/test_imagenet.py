"""ImageNet from archives of the true format with a few photographs, to batches."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from configs import base
from cpng_jax import data
from cpng_jax.data import imagenet, jpeg, prepare, tfds_builders
from cpng_jax.data.dataset import labels_of
from cpng_jax.data.pipeline import TrainBatches, eval_batches
from cpng_jax.runtime.errors import UserError
from tests.data.test_cifar import published

SYNSETS = ['n01440764', 'n01443537', 'n15075141']  # the first, the second and the last class
LABELS = [0, 1, 999]


def photograph(index, size, mode='RGB', kind='JPEG'):
    picture = Image.fromarray(load_sample_images().images[index % 2]).convert(mode).resize(size)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def train_files():
    """Two images a class, among them a grey one, a CMYK one and a PNG with the wrong name, as in the real set."""
    kinds = [('RGB', 'JPEG'), ('L', 'JPEG'), ('CMYK', 'JPEG'), ('RGB', 'PNG'), ('RGB', 'JPEG'), ('RGB', 'JPEG')]
    return {
        synset: {
            f'{synset}_{number}.JPEG': photograph(number, (90 + 10 * place, 70), *kinds[2 * place + number])
            for number in range(2)
        }
        for place, synset in enumerate(SYNSETS)
    }


VALIDATION = {f'ILSVRC2012_val_{number:08d}.JPEG': photograph(number, (120, 80)) for number in (3, 1, 2)}


def place(data_dir, train, validation):
    folder = tfds_builders.manual_folder(data_dir)
    folder.mkdir(parents=True)
    (folder / imagenet.TRAIN_ARCHIVE).write_bytes(train)
    (folder / imagenet.VALIDATION_ARCHIVE).write_bytes(validation)
    names = (imagenet.TRAIN_ARCHIVE, imagenet.VALIDATION_ARCHIVE)
    imagenet.prepare(
        data_dir, tuple(published(folder / name, 'https://nowhere.invalid')._replace(fetched=False) for name in names)
    )


def load(data_dir, **changes):
    config = base.get_config()
    config.data.update(name='imagenet2012', dir=str(data_dir), image_size=56, **changes)
    return data.load(config.data)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp('imagenet') / 'data'
    train = tar({f'{synset}.tar': tar(files) for synset, files in train_files().items()})
    place(folder, train, tar(VALIDATION))
    return folder


def test_the_encoded_images_are_those_put_in(prepared):
    dataset = load(prepared)
    expected = {name: content for files in train_files().values() for name, content in files.items()}
    found = {example['name'].decode(): example for example in (dataset.train[i] for i in range(len(dataset.train)))}
    assert found.keys() == expected.keys()
    for name, example in found.items():
        assert example['image'] == expected[name]
        assert example['label'] == LABELS[SYNSETS.index(name.split('_')[0])]
    assert len(dataset.class_names) == 1000
    assert [dataset.class_names[label] for label in LABELS] == SYNSETS


def test_labels_are_known_without_the_images(prepared, monkeypatch):
    dataset = load(prepared, validation=0.5)
    assert dataset.validation is not None
    for source in (dataset.train, dataset.validation):
        assert sorted(labels_of(source)) == LABELS
        assert [example['label'] for example in map(source.__getitem__, range(3))] == labels_of(source).tolist()
    monkeypatch.setattr(tfds_builders, 'read_all', lambda _: pytest.fail('read again'))
    np.testing.assert_array_equal(labels_of(load(prepared, validation=0.5).train), labels_of(dataset.train))


def test_validation_labels_go_by_the_number_in_the_name(prepared):
    dataset = load(prepared)
    # The first three lines of the list that ships with TFDS.
    synsets = imagenet._validation_labels(tfds_builders.import_tfds())
    assert len(synsets) == 50_000
    for index in range(len(dataset.test)):
        example = dataset.test[index]
        number = int(example['name'].decode()[15:23])
        assert dataset.class_names[example['label']] == synsets[number - 1]
        assert example['image'] == VALIDATION[example['name'].decode()]


def test_images_reach_the_batches(prepared):
    dataset = load(prepared, flip=True)
    with TrainBatches(dataset.train, dataset.augment, batch_size=6, seed=0, threads=2) as batches:
        first, second = next(batches), next(batches)
    assert first['image'].shape == (6, 56, 56, 3)
    assert first['image'].dtype == np.uint8
    assert sorted(first['label']) == sorted(LABELS * 2)
    assert first['label'].dtype == np.int32
    assert not np.array_equal(np.sort(first['image'], axis=0), np.sort(second['image'], axis=0))
    (batch,) = eval_batches(dataset.test, 4, prepare=dataset.prepare)
    for image, index in zip(batch['image'], range(3), strict=False):
        encoded = dataset.test[index]['image']
        np.testing.assert_array_equal(image, jpeg.decode_resize_centre_crop(encoded, 64, 56))


def test_missing_archives_are_named_with_where_to_get_them(tmp_path, capsys):
    assert prepare.main(['imagenet2012', f'--data_dir={tmp_path}']) == 2
    message = capsys.readouterr().err
    assert 'ImageNet needs ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in' in message
    assert 'register at https://image-net.org' in message


@pytest.mark.parametrize(
    ('train', 'validation', 'sentence'),
    [
        (lambda: tar({'readme.txt': b'x'}), lambda: tar(VALIDATION), r"img_train.tar holds 'readme.txt'"),
        (lambda: tar({'n01440764.tar': b'x' * 900}), lambda: tar(VALIDATION), r'img_train.tar is damaged'),
        (
            lambda: tar({f'{SYNSETS[0]}.tar': tar(train_files()[SYNSETS[0]])[:3000]}),
            lambda: tar(VALIDATION),
            r'img_train.tar is damaged',
        ),
        (
            lambda: tar({f'{SYNSETS[0]}.tar': tar(train_files()[SYNSETS[0]])}),
            lambda: tar({'ILSVRC2012_val_00050001.JPEG': b'x'}),
            r"img_val.tar holds 'ILSVRC2012_val_00050001.JPEG'",
        ),
    ],
)
def test_a_wrong_archive_is_named(tmp_path, train, validation, sentence):
    with pytest.raises(UserError, match=sentence):
        place(tmp_path, train(), validation())
    assert tfds_builders.prepared_folder('imagenet2012', tmp_path) is None


def test_names_that_lead_out_of_the_archive_write_nothing(tmp_path):
    inner = tar({'../../../outside.JPEG': photograph(0, (40, 40))})
    place(tmp_path / 'data', tar({f'../{SYNSETS[0]}.tar': inner}), tar(VALIDATION))
    assert not list(tmp_path.rglob('outside.JPEG'))
    assert len(load(tmp_path / 'data').train) == 1


def test_what_was_not_prepared_is_named(tmp_path):
    with pytest.raises(UserError, match=r'run python -m cpng_jax.data.prepare imagenet2012 --data_dir='):
        load(tmp_path)
