"""What is handed on for the sake of its order is what it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cpng_jax.nn.scheduling import after, room
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


def test_xla_does_not_see_through_it():
    # Or the order would be its own again: this fails where a version of XLA has become cleverer.
    compiled = jax.jit(after).lower(jnp.ones(8), jnp.ones(3)).compile()
    assert 'tanh' in compiled.as_text()


FOUR_DEVICES = """
import jax.numpy as jnp
from cpng_jax.nn.scheduling import after
x = jnp.ones(4)
print(after(x, x) is x)
"""


@pytest.mark.processes
def test_devices_that_share_a_batch_do_not_wait_for_each_other():
    environment = {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'JAX_PLATFORMS': 'cpu'}
    process = forked.run('-c', FOUR_DEVICES, environment=environment)
    assert process.stdout.split() == ['True'], process.stderr
