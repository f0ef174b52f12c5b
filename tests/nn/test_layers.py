"""Time-merged layers and tdBN against SciPy and float64 numpy."""

import functools
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.signal import correlate2d

from cpng_jax.nn.layers import Conv, Dense, Dropout, TdBN, avg_pool, max_pool, merge_time
from cpng_jax.nn.neuron_layer import LIF

f32: Any = functools.partial(np.asarray, dtype=np.float32)
f64: Any = functools.partial(np.asarray, dtype=np.float64)
KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return f32(np.random.default_rng(seed).normal(size=shape))


def close(actual, desired, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(f64(actual), f64(desired), rtol=rtol, atol=atol)


def conv_output_shapes(function, *args):
    """Shapes of all convolutions in the program of a function."""
    found = re.findall(r'\[([\d,]+)\] = conv_general_dilated\[', str(jax.make_jaxpr(function)(*args)))
    return [tuple(map(int, shape.split(','))) for shape in found]


def test_merge_time_calls_once_with_all_steps():
    calls = []

    def double(x):
        calls.append(x.shape)
        return 2 * x[..., :1]

    x = normal(4, 3, 2, 5)
    np.testing.assert_array_equal(merge_time(double, x), 2 * x[..., :1])
    assert calls == [(12, 2, 5)]


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('kernel_size', [1, 3, 5])
def test_conv_is_cross_correlation(kernel_size, stride):
    x = normal(2, 3, 6, 7, 2)
    layer = Conv(4, kernel_size, stride)
    y, variables = jax.jit(layer.init_with_output)(KEY, x)
    (kernel,) = jax.tree.leaves(variables)  # no bias
    assert kernel.shape == (kernel_size, kernel_size, 2, 4)
    expected = np.zeros((2, 3, 6, 7, 4))
    for t, b, i, o in np.ndindex(2, 3, 2, 4):
        expected[t, b, :, :, o] += correlate2d(f64(x[t, b, :, :, i]), f64(kernel[:, :, i, o]), 'same')
    close(y, expected[:, :, ::stride, ::stride])


def test_packed_conv_is_the_same_layer_and_keeps_bytes():
    spikes = f32(np.random.default_rng(0).integers(0, 2, (2, 3, 6, 7, 2)))
    layer = Conv(4)
    variables = layer.init(KEY, spikes)
    packed = functools.partial(layer.apply, unit=1.0, method='packed')
    assert jax.tree.structure(layer.init(KEY, spikes, unit=1.0, method='packed')) == jax.tree.structure(variables)
    np.testing.assert_array_equal(packed(variables, spikes), layer.apply(variables, spikes))
    kept = jax.tree.leaves(jax.vjp(lambda variables: packed(variables, spikes), variables)[1])
    assert [leaf.dtype for leaf in kept if leaf.size == spikes.size] == [np.uint8]


@pytest.mark.parametrize('kernel_size', [2, 4])
def test_conv_refuses_even_kernels(kernel_size):
    # Padding of half the kernel on both sides makes the map grow.
    with pytest.raises(ValueError, match='kernel_size'):
        Conv(1, kernel_size).init(KEY, normal(1, 1, 5, 5, 1))


def test_conv_starts_as_he_et_al():
    kernel = jax.jit(Conv(256).init)(KEY, normal(1, 1, 4, 4, 32))['params']['conv']['kernel']
    assert np.var(f32(kernel)) == pytest.approx(2 / (9 * 32), rel=0.05)


def test_one_convolution_for_all_steps():
    x = normal(5, 2, 4, 4, 3)
    layer = Conv(6)
    variables = jax.eval_shape(layer.init, KEY, x)
    assert conv_output_shapes(layer.apply, variables, x) == [(10, 4, 4, 6)]


def test_dense_is_a_matrix_product():
    x = normal(3, 2, 5)
    layer = Dense(4)
    params = layer.init(KEY, x)['params']['dense']
    params = {'kernel': params['kernel'], 'bias': normal(4)}
    close(layer.apply({'params': {'dense': params}}, x), f64(x) @ f64(params['kernel']) + params['bias'])


@pytest.mark.parametrize(('size', 'window'), [((4, 6), 2), ((5, 7), 2), ((6, 6), 3), ((3, 3), 1)])
def test_avg_pool(size, window):
    x = normal(2, 3, *size, 4)
    rows, columns = size[0] // window, size[1] // window
    cut = f64(x[:, :, : rows * window, : columns * window])
    close(avg_pool(x, window), cut.reshape(2, 3, rows, window, columns, window, 4).mean((3, 5)))


@pytest.mark.parametrize('size', [(4, 6), (5, 7)])
@pytest.mark.parametrize(('window', 'stride'), [(3, 2), (3, 1), (5, 3)])
def test_avg_pool_of_windows_that_overlap(size, window, stride):
    x = normal(2, 3, *size, 4)
    edge = window // 2
    padded = np.pad(f64(x), [(0, 0), (0, 0), (edge, edge), (edge, edge), (0, 0)])
    at = [range(0, each, stride) for each in size]
    rows = [[padded[:, :, i : i + window, j : j + window].mean((2, 3)) for j in at[1]] for i in at[0]]
    close(avg_pool(x, window, stride), np.moveaxis(np.array(rows), (0, 1), (2, 3)))


def td_bn(x, scale, bias, alpha_v_th, mean=None, variance=None, epsilon=1e-5):
    """Threshold-dependent batch norm in float64, by the statistics of the batch unless others are given."""
    x, axes = f64(x), tuple(range(x.ndim - 1))
    mean = x.mean(axes) if mean is None else mean
    variance = x.var(axes) if variance is None else variance
    return scale * alpha_v_th * (x - mean) / np.sqrt(variance + epsilon) + bias


@pytest.fixture(scope='module')
def norm_variables():
    """Three channels with scales, biases and running statistics that differ."""
    return {
        'params': {'scale': f32([0.5, 1, 2]), 'bias': f32([-1, 0, 0.3])},
        'batch_stats': {'norm': {'mean': f32([0.1, -0.2, 0]), 'var': f32([0.5, 2, 1])}},
    }


@pytest.mark.parametrize('shape', [(4, 2, 3, 5, 3), (4, 6, 3)], ids=['maps', 'vectors'])
@pytest.mark.parametrize(('alpha', 'v_th'), [(1.0, 1.0), (2**-0.5, 1.5)])
def test_td_bn(norm_variables, alpha, v_th, shape):
    x = normal(*shape) * f32([1, 3, 0.1]) + f32([0, 5, -1])
    layer, axes = TdBN(v_th=v_th, alpha=alpha, momentum=0.7), tuple(range(len(shape) - 1))
    scale, bias = norm_variables['params'].values()
    running = norm_variables['batch_stats']['norm']
    close(
        layer.apply(norm_variables, x, train=False),
        td_bn(x, scale, bias, alpha * v_th, running['mean'], running['var']),
    )
    y, updates = layer.apply(norm_variables, x, train=True, mutable=['batch_stats'])
    close(y, td_bn(x, scale, bias, alpha * v_th), atol=1e-4)
    new = updates['batch_stats']['norm']
    close(new['mean'], 0.7 * running['mean'] + 0.3 * f64(x).mean(axes))
    close(new['var'], 0.7 * running['var'] + 0.3 * f64(x).var(axes))


def test_td_bn_start():
    x = normal(3, 4, 2)
    variables = TdBN().init(KEY, x, train=True)
    assert jax.tree.map(jnp.shape, variables) == {
        'params': {'scale': (2,), 'bias': (2,)},
        'batch_stats': {'norm': {'mean': (2,), 'var': (2,)}},
    }
    y, updates = TdBN(v_th=0.6).apply(variables, x, train=True, mutable=['batch_stats'])
    close(np.mean(y, (0, 1)), np.zeros(2), atol=1e-6)
    close(np.std(y, (0, 1)), np.full(2, 0.6), rtol=1e-4)  # Zheng et al.: N(0, v_th^2)
    close(updates['batch_stats']['norm']['mean'], 0.1 * x.mean((0, 1)))


def test_td_bn_gradient(norm_variables):
    x, upstream = normal(4, 5, 3), normal(4, 5, 3, seed=1)
    norm = lambda x: TdBN(v_th=1.5).apply(norm_variables, x, train=True, mutable=['batch_stats'])[0]
    loss = lambda x: jnp.sum(upstream * norm(x))
    hat = td_bn(x, 1, 0, 1)
    spread = np.sqrt(f64(x).var((0, 1)) + 1e-5)
    centred = upstream - upstream.mean((0, 1)) - hat * (upstream * hat).mean((0, 1))
    close(jax.jit(jax.grad(loss))(x), norm_variables['params']['scale'] * 1.5 / spread * centred, atol=1e-4)


def test_td_bn_in_bfloat16_measures_in_float32(norm_variables):
    x = jnp.asarray(normal(64, 64, 3), 'bfloat16') + jnp.bfloat16(4)
    y, updates = TdBN().apply(norm_variables, x, train=True, mutable=['batch_stats'])
    scale, bias = norm_variables['params'].values()
    assert y.dtype == 'bfloat16'
    close(y, td_bn(f64(x), scale, bias, 1), rtol=2**-6, atol=2**-6)
    new, old = updates['batch_stats']['norm'], norm_variables['batch_stats']['norm']
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {np.dtype('float32')}
    close(new['var'], 0.9 * old['var'] + 0.1 * f64(x).var((0, 1)), rtol=1e-4)


@pytest.mark.parametrize('train', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_td_bn_gives_any_layer_an_array(norm_variables, train, dtype):
    """Values and gradients of `relu(norm(x))` in float64: by x, scale and bias, through the statistics in training."""
    x, upstream = (jnp.asarray(normal(4, 5, 3, seed=seed), dtype) for seed in (2, 3))
    layer, axes = TdBN(v_th=1.5, alpha=0.5), (0, 1)

    @jax.jit
    def run(params, x):
        def forward(params, x):
            y, _ = layer.apply({**norm_variables, 'params': params}, x, train=train, mutable=['batch_stats'])
            assert isinstance(y, jax.Array)
            return nn.relu(y)

        y, pull = jax.vjp(forward, params, x)
        return y, *pull(upstream)

    y, d_params, d_x = run(norm_variables['params'], x)
    assert y.dtype == d_x.dtype == dtype
    scale, bias = norm_variables['params'].values()
    running = norm_variables['batch_stats']['norm']
    mean, variance = (f64(x).mean(axes), f64(x).var(axes)) if train else (running['mean'], f64(running['var']))
    hat, spread = td_bn(x, 1, 0, 1, mean, variance), np.sqrt(variance + 1e-5)
    normalised = scale * 0.75 * hat + bias
    d_y = f64(upstream) * (normalised > 0)
    through = d_y - d_y.mean(axes) - hat * (d_y * hat).mean(axes) if train else d_y
    tolerance = {'float32': 1e-4, 'bfloat16': 2**-6}[dtype]
    agree = functools.partial(close, rtol=tolerance, atol=tolerance)
    agree(y, np.maximum(normalised, 0))
    agree(d_x, scale * 0.75 / spread * through)
    agree(d_params['scale'], 0.75 * (d_y * hat).sum(axes))
    agree(d_params['bias'], d_y.sum(axes))


def test_td_bn_left_to_the_neurons_gives_the_same_spikes(norm_variables):
    x = normal(4, 5, 3)
    apply = functools.partial(TdBN().apply, norm_variables, train=True, mutable=['batch_stats'])
    (now, updates), (later, others) = apply(x), apply(x, method='deferred')
    chex.assert_trees_all_equal(updates, others)
    np.testing.assert_array_equal(now, later.array())
    neurons = lambda currents: LIF().apply({'surrogate': {'beta': 1.0}}, currents)
    assert neurons(now).any()
    np.testing.assert_array_equal(neurons(now), neurons(later))


class Block(nn.Module):
    """Convolution, norm and neurons, with the first two computed once or at each step."""

    @nn.compact
    def __call__(self, x):
        return LIF()(TdBN().deferred(Conv(4)(x), train=True), 5)


def test_computing_a_static_image_once_changes_nothing():
    image = normal(1, 3, 6, 6, 2)
    steps = np.repeat(image, 5, axis=0)
    variables = jax.jit(Block().init)(KEY, image)
    upstream = normal(5, 3, 6, 6, 4, seed=1)

    @jax.jit
    def run(params, x):
        def loss(params):
            spikes, updates = Block().apply({**variables, 'params': params}, x, mutable=['batch_stats', 'membrane'])
            return jnp.sum(upstream * spikes), (spikes, updates)

        return jax.grad(loss, has_aux=True)(params)

    (once_gradient, (once, once_updates)) = run(variables['params'], image)
    (each_gradient, (each, each_updates)) = run(variables['params'], steps)
    assert 0.05 < once.mean() < 0.5
    assert (np.diff(once, axis=0) != 0).any()
    np.testing.assert_array_equal(once, each)
    jax.tree.map(close, (once_gradient, once_updates), (each_gradient, each_updates))


@pytest.mark.parametrize(
    ('message', 'call'),
    [
        (
            r'Conv takes \[T, B, H, W, C\], got an array of shape \(2, 4, 4, 3\)',
            lambda: Conv(2).init(KEY, normal(2, 4, 4, 3)),
        ),
        (r'Dense takes \[T, B, features\], got an array of shape \(2, 3\)', lambda: Dense(2).init(KEY, normal(2, 3))),
        (r'avg_pool takes \[T, B, H, W, C\], got an array of shape \(4, 4\)', lambda: avg_pool(normal(4, 4), 2)),
        ('a map of 4 x 1 is smaller than its window of 2', lambda: avg_pool(normal(1, 1, 4, 1, 3), 2)),
        ('currents must have 1 or 4 time steps, got 3', lambda: LIF().init(KEY, normal(3, 2), 4)),
    ],
)
def test_errors(message, call):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize('mean', [0.0, 1e3, 1e4])
def test_tdbn_is_right_where_the_mean_is_far_above_the_spread(mean):
    x = np.asarray(mean + np.random.default_rng(0).normal(size=(3, 5, 4, 4, 2)), np.float32)
    out, _ = TdBN(epsilon=0.0).init_with_output(jax.random.key(0), x, train=True)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean(axis=(0, 1, 2, 3))) / exact.std(axis=(0, 1, 2, 3))
    np.testing.assert_allclose(out, expected, atol=2e-6 * max(mean, 1))


@pytest.mark.parametrize(('edge', 'stride'), [(8, 2), (7, 2), (5, 1), (1, 2)])
def test_max_pool_takes_the_largest_of_each_padded_window(edge, stride):
    x = np.random.default_rng(0).normal(size=(2, 3, edge, edge, 4)).astype(np.float32)
    out = max_pool(jnp.asarray(x), 3, stride)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    np.testing.assert_array_equal(out, windows.max(axis=(-2, -1))[:, :, ::stride, ::stride])
    assert out.shape[2] == -(-edge // stride)


@pytest.mark.parametrize('rate', [0.2, 0.5])
def test_dropout_has_one_mask_for_all_time_steps(rate):
    x = f32(np.random.default_rng(0).integers(1, 3, (3, 40, 5, 5, 10)))
    y = np.asarray(Dropout(rate).apply({}, x, train=True, rngs={'dropout': jax.random.key(0)}))
    kept = y[0] != 0
    np.testing.assert_allclose(y, x * kept / (1 - rate), rtol=1e-6)
    assert kept.mean() == pytest.approx(1 - rate, abs=0.02)
    other = np.asarray(Dropout(rate).apply({}, x, train=True, rngs={'dropout': jax.random.key(1)}))
    assert (kept != (other[0] != 0)).mean() == pytest.approx(2 * rate * (1 - rate), abs=0.02)


def test_without_training_or_random_numbers_nothing_is_dropped():
    x = f32(np.random.default_rng(0).normal(size=(2, 3, 4)))
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, train=False, rngs={'dropout': jax.random.key(0)}), x)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, train=True), x)


def test_a_dense_layer_without_bias():
    x = f32(np.random.default_rng(0).normal(size=(2, 3, 4)))
    y, variables = Dense(5, use_bias=False).init_with_output(jax.random.key(0), x)
    assert list(variables['params']['dense']) == ['kernel']
    np.testing.assert_allclose(y, x @ variables['params']['dense']['kernel'], rtol=1e-5, atol=1e-6)
