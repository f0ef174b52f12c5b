"""What is computed in an order of ours is what it was."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cpng_jax.nn.scheduling import afresh, after, apart
from tests import forked

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


@settings(max_examples=20)
@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3), elements=FLOATS), st.lists(FLOATS, max_size=3))
def test_after_hands_on_what_it_was_given_whatever_has_been_computed(x, done):
    tree = {'x': jnp.asarray(x), 'bytes': jnp.arange(3, dtype=jnp.uint8)}
    for run in (after, jax.jit(after)):
        out = run(tree, [jnp.asarray(value, jnp.float32) for value in done])
        np.testing.assert_array_equal(out['x'], x)
        np.testing.assert_array_equal(out['bytes'], tree['bytes'])
        assert out['bytes'].dtype == jnp.uint8


def test_after_hands_gradients_on_and_gives_none_to_what_has_been_computed():
    x, done = jnp.arange(4.0), jnp.asarray([2.0, 3.0])
    for transformed in (lambda f: f, jax.jit):
        d_x, d_done = transformed(jax.grad(lambda x, done: jnp.sum(after(x, done) ** 2), (0, 1)))(x, done)
        np.testing.assert_array_equal(d_x, 2 * x)
        np.testing.assert_array_equal(d_done, 0)
    np.testing.assert_array_equal(jax.vmap(after)(x, x), x)
    assert after(x, {}) is x


def test_what_is_waited_for_goes_into_a_call_that_xla_keeps():
    # Or the order would be XLA's own again: this fails where a version of it has become cleverer.
    text = compiled(lambda x: after(x + 1, jnp.sum(jnp.sin(x))), jnp.ones(8))
    (operands,) = re.findall(r' call\(([^)]*)\)', text)
    assert operands.count('%') == 2


@settings(max_examples=20)
@given(
    hnp.arrays(np.float32, (3, 2), elements=st.integers(-9, 9)), st.sampled_from([0.0, 1.0, np.inf, -np.inf, np.nan])
)
def test_apart_computes_what_the_function_computes(x, last):
    function = apart(lambda x, last, times: {'sum': x * times, 'bytes': (x > last).astype(jnp.uint8)}, static=(2,))
    for run in (function, jax.jit(function, static_argnums=2)):
        out = run(jnp.asarray(x), jnp.full(2, last, jnp.float32), 3)
        np.testing.assert_array_equal(out['sum'], 3 * x)
        np.testing.assert_array_equal(out['bytes'], x > np.float32(last))
        assert out['bytes'].dtype == jnp.uint8


def test_calls_that_are_alike_are_traced_once():
    traced = []

    @functools.partial(apart, static=(1,))
    def times(x, factor):
        traced.append((x.shape, factor))
        return factor * x

    whole = jax.jit(lambda x, y: (times(times(x, 2), 2), times(x, 3), times(y, 2)))
    np.testing.assert_array_equal(whole(jnp.ones(2), jnp.ones(3))[0], 4)
    assert traced == [((2,), 2), ((2,), 3), ((3,), 2)]


@pytest.mark.parametrize('jit', [lambda f: f, jax.jit])
def test_apart_hands_gradients_on(jit):
    product = apart(lambda x, y: x @ y)
    x, y = jnp.arange(6.0).reshape(2, 3), jnp.arange(12.0).reshape(3, 4)
    gradients = jit(lambda x, y: jax.vjp(product, x, y)[1](jnp.ones((2, 4))))(x, y)
    for mine, right in zip(gradients, jax.vjp(jnp.matmul, x, y)[1](jnp.ones((2, 4))), strict=True):
        np.testing.assert_array_equal(mine, right)
    whole = jit(jax.vmap(product, (0, None)))(jnp.stack([x, 2 * x]), y)
    np.testing.assert_array_equal(whole, [x @ y, 2 * x @ y])


def test_what_is_computed_apart_is_a_call_and_what_it_calls_is_not():
    # Within, a jitted function and steps that a scan lays out would be calls, too, had they inherited the word.
    def inside(x):
        last, sums = jax.lax.scan(lambda y, _: (jax.nn.silu(y) @ x, jnp.sum(y)), x, length=3, unroll=3)
        return last, jnp.where(sums > 0, sums, 1)

    assert compiled(apart(inside), jnp.ones((8, 8))).count(' call(') == 1
    assert compiled(inside, jnp.ones((8, 8))).count(' call(') == 0


def test_what_two_parts_have_in_common_is_not_kept_from_one_for_the_other():
    product = lambda x: jnp.sin(x) @ x
    both = lambda by, x: by(product)(x + 1) + by(lambda x: 2 * product(x))(x + 1)
    dots = lambda by: len(re.findall(r' dot\(', compiled(functools.partial(both, by), jnp.ones((8, 8)))))
    assert dots(lambda function: function) == 1
    assert dots(apart) == 2


@settings(max_examples=20)
@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3), elements=FLOATS))
def test_afresh_hands_on_what_it_was_given(x):
    for array in (jnp.asarray(x), jnp.arange(3, dtype=jnp.uint8)):
        for run in (afresh, jax.jit(afresh)):
            np.testing.assert_array_equal(run(array), array)
            assert run(array).dtype == array.dtype


def test_what_is_computed_afresh_is_not_what_was_computed_before():
    product = apart(lambda x: jnp.sin(x) @ x)
    dots = lambda again: len(
        re.findall(r' dot\(', compiled(lambda x: (product(x), product(again(x))), jnp.ones((8, 8))))
    )
    assert dots(lambda x: x) == 1
    assert dots(afresh) == 2


FOUR_DEVICES = """
import jax
import jax.numpy as jnp
from cpng_jax.nn.scheduling import after, apart
x = jnp.ones(4)
text = lambda f: jax.jit(f).lower(x).as_text()
print('call' in text(apart(jnp.sin)), 'barrier' in text(lambda x: after(x, x)))
"""


@pytest.mark.processes
@pytest.mark.parametrize('devices', [1, 4])
def test_devices_that_share_a_batch_do_not_wait_for_each_other(devices):
    environment = {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}', 'JAX_PLATFORMS': 'cpu'}
    process = forked.run('-c', FOUR_DEVICES, environment=environment)
    assert process.stdout.split() == [str(devices == 1)] * 2, process.stderr
