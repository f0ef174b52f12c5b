import hashlib
import itertools
import pathlib
import struct
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict

from cpng_jax.data import cifar10_dvs
from cpng_jax.data.aedat import read_aedat
from cpng_jax.data.events import frames
from cpng_jax.data.pipeline import TrainBatches, eval_batches
from cpng_jax.runtime.errors import UserError

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
RECORDINGS = 11


def aedat(seed: int, count: int = 40) -> bytes:
    """A recording of this format with random events."""
    rng = np.random.default_rng(seed)
    addresses = rng.integers(1 << 15, size=count)
    times = np.sort(rng.integers(1_300_000, size=count))
    return b'#!AER-DAT2.0\r\n# made by a test\r\n' + np.stack([addresses, times], axis=1).astype('>u4').tobytes()


def write_zip(path: pathlib.Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w', method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def members(name: str, count: int = RECORDINGS) -> dict[str, bytes]:
    """Not in the order of their numbers, and between them what an archive of a Mac holds besides."""
    label = CLASSES.index(name)
    named = {f'{name}/cifar10_{name}_{number}.aedat': aedat(100 * label + number) for number in range(count)}
    return {f'{name}/': b'', f'__MACOSX/{name}/._cifar10_{name}_0.aedat': b'junk'} | dict(reversed(named.items()))


def write_archives(data_dir: pathlib.Path, count: int = RECORDINGS) -> pathlib.Path:
    manual = data_dir / 'downloads' / 'manual'
    for name in CLASSES:
        write_zip(manual / f'{name}.zip', members(name, count))
    return manual


def config(data_dir, **changes) -> ConfigDict:
    values = dict(
        dir=str(data_dir),
        time_steps=4,
        slicing='count',
        frame_scale='none',
        event_size=48,
        flip=True,
        roll=5,
        split='fixed',
    )
    return ConfigDict(values | changes)


def files(folder: pathlib.Path) -> set[pathlib.Path]:
    return {path for path in folder.rglob('*') if path.suffix != '.lock'}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp('data')
    write_archives(data_dir)
    cifar10_dvs.prepare(data_dir)
    return data_dir


def images(source) -> np.ndarray:
    return np.stack([source[index]['image'] for index in range(len(source))])


def test_from_archives_to_frames(data_dir):
    dataset = cifar10_dvs.load(config(data_dir))
    assert dataset.class_names == list(CLASSES)
    assert dataset.image_shape == (4, 48, 48, 2)
    options = dict(time_steps=4, slicing='count', size=(48, 48), sensor=(128, 128))
    expected = np.stack(
        [[frames(read_aedat(aedat(100 * c + n), ''), **options) for n in range(RECORDINGS)] for c in range(10)]
    )
    # The last two of eleven, in the order of their numbers, are for the test.
    np.testing.assert_array_equal(images(dataset.train), expected[:, :9].reshape(-1, 4, 48, 48, 2))
    np.testing.assert_array_equal(images(dataset.test), expected[:, 9:].reshape(-1, 4, 48, 48, 2))
    assert [dataset.train[index]['label'] for index in range(90)] == list(np.repeat(range(10), 9))


def test_the_random_split_is_another_one_of_the_same_size_and_always_the_same(data_dir):
    fixed, drawn, again = (cifar10_dvs.load(config(data_dir, split=split)) for split in ('fixed', 'random', 'random'))
    assert len(drawn.train) == len(fixed.train) == 90
    np.testing.assert_array_equal(images(drawn.test), images(again.test))
    assert not np.array_equal(images(drawn.test), images(fixed.test))
    everything = sorted(map(bytes, [*images(fixed.train), *images(fixed.test)]))
    assert sorted(map(bytes, [*images(drawn.train), *images(drawn.test)])) == everything
    assert [drawn.test[index]['label'] for index in range(20)] == list(np.repeat(range(10), 2))


def test_of_a_thousand_recordings_the_last_hundred_are_for_the_test():
    train, test = cifar10_dvs.split_indices([1000] * 10, 'fixed')
    np.testing.assert_array_equal(test, [1000 * label + number for label in range(10) for number in range(900, 1000)])
    np.testing.assert_array_equal(np.sort([*train, *test]), np.arange(10_000))
    train, test = cifar10_dvs.split_indices([1000] * 10, 'random')
    np.testing.assert_array_equal(np.bincount(test // 1000), [100] * 10)
    np.testing.assert_array_equal(np.sort([*train, *test]), np.arange(10_000))
    # Drawn, not counted off: about a tenth of the drawn ones are among the last hundred of their class.
    assert np.sum(test % 1000 >= 900) == pytest.approx(100, abs=40)


def test_batches_reach_the_network_as_counts(data_dir):
    dataset = cifar10_dvs.load(config(data_dir))
    with TrainBatches(dataset.train, dataset.augment, batch_size=30, seed=0, threads=2) as batches:
        epoch = list(itertools.islice(batches, 3))
    for batch in epoch:
        assert batch['image'].shape == (30, 4, 48, 48, 2)
        assert batch['image'].dtype == np.uint8
        # Flip and circular shift keep every event.
        assert np.all(batch['image'].sum(axis=(2, 3, 4)) == 10)
    assert sorted(np.concatenate([batch['label'] for batch in epoch])) == list(np.repeat(range(10), 9))
    (test,) = eval_batches(dataset.test, 20)
    np.testing.assert_array_equal(test['image'], images(dataset.test))
    np.testing.assert_allclose((test['image'] / 255 - dataset.mean) / dataset.std, test['image'], rtol=1e-6)


def test_frames_are_integrated_once(data_dir, monkeypatch):
    first = images(cifar10_dvs.load(config(data_dir)).test)
    before = files(data_dir)
    monkeypatch.setattr(cifar10_dvs, 'read_aedat', lambda *_: pytest.fail('read again'))
    np.testing.assert_array_equal(images(cifar10_dvs.load(config(data_dir, roll=0, split='fixed')).test), first)
    assert files(data_dir) == before
    monkeypatch.undo()
    cifar10_dvs.load(config(data_dir, slicing='time', time_steps=2, event_size=16))
    assert {path.name for path in files(data_dir) - before} == {'frames-T2-time-16.npy'}


def test_preparing_again_does_nothing(data_dir):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in files(data_dir)}

    before = stamps()
    cifar10_dvs.prepare(data_dir)
    assert stamps() == before


def test_a_published_checksum_is_compared(tmp_path, monkeypatch, caplog):
    manual = write_archives(tmp_path, 2)
    published = {path.stem: ('1', hashlib.md5(path.read_bytes()).hexdigest()) for path in manual.iterdir()}
    monkeypatch.setattr(cifar10_dvs, '_ARCHIVES', {name: published[name] for name in CLASSES} | {'cat': ('1', 'abc')})
    warned = []
    monkeypatch.setattr(cifar10_dvs.logging, 'warning', lambda message, *values: warned.append(message % values))
    cifar10_dvs.prepare(tmp_path)
    assert warned == [
        f'{manual / "cat.zip"} is not the published archive: its MD5 is {published["cat"][1]}, expected abc.'
    ]


def test_missing_archives_are_named_with_where_they_are_and_where_they_belong(tmp_path):
    manual = write_archives(tmp_path, 2)
    (manual / 'dog.zip').unlink()
    (manual / 'ship.zip').unlink()
    with pytest.raises(UserError) as caught:
        cifar10_dvs.prepare(tmp_path)
    assert str(caught.value) == (
        'CIFAR10-DVS lacks dog.zip (https://api.figshare.com/v2/file/download/7712818), '
        f'ship.zip (https://api.figshare.com/v2/file/download/7712836): download into {manual}, with a browser also '
        'from https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671 or, with the same numbers, from '
        'https://ndownloader.figshare.com/files/, which answers curl and wget with an empty file.'
    )


def test_data_that_was_not_prepared_is_named(tmp_path):
    with pytest.raises(UserError, match=rf'not in {tmp_path}: run python -m cpng_jax.data.prepare cifar10_dvs --data'):
        cifar10_dvs.load(config(tmp_path))
    with pytest.raises(UserError, match='event_size is 129, expected at most the 128'):
        cifar10_dvs.load(config(tmp_path, event_size=129))
    assert not list(tmp_path.iterdir())


def false_length(path: pathlib.Path, name: str) -> None:
    """Says in both places that a bomb unpacks to as little as its neighbours."""
    write_zip(path, members('frog', 2) | {name: aedat(0) + bytes(10**8)})
    data, size = path.read_bytes(), struct.pack('<L', len(aedat(0) + bytes(10**8)))
    assert data.count(size) == 2
    path.write_bytes(data.replace(size, struct.pack('<L', len(aedat(0)))))


def truncated(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flipped(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(b'cifar10_frog_1.aedat') + 60
    data[place] ^= 0xFF
    path.write_bytes(data)


def extra(name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED):
    return lambda path: write_zip(path, members('frog', 2) | {name: data}, method)


BAD = aedat(0)
HOSTILE = {
    'traversal': (extra('../../cifar10_frog_7.aedat', BAD), "member '../../cifar10_frog_7.aedat' leads out"),
    'absolute': (extra('/etc/cifar10_frog_7.aedat', BAD), 'leads out of the archive'),
    'drive': (extra('C:/cifar10_frog_7.aedat', BAD), 'leads out of the archive'),
    'backslash': (extra('frog\\..\\..\\cifar10_frog_7.aedat', BAD), 'leads out of the archive'),
    'bomb': (extra('cifar10_frog_7.aedat', bytes(17 << 20)), 'unpacks to 17825792 bytes'),
    'slow bomb': (extra('cifar10_frog_7.aedat', BAD, zipfile.ZIP_BZIP2), 'by method 12'),
    'hidden bomb': (lambda path: false_length(path, 'cifar10_frog_7.aedat'), 'is damaged'),
    'twice': (extra('other/cifar10_frog_1.aedat', BAD), 'recording 1 twice'),
    'other class': (lambda path: write_zip(path, members('dog', 2)), 'holds 0 recordings named like cifar10_frog_0'),
    'no zip': (lambda path: path.write_bytes(b'<html>not found</html>'), 'is not a whole zip archive'),
    'empty': (lambda path: path.write_bytes(b''), 'is not a whole zip archive'),
    'truncated': (truncated, 'is not a whole zip archive'),
    'flipped byte': (flipped, 'is damaged'),
    'huge header': (
        extra('cifar10_frog_7.aedat', b'#!AER-DAT2.0\n' + b'#\n' * 10**6),
        'cifar10_frog_7.aedat in .*header',
    ),
    'absurd times': (
        extra('cifar10_frog_7.aedat', BAD + struct.pack('>LL', 0, 2**31)),
        r'cifar10_frog_7.aedat in .*frog.zip is damaged: its times span 21',
    ),
    'backward times': (extra('cifar10_frog_7.aedat', BAD + bytes(8)), 'before an earlier one'),
    'cut off': (extra('cifar10_frog_7.aedat', BAD[:-3]), 'cifar10_frog_7.aedat in .* is cut off'),
    'old version': (extra('cifar10_frog_7.aedat', BAD.replace(b'2.0', b'1.0')), 'AEDAT version 1.0'),
}


@pytest.mark.parametrize('attack', HOSTILE)
def test_hostile_archives_are_refused_and_leave_nothing(tmp_path, attack):
    data_dir = tmp_path / 'outer' / 'data'
    manual = write_archives(data_dir, 2)
    make, message = HOSTILE[attack]
    make(manual / 'frog.zip')
    before = {path for path in files(tmp_path) if path.is_file()}
    with pytest.raises(UserError, match=message) as caught:
        cifar10_dvs.prepare(data_dir)
    assert 'frog.zip' in str(caught.value)
    assert {path for path in files(tmp_path) if path.is_file()} == before
    with pytest.raises(UserError, match=r'run python -m cpng_jax\.data\.prepare'):
        cifar10_dvs.load(config(data_dir))


def test_after_an_interruption_one_starts_again(tmp_path, monkeypatch):
    write_archives(tmp_path, 2)
    calls = itertools.count()

    def interrupted(data, name):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return read_aedat(data, name)

    with monkeypatch.context() as patch:
        patch.setattr(cifar10_dvs, 'read_aedat', interrupted)
        with pytest.raises(KeyboardInterrupt):
            cifar10_dvs.prepare(tmp_path)
    # What a process that was killed leaves.
    left = tmp_path / 'cifar10_dvs' / 'incomplete.ABCDEF_1.0.0'
    left.mkdir()
    (left / 'cifar10_dvs-bird.array_record-00000-of-00001').write_bytes(b'half')
    cifar10_dvs.prepare(tmp_path)
    assert [path.name for path in (tmp_path / 'cifar10_dvs').iterdir()] == ['1.0.0']
    assert len(cifar10_dvs.load(config(tmp_path)).train) == 10


def test_a_damaged_data_set_is_named(tmp_path):
    write_archives(tmp_path, 2)
    cifar10_dvs.prepare(tmp_path)
    folder = tmp_path / 'cifar10_dvs' / '1.0.0'
    (record,) = folder.glob('*deer.array_record*')
    record.write_bytes(b'no record')
    with pytest.raises(UserError, match=r'1\.0\.0 is damaged: remove it and run'):
        cifar10_dvs.load(config(tmp_path))
    (folder / 'dataset_info.json').unlink()
    with pytest.raises(UserError, match=r'1\.0\.0 cannot be read .*: remove it and run'):
        cifar10_dvs.load(config(tmp_path))
