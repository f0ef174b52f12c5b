"""Decoding of photographs against a decode of the whole image, and the law of the random crops."""

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_image

from cpng_jax.data import jpeg
from cpng_jax.runtime.errors import UserError


@pytest.fixture(scope='module')
def photograph():
    return Image.fromarray(load_sample_image('china.jpg'))  # 640 x 427


def encode(image, kind='JPEG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def far(first, second):
    """Root of the mean squared difference, in levels of 255."""
    return float(np.sqrt(np.mean((first.astype(float) - second.astype(float)) ** 2)))


@pytest.mark.parametrize('factor', [1, 2, 3, 5])
def test_the_centre_crop_is_that_of_the_scaled_image(photograph, factor):
    """As the paper says: resize the image, then crop the centre; at sizes where the JPEG is decoded at a fraction."""
    data = encode(photograph.resize((640 * factor, 427 * factor)), quality=95)
    whole = Image.open(io.BytesIO(data)).convert('RGB')
    scaled = whole.resize((int(256 * whole.width / whole.height), 256), Image.Resampling.BILINEAR)
    left, top = round((scaled.width - 224) / 2), round((256 - 224) / 2)
    expected = np.asarray(scaled.crop((left, top, left + 224, top + 224)))
    found = jpeg.decode_resize_centre_crop(data, 256, 224)
    assert found.shape == (224, 224, 3)
    assert found.dtype == np.uint8
    assert far(found, expected) < 3
    # No shift: the neighbouring crops are further away.
    for shift in (-1, 1):
        other = np.asarray(scaled.crop((left + shift, top, left + shift + 224, top + 224)))
        assert far(found, other) > 2 * far(found, expected)


@pytest.mark.parametrize('seed', range(6))
def test_a_random_crop_is_its_rectangle_scaled(photograph, seed):
    data = encode(photograph.resize((1280, 854)), quality=95)
    box = jpeg.random_box(1280, 854, np.random.default_rng(seed))
    whole = Image.open(io.BytesIO(data)).convert('RGB')
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    expected = np.asarray(whole.crop(corners).resize((64, 64), Image.Resampling.BILINEAR))
    found = jpeg.decode_random_resized_crop(data, 64, np.random.default_rng(seed))
    assert found.shape == (64, 64, 3)
    assert far(found, expected) < 8
    assert far(found, expected) < 0.25 * float(np.std(expected.astype(float)))


@pytest.mark.parametrize(('width', 'height'), [(1501, 1001), (1217, 913), (641, 427)])
def test_a_crop_in_the_last_corner_of_an_odd_size_is_not_shifted(photograph, width, height, monkeypatch):
    """The last column and row of a JPEG decoded at a fraction stand for less than the others."""
    # Without fine detail, of which a fraction would lose some.
    data = encode(photograph.resize((60, 40)).resize((width, height)), quality=95)
    size = 40
    box = jpeg.Box(width - 9 * size, height - 9 * size, 9 * size, 9 * size)
    monkeypatch.setattr(jpeg, 'random_box', lambda *_: box)
    whole = Image.open(io.BytesIO(data)).convert('RGB')
    corners = (box.left, box.top, width, height)
    expected = np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR, box=corners))
    found = jpeg.decode_random_resized_crop(data, size, np.random.default_rng(0))
    assert far(found, expected) < 2  # 4 to 9 where the size is taken for a whole fraction


@pytest.mark.parametrize('edge', [223, 224, 447, 448, 895, 896, 1791, 1792, 3000])
def test_a_jpeg_is_decoded_at_the_smallest_fraction_that_has_enough_pixels(edge, monkeypatch):
    decoded = []
    monkeypatch.setattr(jpeg, '_rgb', lambda image: decoded.append(image.size[0]) or image.convert('RGB'))
    monkeypatch.setattr(jpeg, 'random_box', lambda width, height, _: jpeg.Box(0, 0, width, height))
    data = encode(Image.new('RGB', (edge, edge)))
    jpeg.decode_random_resized_crop(data, 224, np.random.default_rng(0))
    fraction = max([f for f in (1, 2, 4, 8) if edge / f >= 224], default=1)
    assert decoded == [math.ceil(edge / fraction)]


def law_of_the_crops(width, height, count, rng):
    """Width and height of crops by rejection over arrays, ten draws for each."""
    areas = width * height * rng.uniform(0.08, 1, (count, 10))
    aspects = (4 / 3) ** rng.uniform(-1, 1, (count, 10))
    sizes = np.rint(np.sqrt([areas * aspects, areas / aspects]))
    fits = (sizes[0] <= width) & (sizes[1] <= height)
    sizes = sizes[:, np.arange(count), fits.argmax(axis=1)]
    return sizes[:, fits.any(axis=1)]


