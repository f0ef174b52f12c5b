"""Image operations against what they are by definition; policies against the laws of their choices."""

import numpy as np
import pytest
from PIL import Image

from cpng_jax.data import policies

RNG = np.random.default_rng


@pytest.fixture
def image():
    return RNG(0).integers(0, 256, (16, 20, 3), np.uint8)


def run(name, image, change):
    return np.asarray(policies.operation(name)(Image.fromarray(image), change))


@pytest.mark.parametrize(
    ('name', 'change', 'expected'),
    [
        ('identity', 0.0, lambda x: x),
        ('invert', 0.0, lambda x: 255 - x),
        ('posterize', 4.0, lambda x: x & 0b11110000),
        ('solarize', 100.0, lambda x: np.where(x >= 156, 255 - x, x)),
        ('translate_x', 0.25, lambda x: np.concatenate([x[:, 5:], np.zeros_like(x[:, :5])], axis=1)),
        ('translate_y', -0.25, lambda x: np.concatenate([np.zeros_like(x[:4]), x[:-4]], axis=0)),
        ('rotate', 180.0, lambda x: x[::-1, ::-1]),
        ('brightness', -0.5, lambda x: x // 2),
        ('color', 0.0, lambda x: x),
        ('contrast', 0.0, lambda x: x),
    ],
)
def test_an_operation_is_its_definition(image, name, change, expected):
    difference = np.abs(run(name, image, change).astype(int) - expected(image).astype(int))
    assert difference.max() <= 1


def test_shear_moves_each_row_by_its_number(image):
    sheared = run('shear_x', image, 0.5)
    for row in (0, 4, 10):
        shift = int((row + 0.5) * 0.5)
        np.testing.assert_array_equal(sheared[row, : 20 - shift - 1], image[row, shift : 20 - 1])


def test_colour_and_contrast_at_their_ends(image):
    grey = run('color', image, -1.0)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    flat = run('contrast', image, -1.0)
    assert flat.std() == 0


def test_equalised_levels_are_spread_and_contrast_reaches_both_ends():
    dull = RNG(1).integers(100, 130, (32, 32, 3), np.uint8)
    for name in ('equalize', 'autocontrast'):
        changed = run(name, dull, 0.0)
        assert changed.min() == 0
        assert changed.max() >= 254


def test_every_name_of_the_policies_is_an_operation():
    tables = policies.CIFAR10_POLICY, policies.IMAGENET_POLICY
    for table in tables:
        assert len(table) == 25
        assert all(0 <= probability <= 1 and 0 <= level <= 9 for pair in table for _, probability, level in pair)
    names = {step[0] for table in tables for pair in table for step in pair}
    for name in names | set(policies._RAND_OPERATIONS):
        assert callable(policies.operation(name))
    assert len(policies._RAND_OPERATIONS) == 14  # Cubuk et al. (2020), Sec. 3


@pytest.mark.parametrize('policy', [policies.autoaugment, policies.randaugment])
def test_a_policy_is_a_function_of_its_generator(image, policy):
    seen = [policy(image, RNG(seed)) for seed in range(60)]
    again = [policy(image, RNG(seed)) for seed in range(60)]
    assert all(np.array_equal(a, b) for a, b in zip(seen, again, strict=True))
    assert all(a.shape == image.shape and a.dtype == np.uint8 for a in seen)
    assert len({a.tobytes() for a in seen}) > 30


@pytest.mark.parametrize(('policy', 'always'), [('cifar10', 0.0), ('imagenet', 0.0), ('cifar10', 1.0)])
def test_autoaugment_draws_sub_policies_evenly_and_steps_by_their_probability(policy, always, image, monkeypatch):
    """With two steps that cannot be mistaken for others: columns move by 1 / 5 and rows by 1 / 4 of the edge."""
    monkeypatch.setitem(policies._RANGES, 'translate_x', 0.2)
    monkeypatch.setitem(policies._RANGES, 'translate_y', 0.25)
    monkeypatch.setattr(policies, '_SIGNED', set())
    table = [(('translate_x', always or 0.7, 9), ('translate_y', 0.3, 9))] * 2 + [(('invert', 1.0, 0),) * 2] * 2
    monkeypatch.setitem(policies._AUTO_POLICIES, policy, table)
    rng = RNG(0)
    results = [policies.autoaugment(image, rng, policy=policy) for _ in range(2000)]
    columns = np.mean([not result[:, -4:].any() for result in results])
    rows = np.mean([not result[-4:].any() for result in results])
    # Half of the draws take one of the first two; six standard deviations of the binomial.
    assert columns == pytest.approx((always or 0.7) / 2, abs=0.065)
    assert rows == pytest.approx(0.3 / 2, abs=0.05)


def test_signed_operations_go_either_way(image):
    shifted = {policies._apply(image, [('translate_x', 0.5)], RNG(seed)).tobytes() for seed in range(30)}
    change = 0.5 * policies._RANGES['translate_x']
    assert shifted == {run('translate_x', image, sign * change).tobytes() for sign in (-1, 1)}


def test_randaugment_takes_as_many_steps_as_asked(image):
    np.testing.assert_array_equal(policies.randaugment(image, RNG(0), steps=0), image)
    # At magnitude 0 only the operations that have no magnitude change an image.
    fixed = {run(name, image, 0.0).tobytes() for name in ('identity', 'autocontrast', 'equalize', 'solarize')}
    seen = {policies.randaugment(image, RNG(seed), steps=1, magnitude=0).tobytes() for seed in range(50)}
    assert seen <= fixed
