"""Fashion-MNIST and its like from files of the true format, as small as can be, and the real ones where installed."""

import gzip
import hashlib
import pathlib
import struct

import numpy as np
import pytest

from configs import base
from cpng_jax import data
from cpng_jax.data import idx, prepare, tfds_builders
from cpng_jax.data.tfds_builders import Archive
from cpng_jax.runtime import files
from cpng_jax.runtime.errors import UserError

COUNTS = {'train': 20, 'test': 10}
REAL = idx.DATASETS['fashion_mnist'].package
assert REAL is not None


def to_idx(array):
    """The format as LeCun describes it: two zero bytes, the type, the number of axes, their lengths, the numbers."""
    header = bytes([0, 0, 8, array.ndim]) + b''.join(struct.pack('>I', length) for length in array.shape)
    return header + array.astype(np.uint8).tobytes()


def examples(split, seed=0):
    rng = np.random.default_rng([seed, *split.encode()])
    return rng.integers(0, 256, (COUNTS[split], 28, 28), np.uint8), np.arange(COUNTS[split]) % 10


def contents(seed=0):
    """What is in the four files, by name without .gz."""
    arrays = {split: examples(split, seed) for split in COUNTS}
    prefix = {'train': 'train', 'test': 't10k'}
    return {
        f'{prefix[split]}-{kind}': to_idx(array)
        for split, pair in arrays.items()
        for kind, array in zip(('images-idx3-ubyte', 'labels-idx1-ubyte'), pair, strict=True)
    }


def published(files=None, server='http://127.0.0.1:9/', package=None, known=True):
    """What would have been published if these were the files."""
    facts = []
    for name, content in (files or contents()).items():
        packed = gzip.compress(content, mtime=0)
        archive = Archive(f'{name}.gz', f'{server}{name}.gz', len(packed), hashlib.sha256(packed).hexdigest())
        split = 'train' if name.startswith('train') else 'test'
        digest = hashlib.sha256(content).hexdigest() if known else ''
        facts.append(idx.IdxFile(split, name.partition('-')[2], COUNTS[split], archive, digest))
    return idx.Idx(tuple(facts), package)


def place(folder, files, *, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / (f'{name}.gz' if packed else name)
        path.write_bytes(gzip.compress(content, mtime=0) if packed else content)


def manual(data_dir, name='fashion_mnist'):
    return data_dir / 'downloads' / 'manual' / name


def load(data_dir, name='fashion_mnist', **changes):
    config = base.get_config().data
    config.update(name=name, dir=str(data_dir), **changes)
    return data.load(config)


def pairs(source):
    return sorted((bytes(source[i]['image']), int(source[i]['label'])) for i in range(len(source)))


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp('idx')
    place(manual(folder), contents())
    idx.prepare('fashion_mnist', folder, published())
    return folder


def test_what_was_put_in_comes_out(prepared):
    dataset = load(prepared)
    for split, source in (('train', dataset.train), ('test', dataset.test)):
        images, labels = examples(split)
        assert pairs(source) == sorted((bytes(image), int(label)) for image, label in zip(images, labels, strict=True))
    assert dataset.image_shape == (28, 28, 1)
    assert list(dataset.class_names)[:2] == ['T-shirt/top', 'Trouser']
    scaled = examples('train')[0].astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, [scaled.mean()], rtol=1e-6)
    np.testing.assert_allclose(dataset.std, [scaled.std()], rtol=1e-6)


def test_the_order_is_that_of_the_contents_whatever_tfds_shuffles(prepared, tmp_path):
    """And so it is that of the decoded images which are kept beside the records."""
    first = load(prepared)
    (kept,) = prepared.rglob('decoded-train.npz')
    digests = [
        hashlib.blake2b(tfds_builders.png(image), digest_size=16, salt=bytes([label])).digest()
        for image, label in zip(first.train.images, first.train.labels, strict=True)
    ]
    assert digests == sorted(digests)
    kept.unlink()
    second = load(prepared)
    np.testing.assert_array_equal(second.train.images, first.train.images)
    assert kept.exists()