@pytest.mark.parametrize(('width', 'height'), [(500, 375), (300, 600)])
def test_the_crops_of_a_photograph_follow_their_law_of_rejection(width, height):
    rng = np.random.default_rng(0)
    boxes = np.array([jpeg.random_box(width, height, rng) for _ in range(3000)])
    expected = law_of_the_crops(width, height, 3000, np.random.default_rng(1))
    for found, reference in zip(boxes[:, 2:].T, expected, strict=True):
        assert stats.ks_2samp(found, reference).pvalue > 1e-3


def test_the_crops_follow_their_law():
    """Wherever a first draw fits, area and aspect are those of the draw: uniform and log-uniform."""
    rng = np.random.default_rng(0)
    boxes = [jpeg.random_box(10_000, 10_000, rng) for _ in range(4000)]
    shares = np.array([box.width * box.height / 1e8 for box in boxes])
    aspects = np.array([math.log(box.width / box.height) for box in boxes])
    # Large areas with a far aspect do not fit, so the law is clean below (3 / 4) of the whole.
    small = shares < 0.74
    uniform = stats.uniform(0.08, 0.74 - 0.08)
    assert stats.kstest(shares[small], uniform.cdf).pvalue > 1e-3
    assert stats.kstest(aspects[small], stats.uniform(math.log(3 / 4), 2 * math.log(4 / 3)).cdf).pvalue > 1e-3
    places = np.array([box.left / (10_000 - box.width) for box in boxes if box.width < 9_000])
    assert stats.kstest(places, 'uniform').pvalue > 1e-3


@given(width=st.integers(1, 900), height=st.integers(1, 900), seed=st.integers(0, 2**32 - 1))
def test_a_crop_lies_within_the_image(width, height, seed):
    box = jpeg.random_box(width, height, np.random.default_rng(seed))
    assert box.left >= 0
    assert box.top >= 0
    assert 1 <= box.width <= width - box.left
    assert 1 <= box.height <= height - box.top


@pytest.mark.parametrize(('width', 'height'), [(1000, 10), (10, 1000)])
def test_an_extreme_image_gets_the_largest_crop_in_its_centre(width, height):
    boxes = {jpeg.random_box(width, height, np.random.default_rng(seed)) for seed in range(30)}
    largest = max(boxes, key=lambda box: box.width * box.height)
    assert largest.width * largest.height == pytest.approx(10 * 10 * 4 / 3, abs=10)
    assert largest.left == (width - largest.width) // 2
    assert largest.top == (height - largest.height) // 2


def test_grey_cmyk_and_png_become_rgb(photograph):
    reference = jpeg.decode_resize_centre_crop(encode(photograph, quality=95), 256, 224)
    png = jpeg.decode_resize_centre_crop(encode(photograph, 'PNG'), 256, 224)
    assert far(png, reference) < 3
    cmyk = jpeg.decode_resize_centre_crop(encode(photograph.convert('CMYK'), quality=95), 256, 224)
    assert far(cmyk, reference) < 6
    grey = jpeg.decode_resize_centre_crop(encode(photograph.convert('L'), quality=95), 256, 224)
    assert grey.shape == (224, 224, 3)
    assert (grey[..., 0] == grey[..., 1]).all()
    assert far(grey[..., 0], reference.mean(axis=-1)) < 20


def test_modes_of_png_keep_their_levels(photograph):
    """One training image of ImageNet is a PNG by the name of a JPEG."""
    grey = np.asarray(photograph.convert('L'))
    reference = jpeg.decode_resize_centre_crop(encode(photograph.convert('L'), 'PNG'), 256, 224)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(jpeg.decode_resize_centre_crop(encode(deep, 'PNG'), 256, 224), reference)
    palette = photograph.convert('P')
    opaque = jpeg.decode_resize_centre_crop(encode(palette, 'PNG'), 256, 224)
    seen_through = encode(palette, 'PNG', transparency=bytes(256))
    np.testing.assert_array_equal(jpeg.decode_resize_centre_crop(seen_through, 256, 224), opaque)


def test_cmyk_with_planes_inverted_as_adobe_does_is_not_a_negative():
    dark = encode(Image.new('RGB', (64, 64), (10, 20, 30)).convert('CMYK'), quality=95)
    assert b'Adobe' in dark
    assert Image.open(io.BytesIO(dark)).mode == 'CMYK'
    np.testing.assert_allclose(jpeg.decode_resize_centre_crop(dark, 32, 32).mean(axis=(0, 1)), [10, 20, 30], atol=4)


@pytest.mark.parametrize(
    'damage',
    [lambda data: data[:2000], lambda data: data[: len(data) // 2], lambda data: b'not an image', lambda data: b''],
)
@pytest.mark.parametrize(
    'decode',
    [
        lambda data: jpeg.decode_resize_centre_crop(data, 256, 224, name='n01_1.JPEG'),
        lambda data: jpeg.decode_random_resized_crop(data, 64, np.random.default_rng(0), name='n01_1.JPEG'),
    ],
)
def test_a_damaged_image_is_named(photograph, damage, decode):
    with pytest.raises(UserError, match=r'n01_1.JPEG cannot be decoded'):
        decode(damage(encode(photograph)))
