"""CIFAR from an archive of the true format, as small as can be, to batches."""

import io
import os
import pathlib
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest

from configs import base
from cpng_jax import data
from cpng_jax.data import cifar, prepare, tfds_builders
from cpng_jax.data.pipeline import TrainBatches, eval_batches
from cpng_jax.data.tfds_builders import Archive
from cpng_jax.runtime.errors import UserError

FINE, COARSE = ([f'{kind}{number:02d}' for number in range(count)] for kind, count in (('fine', 100), ('coarse', 20)))
TEN = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']


def examples(count, classes, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, classes, count)


def records(images, *labels):
    """Rows of label bytes and then the planes of red, green and blue."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([np.stack(labels, axis=1).astype(np.uint8), planes], axis=1).tobytes()


def write_tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w:gz') as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def published(path, source):
    """What would have been published if this file were the archive."""
    import hashlib

    return Archive(path.name, source, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def cifar10_files():
    parts = {number: examples(4, 10, number) for number in range(1, 6)}
    files = {f'cifar-10-batches-bin/data_batch_{n}.bin': records(x, y) for n, (x, y) in parts.items()}
    test = examples(5, 10, 9)
    files['cifar-10-batches-bin/test_batch.bin'] = records(*test)
    files['cifar-10-batches-bin/batches.meta.txt'] = ('\n'.join(TEN) + '\n\n').encode()
    files['cifar-10-batches-bin/readme.html'] = b'<html>'
    files['../../outside.txt'] = b'of a hostile archive'
    train = [np.concatenate(column) for column in zip(*parts.values(), strict=True)]
    return files, train, test


def place(data_dir, name, files):
    """Places an archive and prepares the data set from it."""
    file = cifar.ARCHIVES[name][0].file
    path = write_tar(data_dir / 'downloads' / 'manual' / file, files)
    cifar.prepare(name, data_dir, (published(path, cifar.ARCHIVES[name][0].source),))


def load(name, data_dir, **changes):
    config = base.get_config()
    config.data.update(name=name, dir=str(data_dir), **changes)
    return data.load(config.data)


@pytest.fixture(scope='module')
def ten(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ten') / 'a[0]*?' / '%s {} #' / 'data'
    files, train, test = cifar10_files()
    place(folder, 'cifar10', files)
    return folder, train, test


def test_cifar10_holds_what_was_put_in(ten):
    folder, train, test = ten
    dataset = load('cifar10', folder)
    for split, (images, labels) in ((dataset.train, train), (dataset.test, test)):
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)
    assert list(dataset.class_names) == TEN
    assert dataset.image_shape == (32, 32, 3)
    scaled = train[0].astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, scaled.std(axis=(0, 1, 2)), rtol=1e-6)
    assert not (folder.parents[1] / 'outside.txt').exists()
    assert not list(folder.rglob('outside.txt'))


def test_cifar10_reaches_the_batches(ten):
    folder, (images, labels), (test_images, test_labels) = ten
    dataset = load('cifar10', folder, crop_padding=4, flip=True, cutout=8, policy='autoaugment')
    with TrainBatches(dataset.train, dataset.augment, batch_size=5, seed=0) as batches:
        seen = [next(batches) for _ in range(4)]
    assert all(batch['image'].shape == (5, 32, 32, 3) and batch['image'].dtype == np.uint8 for batch in seen)
    assert sorted(np.concatenate([batch['label'] for batch in seen])) == sorted(labels)
    plain = load('cifar10', folder)
    with TrainBatches(plain.train, plain.augment, batch_size=20, seed=0) as batches:
        batch = next(batches)
    for image, label in zip(batch['image'], batch['label'], strict=True):
        index = next(index for index, other in enumerate(images) if np.array_equal(image, other))
        assert labels[index] == label
    (batch,) = eval_batches(dataset.test, 8, prepare=dataset.prepare)
    np.testing.assert_array_equal(batch['image'][:5], test_images)
    np.testing.assert_array_equal(batch['label'][:5], test_labels)
    np.testing.assert_array_equal(batch['weight'], [1] * 5 + [0] * 3)


def test_cifar100_takes_the_fine_labels(tmp_path):
    (images, fine), (test_images, test_fine) = examples(7, 100, 0), examples(3, 100, 1)
    files = {
        'cifar-100-binary/train.bin': records(images, fine % 20, fine),
        'cifar-100-binary/test.bin': records(test_images, test_fine % 20, test_fine),
        'cifar-100-binary/fine_label_names.txt': '\n'.join(FINE).encode(),
        'cifar-100-binary/coarse_label_names.txt': '\n'.join(COARSE).encode(),
    }
    place(tmp_path, 'cifar100', files)
    dataset = load('cifar100', tmp_path)
    np.testing.assert_array_equal(dataset.train.images, images)
    np.testing.assert_array_equal(dataset.train.labels, fine)
    np.testing.assert_array_equal(dataset.test.labels, test_fine)
    assert list(dataset.class_names) == FINE


def test_a_prepared_data_set_is_left_alone(ten, capsys):
    folder, *_ = ten
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    assert prepare.main(['cifar10', f'--data_dir={folder}']) == 0
    assert 'cifar10 is ready in' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob('*')} == before


def test_the_published_checksum_is_demanded(tmp_path, capsys):
    path = write_tar(tmp_path / 'downloads' / 'manual' / 'cifar-10-binary.tar.gz', cifar10_files()[0])
    assert prepare.main(['cifar10', f'--data_dir={tmp_path}']) == 2
    message = capsys.readouterr().err
    assert f'{path} is not the published archive: it has {path.stat().st_size:,} bytes' in message
    assert 'expected 170,052,171' in message
    archive = published(path, 'https://nowhere.invalid/x')
    path.write_bytes(path.read_bytes()[:-1] + b'?')
    with pytest.raises(UserError, match=f'its SHA-256 is .*, expected {archive.sha256}'):
        cifar.prepare('cifar10', tmp_path, (archive,))
    assert tfds_builders.prepared_folder('cifar10', tmp_path) is None


def break_file(files, name, content):
    return files | {f'cifar-10-batches-bin/{name}': content}


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (lambda f: break_file(f, 'data_batch_5.bin', b'x' * 100), 'bytes of train images, expected a multiple of 3073'),
        (lambda f: break_file(f, 'test_batch.bin', b'\x0a' * 3073), r'test image 0 has labels \[10\], expected \[10\]'),
        (lambda f: break_file(f, 'test_batch.bin', b''), 'holds 0 bytes of test images'),
        (lambda f: {k: v for k, v in f.items() if 'data_batch_3' not in k}, 'lacks data_batch_3.bin'),
    ],
)
def test_a_wrong_archive_is_named(tmp_path, change, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        place(tmp_path, 'cifar10', change(cifar10_files()[0]))
    assert 'cifar-10-binary.tar.gz' in str(error.value)
    assert tfds_builders.prepared_folder('cifar10', tmp_path) is None


def test_a_truncated_archive_is_named(tmp_path):
    path = write_tar(tmp_path / 'downloads' / 'manual' / 'cifar-10-binary.tar.gz', cifar10_files()[0])
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r'cifar-10-binary.tar.gz is damaged'):
        cifar.prepare('cifar10', tmp_path, (published(path, 'https://nowhere.invalid/x'),))


def test_without_a_network_the_user_learns_what_to_place_where(tmp_path):
    archive = Archive('cifar-10-binary.tar.gz', 'http://127.0.0.1:9/cifar-10-binary.tar.gz', 10, 'a' * 64)
    with pytest.raises(UserError, match=r'Cannot download cifar10 .*127.0.0.1:9/cifar-10') as error:
        cifar.prepare('cifar10', tmp_path, (archive,))
    assert f'place it in {tmp_path / "downloads" / "manual"}' in str(error.value)


def test_what_was_not_prepared_is_named(tmp_path):
    with pytest.raises(UserError, match=r'run python -m cpng_jax.data.prepare cifar10 --data_dir='):
        load('cifar10', tmp_path)


def test_tfrecord_is_explained(ten, tmp_path):
    import shutil

    folder, *_ = ten
    shutil.copytree(folder / 'cifar10', tmp_path / 'cifar10')
    (info,) = (tmp_path / 'cifar10').rglob('dataset_info.json')
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(UserError, match=r'was prepared as tfrecord, which needs TensorFlow.* --data_dir='):
        load('cifar10', tmp_path)


def test_a_damaged_data_set_is_named(ten, tmp_path):
    import shutil

    folder, *_ = ten
    shutil.copytree(folder / 'cifar10', tmp_path / 'cifar10')
    (info,) = (tmp_path / 'cifar10').rglob('dataset_info.json')
    info.write_text('{')
    with pytest.raises(UserError, match=r'cannot be read .* remove it and run'):
        load('cifar10', tmp_path)


def test_an_unknown_name_is_answered(capsys):
    assert prepare.main(['cifar11']) == 2
    assert (
        "NAME is 'cifar11', expected one of fashion_mnist, mnist, kmnist, cifar10, cifar100, cifar10_dvs, "
        "imagenet2012; the nearest is 'cifar10'.\n" in capsys.readouterr().err
    )


KILLED = """
import pathlib, sys, time
sys.path[:0] = ['.', 'tests/data']
import test_cifar as t
slow = t.tfds_builders.png
def png(pixels):
    time.sleep(0.2)
    print('at work', flush=True)
    return slow(pixels)
t.tfds_builders.png = png
t.place(pathlib.Path(sys.argv[1]), 'cifar10', t.cifar10_files()[0])
"""


@pytest.mark.processes
def test_a_killed_command_leaves_nothing_that_looks_prepared_and_can_be_run_again(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, '-c', KILLED, str(tmp_path)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    )
    assert process.stdout is not None
    with process.stdout:
        while b'at work' not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(0.5)
        process.kill()
        process.wait()
    assert list((tmp_path / 'cifar10').glob('incomplete.*'))
    assert tfds_builders.prepared_folder('cifar10', tmp_path) is None
    files, (images, _), _ = cifar10_files()
    place(tmp_path, 'cifar10', files)
    assert not list((tmp_path / 'cifar10').glob('incomplete.*'))
    np.testing.assert_array_equal(load('cifar10', tmp_path).train.images, images)