@pytest.mark.parametrize('damage', [b'', b'PK\x03\x04', None])
def test_damaged_copies_of_the_decoded_images_are_made_again(prepared, damage):
    expected = pairs(load(prepared).train)
    (kept,) = prepared.rglob('decoded-train.npz')
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    kept.write_bytes(bytes(flipped) if damage is None else damage)
    assert pairs(load(prepared).train) == expected
    assert kept.read_bytes() == whole


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(prepared, monkeypatch):
    expected = pairs(load(prepared).test)
    (kept,) = prepared.rglob('decoded-test.npz')
    kept.unlink()

    def refuse(path, contents):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(files, 'replace', refuse)
    assert pairs(load(prepared).test) == expected
    assert not kept.exists()


@pytest.mark.parametrize('name', ['mnist', 'kmnist'])
def test_its_relatives_are_read_by_the_same_reader(tmp_path, name):
    place(manual(tmp_path, name), contents(seed=3), packed=name == 'kmnist')
    idx.prepare(name, tmp_path, published(contents(seed=3), known=name == 'mnist'))
    images, labels = examples('test', seed=3)
    assert pairs(load(tmp_path, name).test) == sorted(zip(map(bytes, images), labels.tolist(), strict=True))
    assert load(tmp_path, name).class_names[1] == {'mnist': '1', 'kmnist': 'ki'}[name]


def test_placed_files_come_first_then_the_package_then_a_download(tmp_path, monkeypatch):
    files, folder = contents(), tmp_path / 'package'
    place(folder, files)
    # The package's copy of what was placed is not looked at.
    (folder / 'train-labels-idx1-ubyte.gz').write_bytes(b'not this one')
    place(manual(tmp_path), {'train-labels-idx1-ubyte': files['train-labels-idx1-ubyte']})
    idx.prepare('fashion_mnist', tmp_path, published(package=('dataset-x', folder)))
    assert pairs(load(tmp_path).train) == sorted(zip(map(bytes, examples('train')[0]), np.arange(20) % 10, strict=True))
    place(folder, files)
    (folder / 't10k-images-idx3-ubyte.gz').unlink()
    with pytest.raises(
        UserError, match=r'Cannot download fashion_mnist .*t10k-images-idx3-ubyte\.gz on a mach'
    ) as error:
        idx.prepare('fashion_mnist', tmp_path / 'other', published(package=('dataset-x', folder)))
    message = str(error.value)
    assert 'On Debian and Ubuntu, apt-get install dataset-x has the files' in message
    assert f'place it in {manual(tmp_path / "other")}' in message


def cut(name, length):
    return lambda files: files | {name: files[name][:length]}


def swapped(first, second):
    return lambda files: files | {first: files[second], second: files[first]}


IMAGES, LABELS, TESTED = 'train-images-idx3-ubyte', 'train-labels-idx1-ubyte', 't10k-labels-idx1-ubyte'


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (cut(IMAGES, -1), r'train-images-idx3-ubyte.gz is cut off: it holds 15,695 bytes, expected 15,696\.'),
        (cut(IMAGES, 6), r'train-images-idx3-ubyte.gz announces , expected 20 x 28 x 28'),
        (cut(LABELS, 0), r'is no idx file of bytes: it begins with nothing'),
        (
            lambda files: files | {LABELS: b'<html>not found</html>'},
            r'is no idx file of bytes: it begins with 3c68746d',
        ),
        (lambda files: files | {LABELS: files[LABELS] + b'x'}, r'is too long: it holds at least 29 bytes, expected 28'),
        (swapped(IMAGES, LABELS), r'train-images-idx3-ubyte.gz holds labels, expected images: were files mixed up'),
        (swapped(LABELS, TESTED), r'train-labels-idx1-ubyte.gz announces 10, expected 20: were files mixed up'),
        (
            lambda files: contents(seed=1),
            r'is not the published train-images.* what is in it is .*that of another data',
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path, change, sentence):
    place(manual(tmp_path), change(contents()))
    with pytest.raises(UserError, match=sentence) as error:
        idx.prepare('fashion_mnist', tmp_path, published())
    assert str(manual(tmp_path)) in str(error.value)
    assert 'fetch it again from http://127.0.0.1:9/' in str(error.value)
    assert tfds_builders.prepared_folder('fashion_mnist', tmp_path) is None


