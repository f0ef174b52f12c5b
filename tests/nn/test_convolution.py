"""The ways round XLA:CPU's slow convolutions against SciPy, and against `conv_general_dilated`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from cpng_jax.nn import convolution
from cpng_jax.nn.canonical import Window
from cpng_jax.nn.convolution import convolve

OPTIONS = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}


def by_scipy(x, kernel):
    """Convolution with stride 1 and zeros around, in float64."""
    x, kernel = np.float64(x), np.float64(kernel)
    planes = lambda image, out: sum(
        correlate(np.pad(image[..., c], len(kernel) // 2), kernel[..., c, out], 'valid') for c in range(x.shape[-1])
    )
    return np.stack([np.stack([planes(image, out) for out in range(kernel.shape[-1])], -1) for image in x])


def ours(x, kernel, stride=1):
    padding = kernel.shape[0] // 2
    return convolve(x, kernel, (stride,) * 2, ((padding, padding),) * 2, **OPTIONS)


def plain(x, kernel, stride=1):
    padding = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, ((padding, padding),) * 2, **OPTIONS)


def arrays(shape, edge, features=4):
    rng = np.random.default_rng(0)
    draw = lambda *shape: np.float32(rng.normal(size=shape))
    return draw(*shape), draw(edge, edge, shape[-1], features), draw(*shape[:-1], features)


def gradients(function, x, kernel, upstream):
    return jax.jit(lambda *arguments: jax.vjp(function, *arguments)[1](upstream))(x, kernel)


def primitives(function, x, kernel):
    return str(jax.make_jaxpr(lambda x, kernel: jax.vjp(function, x, kernel)[1](plain(x, kernel)))(x, kernel))


@pytest.mark.parametrize('shape', [(3, 1, 1, 2), (3, 2, 2, 2), (2, 1, 2, 3), (2, 2, 5, 3), (1, 4, 3, 2), (2, 5, 9, 2)])
@pytest.mark.parametrize('edge', [3, 5, 7])
@pytest.mark.parametrize('stride', [1, 2, 3])
def test_maps_smaller_than_the_kernel(shape, edge, stride):
    x, kernel, _ = arrays(shape, edge)
    mine, theirs = (functools.partial(f, stride=stride) for f in (ours, plain))
    y = jax.jit(mine)(x, kernel)
    np.testing.assert_allclose(y, by_scipy(x, kernel)[:, ::stride, ::stride], rtol=1e-4, atol=1e-4)
    small = min(y.shape[1:3]) < edge
    assert ('conv_general_dilated' not in str(jax.make_jaxpr(mine)(x, kernel))) == small
    upstream = np.float32(np.random.default_rng(1).normal(size=y.shape))
    for gradient, right in zip(*(gradients(f, x, kernel, upstream) for f in (mine, theirs)), strict=True):
        np.testing.assert_allclose(gradient, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('batch', 'parts'), [(1, 1), (7, 7), (8, 8), (9, 9), (17, 1), (34, 2), (40, 10), (48, 16)])
def test_the_gradient_of_a_kernel_is_summed_over_parts(batch, parts, monkeypatch):
    monkeypatch.setattr(convolution, '_PIXELS', 6 * 6)
    x, kernel, upstream = arrays((batch, 6, 6, 8), 3)
    assert convolution._parts(x, kernel, Window((1, 1), ((1, 1), (1, 1)))) == parts
    np.testing.assert_array_equal(jax.jit(ours)(x, kernel), jax.jit(plain)(x, kernel))
    # The kernel's gradient is one convolution for each part.
    count = primitives(ours, x, kernel).count('conv_general_dilated[')
    assert count - primitives(plain, x, kernel).count('conv_general_dilated[') >= parts - 1
    for mine, theirs in zip(*(gradients(f, x, kernel, upstream) for f in (ours, plain)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('unit', [None, 1.0])
@pytest.mark.parametrize(
    ('channels', 'edge', 'stride', 'product'),
    [(1, 3, 1, True), (7, 3, 1, True), (2, 5, 1, True), (8, 3, 1, False), (32, 3, 2, True), (31, 3, 2, False)],
)
def test_the_gradient_of_a_kernel_is_a_product_with_patches(channels, edge, stride, product, unit):
    x, kernel, _ = arrays((4, 8, 9, channels), edge, features=32)
    x = x if unit is None else np.float32(x > 0)
    own = lambda x, kernel: convolve(
        x, kernel, (stride,) * 2, 'SAME' if stride == 1 else ((1, 1),) * 2, unit=unit, **OPTIONS
    )
    upstream = np.ones((4, -(-8 // stride), -(-9 // stride), 32), np.float32)
    program = str(jax.make_jaxpr(lambda kernel: jax.vjp(lambda kernel: own(x, kernel), kernel)[1](upstream))(kernel))
    assert program.count('dot_general[') == product


@pytest.mark.parametrize(
    ('shape', 'features', 'stride', 'product'),
    [
        ((2, 4, 4, 16), 16, 1, True),
        ((2, 4, 4, 16), 15, 1, False),
        ((2, 8, 8, 16), 20, 2, True),
        ((3, 4, 4, 16), 20, 1, False),
    ],
)
@pytest.mark.parametrize('unit', [None, 1.0])
def test_few_pixels_of_many_channels_are_a_product_with_patches(shape, features, stride, product, unit):
    x, kernel, _ = arrays(shape, 3, features)
    x = x if unit is None else np.float32(x > 0)
    own = lambda x, kernel: convolve(x, kernel, (stride,) * 2, ((1, 1),) * 2, unit=unit, **OPTIONS)
    theirs = functools.partial(plain, stride=stride)
    y = jax.jit(own)(x, kernel)
    np.testing.assert_allclose(y, by_scipy(x, kernel)[:, ::stride, ::stride], rtol=1e-4, atol=1e-4)
    assert ('conv_general_dilated' not in str(jax.make_jaxpr(own)(x, kernel))) == product
    upstream = np.float32(np.random.default_rng(1).normal(size=y.shape))
    for gradient, right in zip(*(gradients(f, x, kernel, upstream) for f in (own, theirs)), strict=True):
        np.testing.assert_allclose(gradient, right, rtol=1e-4, atol=1e-4)


def test_other_strides_and_platforms_go_to_xla(monkeypatch):
    x, kernel, _ = arrays((2, 6, 6, 2), 3)
    np.testing.assert_array_equal(ours(x, kernel, stride=2), plain(x, kernel, stride=2))
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    program = str(jax.make_jaxpr(ours)(x, kernel))
    assert 'conv_general_dilated' in program
    assert 'custom_vjp' not in program


@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('padding', ['SAME', 'VALID', ((0, 0), (0, 0))])
def test_a_1x1_kernel_is_a_matrix_product(stride, padding):
    x, kernel, _ = arrays((3, 5, 4, 2), 1)
    mine = functools.partial(convolve, strides=(stride,) * 2, padding=padding, unit=None, **OPTIONS)
    theirs = functools.partial(jax.lax.conv_general_dilated, window_strides=(stride,) * 2, padding=padding, **OPTIONS)
    assert 'conv_general_dilated' not in str(jax.make_jaxpr(mine)(x, kernel))
    expected = np.einsum('nhwc,cf->nhwf', np.float64(x[:, ::stride, ::stride]), np.float64(kernel[0, 0]))
    np.testing.assert_allclose(mine(x, kernel), expected, rtol=1e-5, atol=1e-5)
    upstream = np.float32(np.random.default_rng(1).normal(size=expected.shape))
    for gradient, right in zip(*(gradients(f, x, kernel, upstream) for f in (mine, theirs)), strict=True):
        np.testing.assert_allclose(gradient, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_the_dtype_stays(dtype):
    for shape in ((2, 2, 2, 2), (64, 8, 8, 2)):
        x, kernel, upstream = (jnp.asarray(array, dtype) for array in arrays(shape, 3))
        assert ours(x, kernel).dtype == dtype
        assert {gradient.dtype for gradient in gradients(ours, x, kernel, upstream)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize(('unit', 'largest'), [(1.0, 1), (1.0, 255), (0.25, 4), (None, 4)])
def test_multiples_of_a_unit_are_kept_as_bytes_without_loss(unit, largest, stride, dtype):
    _, kernel, _ = arrays((64, 8, 8, 2), 3)
    counts = np.random.default_rng(1).integers(0, largest, (64, 8, 8, 2), endpoint=True)
    x, kernel = jnp.asarray(counts * (unit or 0.3), dtype), jnp.asarray(kernel, dtype)
    mine, plain = (
        functools.partial(f, **options)
        for f, options in ((convolve, {'unit': unit}), (jax.lax.conv_general_dilated, {}))
    )
    run = lambda f: jax.vjp(lambda x, k: f(x, k, (stride,) * 2, ((1, 1),) * 2, **OPTIONS), x, kernel)
    (y, pull), (expected, their_pull) = run(mine), run(plain)
    np.testing.assert_array_equal(y, expected)
    upstream = jnp.asarray(np.random.default_rng(2).normal(size=y.shape), dtype)
    tolerance = {'float32': 1e-5, 'bfloat16': 2**-6}[dtype]
    for gradient, right in zip(pull(upstream), their_pull(upstream), strict=True):
        assert gradient.dtype == right.dtype
        scale = np.abs(np.float64(right)).max()
        np.testing.assert_allclose(np.float64(gradient), np.float64(right), atol=tolerance * scale)
    kept = [leaf.dtype for leaf in jax.tree.leaves(pull) if leaf.shape == x.shape]
    if unit is not None:
        assert kept == [np.uint8]
