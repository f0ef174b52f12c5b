"""A folder of images: what is listed, how images reach the network, and what is wrong before training."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from configs import base
from cpng_jax import data
from cpng_jax.data import digits, folder, jpeg
from cpng_jax.data.dataset import labels_of
from cpng_jax.data.pipeline import TrainBatches, eval_batches
from cpng_jax.runtime.errors import UserError

IMAGES, LABELS = digits.scans()
CLASSES = ('eight', 'nine', 'seven', 'six')  # sorted
PER_CLASS = {'train': 6, 'test': 2}


def write(place):
    """Digits 6 to 9 as files of different kinds, in folders by their names; the pixels of each by its path."""
    written = {}
    for digit, name in {6: 'six', 7: 'seven', 8: 'eight', 9: 'nine'}.items():
        scans = iter(IMAGES[digit == LABELS][..., 0])
        for split, count in PER_CLASS.items():
            (place / split / name).mkdir(parents=True)
            for number, kind in zip(
                range(count), ('a.png', 'b.PNG', 'c.JPG', 'd.jpeg', 'e.png', 'f.png'), strict=False
            ):
                path = place / split / name / f'{number}{kind}'
                written[path] = next(scans)
                Image.fromarray(written[path]).save(path, quality=100)
    return written


@pytest.fixture
def classes(tmp_path):
    write(tmp_path)
    return tmp_path


def load(place, **changes):
    config = base.get_config()
    config.data.update(name='folder', dir=str(place), image_size=8, resize='fixed')
    config.data.update(**changes)
    return data.load(config.data)


def test_classes_and_files_are_in_the_order_of_their_names(tmp_path):
    written = write(tmp_path)
    dataset = load(tmp_path)
    assert dataset.class_names == [*CLASSES]
    for split, source in (('train', dataset.train), ('test', dataset.test)):
        paths = sorted(path for path in written if path.parts[-3] == split)
        assert [example['name'] for example in map(source.__getitem__, range(len(source)))] == [*map(str, paths)]
        names = [CLASSES[label] for label in labels_of(source)]
        assert names == [path.parent.name for path in paths]
        for index, path in enumerate(paths):
            assert source[index]['label'] == labels_of(source)[index]
            image = dataset.prepare(source[index])['image']
            assert image.shape == dataset.image_shape == (8, 8, 3)
            # Grey to colour, and whole: images of the right size stay as they are.
            np.testing.assert_allclose(
                image, written[path][..., None].repeat(3, -1), atol=0 if 'png' in path.name.lower() else 6
            )


def test_images_reach_the_batches_with_workers_of_their_own(classes):
    dataset = load(classes, resize='crop', flip=True, validation=0.25, per_class=4)
    sent = pickle.loads(pickle.dumps(dataset.train))
    np.testing.assert_array_equal(np.bincount(labels_of(sent)), [4] * 4)
    with TrainBatches(sent, dataset.augment, batch_size=8, seed=0, threads=2) as batches:
        first, second = next(batches), next(batches)
    assert first['image'].shape == (8, 8, 8, 3)
    assert not np.array_equal(np.sort(first['image'], axis=0), np.sort(second['image'], axis=0))
    assert dataset.validation is not None
    for split, count in ((dataset.validation, 6), (dataset.test, 8)):
        (batch,) = eval_batches(split, 8, prepare=dataset.prepare)
        assert batch['weight'].sum() == count


def test_the_two_ways_with_images(tmp_path):
    """A wide image whose left quarter is red: nothing of it in the centre, a quarter of the whole."""
    for name in ('a', 'b'):
        for split in ('train', 'test'):
            (tmp_path / split / name).mkdir(parents=True)
            pixels = np.zeros((40, 120, 3), np.uint8)
            pixels[:, :30, 0] = 255
            Image.fromarray(pixels).save(tmp_path / split / name / 'wide.png')
    crop, fixed = (load(tmp_path, resize=resize, image_size=24) for resize in ('crop', 'fixed'))
    assert crop.prepare(crop.test[0])['image'].max() == 0, 'the centre'
    whole = fixed.prepare(fixed.test[0])['image']
    np.testing.assert_allclose(whole[..., 0].mean(), 255 / 4, atol=3)
    rng = np.random.default_rng(0)
    drawn = {crop.augment(crop.train[0], rng)['image'].tobytes() for _ in range(8)}
    assert len(drawn) > 4
    assert fixed.augment(fixed.train[0], rng)['image'].tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ('name', 'make'),
    [
        ('palette.png', lambda image: image.convert('P', palette=Image.Palette.ADAPTIVE)),
        ('alpha.png', lambda image: image.convert('RGBA')),
        ('cmyk.jpg', lambda image: image.convert('CMYK')),
        ('grey_alpha.png', lambda image: image.convert('LA')),
        ('deep.png', lambda image: Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) << 8)),
        ('line.png', lambda image: image.convert('1')),
    ],
)
def test_images_of_any_mode(classes, name, make):
    original = Image.new('RGB', (30, 20), (200, 200, 200))
    original.paste((0, 0, 0), (0, 0, 30, 10))
    make(original).save(classes / 'test' / 'eight' / f'00{name}')
    dataset = load(classes)
    image = dataset.prepare(dataset.test[0])['image'].astype(int)
    assert image[0].max() < 20
    assert image[-1].min() > 180


def test_mean_and_deviation_are_those_of_the_training_images_and_measured_once(tmp_path, monkeypatch):
    written = write(tmp_path)
    dataset = load(tmp_path)
    pixels = np.stack([scan for path, scan in written.items() if path.parts[-3] == 'train']) / 255
    np.testing.assert_allclose(dataset.mean, [pixels.mean()] * 3, rtol=0.01)
    np.testing.assert_allclose(dataset.std, [pixels.std()] * 3, rtol=0.01)
    monkeypatch.setattr(jpeg, '_decode', lambda *_: pytest.fail('decoded again'))
    again = load(tmp_path)
    assert (again.mean.tobytes(), again.std.tobytes()) == (dataset.mean.tobytes(), dataset.std.tobytes())


def test_what_has_changed_is_looked_at_again(classes):
    load(classes)
    (classes / 'train' / 'six' / 'new.png').write_bytes(b'no image')
    with pytest.raises(UserError, match=r'train/six/new\.png cannot be decoded'):
        load(classes)


def test_where_nothing_can_be_written_all_is_found_out_again(classes, monkeypatch):
    expected = load(classes, image_size=6)
    monkeypatch.setattr(folder, '_KEPT', 'train/six/0a.png')  # a file, where no folder can be
    found = load(classes, image_size=6)
    np.testing.assert_array_equal(found.mean, expected.mean)


def test_what_lies_about_is_passed_over(classes, capfd):
    before = load(classes)
    for name in ('.DS_Store', 'Thumbs.db', 'README', 'README.md', '._0a.png', 'desktop.ini'):
        for place in (classes, classes / 'train', classes / 'train' / 'six'):
            (place / name).write_text('no image')
    (classes / 'train' / '.cache').mkdir()
    after = load(classes)
    assert (after.class_names, len(after.train)) == (before.class_names, len(before.train))
    assert capfd.readouterr().err == ''
    (classes / 'train' / 'six' / 'more').mkdir()
    (classes / 'train' / 'six' / 'one.webp').write_text('')
    assert len(load(classes).train) == len(before.train)
    assert '2 files or folders in' in (told := capfd.readouterr().err)
    assert 'six/more' in told


def remove(path):
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


WRONG = {
    'no_folder': (
        lambda place: place.rename(place.parent / 'other'),
        r"config\.data\.dir is '.*', which is not a folder",
    ),
    'no_train': (
        lambda place: (place / 'train').rename(place / 'training'),
        'has no folder train, expected train/CLASS',
    ),
    'no_test': (
        lambda place: (place / 'test').rename(place / 'tests'),
        'has no folder test.*: move a share of the images of each class there',
    ),
    'val': (lambda place: (place / 'test').rename(place / 'val'), 'has no folder test.*: rename val to test'),
    'empty': (
        lambda place: [file.unlink() for file in (place / 'train' / 'six').iterdir()],
        r'train/six holds no image, expected some \.png, \.jpg, \.jpeg',
    ),
    'other_class': (
        lambda place: (place / 'test' / 'six').rename(place / 'test' / 'sax'),
        "test has the class 'sax', which .*train lacks",
    ),
    'missing_class': (lambda place: remove(place / 'test' / 'six'), "train has the class 'six', which .*test lacks"),
    'one_class': (
        lambda place: [
            remove(place / split / name) for split in ('train', 'test') for name in CLASSES if name != 'six'
        ],
        "has one class, 'six', expected folders of at least two",
    ),
    'truncated_png': (lambda place: truncate(place / 'train' / 'six' / '1b.PNG'), r'1b\.PNG cannot be decoded'),
    'truncated_jpeg': (
        lambda place: truncate(place / 'test' / 'six' / '1b.PNG') or truncate(place / 'train' / 'six' / '2c.JPG'),
        r'2c\.JPG cannot be decoded .*1 more cannot, the last being: .*1b\.PNG',
    ),
    'dangling': (
        lambda place: (place / 'train' / 'six' / 'link.png').symlink_to(place / 'nowhere.png'),
        None,  # passed over
    ),
}


@pytest.mark.parametrize('name', WRONG)
def test_what_is_wrong_is_one_sentence_that_names_it(tmp_path, name):
    place = tmp_path / 'place'
    write(place)
    spoil, sentence = WRONG[name]
    spoil(place)
    if sentence is None:
        assert len(load(place).train) == 24
        return
    with pytest.raises(UserError, match=sentence):
        load(place)


@pytest.mark.parametrize('what', ['train', 'train/six', 'train/six/0a.png'])
def test_what_may_not_be_read_is_named(classes, monkeypatch, what):
    """Whoever runs the tests, as root maybe."""
    denied = classes / what

    def refuse(original):
        def call(path, *arguments):
            if os.fspath(path) == str(denied):
                raise PermissionError(13, 'Permission denied', os.fspath(path))
            return original(path, *arguments)

        return call

    monkeypatch.setattr(folder.os, 'scandir', refuse(os.scandir))
    monkeypatch.setattr(folder.pathlib.Path, 'read_bytes', refuse(folder.pathlib.Path.read_bytes))
    with pytest.raises(UserError, match=rf'{what} cannot be read: Permission denied'):
        load(classes)


def test_a_dry_run_reads_no_image(classes, monkeypatch):
    monkeypatch.setattr(folder, 'decode_resize', lambda *_: pytest.fail('decoded'))
    fake = load(classes, fake=True, image_size=20)
    assert len(fake.class_names) == 4
    assert fake.train[0]['image'].shape == fake.image_shape == (20, 20, 3)