@pytest.mark.parametrize('break_it', [lambda data: data[:-9], lambda data: data[:40] + b'????' + data[44:]])
def test_a_damaged_gzip_is_named(tmp_path, break_it):
    place(manual(tmp_path), contents())
    path = manual(tmp_path) / f'{IMAGES}.gz'
    path.write_bytes(break_it(path.read_bytes()))
    with pytest.raises(UserError, match=r'train-images-idx3-ubyte\.gz is damaged \('):
        idx.prepare('fashion_mnist', tmp_path, published())


def test_a_gzip_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    folder = manual(tmp_path)
    place(folder, contents())
    (folder / f'{LABELS}.gz').write_bytes(gzip.compress(to_idx(np.arange(20) % 10) + bytes(50_000_000)))
    with pytest.raises(UserError, match=r'is too long: it holds at least 37 bytes, expected 28'):
        idx.prepare('fashion_mnist', tmp_path, published())


def test_where_nobody_published_the_contents_the_file_itself_is_compared(tmp_path):
    place(manual(tmp_path, 'kmnist'), contents())
    path = manual(tmp_path, 'kmnist') / f'{LABELS}.gz'
    path.write_bytes(gzip.compress(contents()[LABELS], mtime=1))
    with pytest.raises(UserError, match=r'is not the published train-labels.* the SHA-256 of the file is'):
        idx.prepare('kmnist', tmp_path, published(known=False))


def test_what_is_at_hand_is_prepared_when_it_is_first_asked_for(tmp_path, monkeypatch, capfd):
    folder = tmp_path / 'package'
    monkeypatch.setitem(idx.DATASETS, 'fashion_mnist', published(package=('dataset-x', folder)))
    with pytest.raises(UserError, match=r'fashion_mnist is not in .*: run python -m cpng_jax\.data\.prepare fashion'):
        load(tmp_path)
    files = contents()
    place(folder, files)
    assert len(load(tmp_path).train) == COUNTS['train']
    assert 'preparing fashion_mnist in' in capfd.readouterr().err
    for path in folder.iterdir():
        path.unlink()
    assert len(load(tmp_path).test) == COUNTS['test']
    assert 'preparing' not in capfd.readouterr().err
    place(folder, files | {IMAGES: files[IMAGES][:-1]})
    with pytest.raises(UserError, match=r'train-images-idx3-ubyte\.gz is cut off'):
        load(tmp_path / 'other')


def test_the_command_knows_them(capsys):
    assert prepare.main(['fashion']) == 2
    assert 'fashion_mnist, mnist, kmnist' in capsys.readouterr().err


def test_the_real_files_are_the_published_ones_where_they_are_installed():
    """All four, or none: then there is nothing to compare, and the folder is not there."""
    assert REAL is not None
    folder = REAL[1]
    for file in idx.DATASETS['fashion_mnist'].files if folder.is_dir() else ():
        array = idx.read(folder / file.archive.file, file)
        assert len(array) == file.count
        if file.kind.startswith('labels'):
            assert np.bincount(array).tolist() == [file.count // 10] * 10
        else:
            assert array.shape == (file.count, 28, 28, 1)
    assert folder.is_dir() or not pathlib.Path('/usr/share/doc', REAL[0]).exists()
