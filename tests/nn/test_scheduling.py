"""What is handed on for the sake of its order is what it was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cpng_jax.nn.scheduling import after, apart, room
from tests import forked

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


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
    d_x, d_done = jax.grad(lambda x, done: jnp.sum(after(x, done) ** 2), (0, 1))(x, done)
    np.testing.assert_array_equal(d_x, 2 * x)
    np.testing.assert_array_equal(d_done, 0)
    np.testing.assert_array_equal(jax.vmap(after)(x, x), x)


@pytest.mark.parametrize('value', [0.0, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.uint8, bool])
def test_room_is_of_zeros(dtype, value):
    zeros = jax.jit(lambda needed: room((3, 2), dtype, needed))([jnp.full((2, 2), value)])
    assert zeros.dtype == dtype
    np.testing.assert_array_equal(zeros, np.zeros((3, 2)))


@settings(max_examples=20)
@given(
    hnp.arrays(np.float32, (3, 2), elements=st.integers(-9, 9)), st.sampled_from([0.0, 1.0, np.inf, -np.inf, np.nan])
)
def test_apart_computes_what_the_function_computes(x, last):
    function = lambda x, last: {'sum': x + x, 'bytes': (x > last).astype(jnp.uint8)}
    for run in (apart, jax.jit(apart, static_argnums=0)):
        out = run(function, jnp.asarray(x), jnp.full(2, last, jnp.float32))
        np.testing.assert_array_equal(out['sum'], x + x)
        np.testing.assert_array_equal(out['bytes'], x > np.float32(last))
        assert out['bytes'].dtype == jnp.uint8


def test_outside_of_jit_nothing_is_compiled_anew():
    calls = []
    apart(lambda x: calls.append(type(x)), jnp.ones(2))
    assert len(calls) == 1
    assert not issubclass(calls[0], jax.core.Tracer)


def test_apart_hands_gradients_on():
    product = lambda x, y: apart(lambda x, y: x @ y, x, y)
    x, y = jnp.arange(6.0).reshape(2, 3), jnp.arange(12.0).reshape(3, 4)
    for mine, right in zip(*(jax.vjp(f, x, y)[1](jnp.ones((2, 4))) for f in (product, jnp.matmul)), strict=True):
        np.testing.assert_array_equal(mine, right)
    whole = jax.vmap(product, (0, None))(jnp.stack([x, 2 * x]), y)
    np.testing.assert_array_equal(whole, [x @ y, 2 * x @ y])


def test_what_is_computed_apart_is_computed_once_and_kept_as_it_is():
    # A transpose is cheap: by itself XLA would do it for each of both uses, and keep what it reads.
    def uses(x, y, by):
        z = by(lambda x, y: (x @ y).T, x, y)
        return jnp.sum(z, 1), jnp.sin(z) @ x

    compiled = lambda by: jax.jit(functools.partial(uses, by=by)).lower(jnp.ones((8, 8)), jnp.ones((8, 8))).compile()
    assert ' conditional(' in compiled(apart).as_text()
    assert ' conditional(' not in compiled(lambda function, *operands: function(*operands)).as_text()


def test_xla_does_not_see_through_it():
    # Or the order would be its own again: this fails where a version of XLA has become cleverer.
    compiled = jax.jit(after).lower(jnp.ones(8), jnp.ones(3)).compile()
    assert 'tanh' in compiled.as_text()


FOUR_DEVICES = """
import jax
import jax.numpy as jnp
from cpng_jax.nn.scheduling import after, apart
x = jnp.ones(4)
print(after(x, x) is x, 'cond' not in str(jax.make_jaxpr(lambda x: apart(jnp.sin, x))(x)))
"""


@pytest.mark.processes
def test_devices_that_share_a_batch_do_not_wait_for_each_other():
    environment = {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'JAX_PLATFORMS': 'cpu'}
    process = forked.run('-c', FOUR_DEVICES, environment=environment)
    assert process.stdout.split() == ['True', 'True'], process.stderr
