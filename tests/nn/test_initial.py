"""Initial weights drawn for a whole network at once: those of `jax.random`, but for rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import digits
from cpng_jax.models import registry
from cpng_jax.nn import initial
from cpng_jax.nn.initial import FanIn, drawn_at_once


def assert_same(mine, expected):
    """XLA rounds the one program otherwise than the other, by a bit; another draw is another number altogether."""
    assert mine.dtype == expected.dtype
    np.testing.assert_allclose(mine, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def layers(shapes, gain):
    return lambda key: [FanIn(gain)(jax.random.fold_in(key, i), shape) for i, shape in enumerate(shapes)]


@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shapes=st.lists(st.lists(st.integers(1, 17), min_size=2, max_size=4).map(tuple), min_size=1, max_size=2),
)
def test_the_weights_are_those_of_each_layer_by_itself(seed, shapes):
    key = jax.random.key(seed)
    init = layers([*shapes, (3, 3, 32, 40)], 2)  # the last of more than one block
    jax.tree.map(assert_same, jax.jit(lambda key: drawn_at_once(init, key))(key), jax.jit(init)(key))


@pytest.mark.parametrize(('gain', 'flax'), [(2, nn.initializers.he_normal()), (1, nn.initializers.lecun_normal())])
def test_the_weights_are_those_of_flax(gain, flax):
    key = jax.random.key(3)
    (mine,) = drawn_at_once(layers([(3, 3, 16, 64)], gain), key)
    assert_same(mine, flax(jax.random.fold_in(key, 0), (3, 3, 16, 64)))
    # And of the variance that its name says.
    np.testing.assert_allclose(np.var(mine), gain / 144, rtol=0.03)


@pytest.mark.parametrize('remat', ['none', 'block'])
def test_a_network_has_the_weights_of_its_init(remat):
    config = digits.get_config()
    config.remat = remat
    config.model.stages = ((6,), (5,))
    model = registry.build(config, 10)
    key, example = jax.random.key(5), jnp.zeros((2, 8, 8, 1))
    mine, expected = (
        jax.jit(lambda key: drawn_at_once(model.init, key, example))(key),
        jax.jit(model.init)(key, example),
    )
    assert jax.tree.structure(mine) == jax.tree.structure(expected)
    jax.tree.map(assert_same, mine, expected)


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.float32])
def test_other_generators_and_dtypes_draw_by_themselves(dtype):
    key = jax.random.key(0, impl='rbg' if dtype == jnp.float32 else None)
    init = lambda key: FanIn(1)(key, (4, 5), dtype)
    weights = drawn_at_once(init, key)
    assert weights.dtype == dtype
    np.testing.assert_array_equal(weights, init(key))


def test_one_program_draws_all_layers():
    init = layers([(3, 3, 8, 16), (40, 50), (3, 3, 16, 16)], 1)
    draws = lambda function: str(jax.make_jaxpr(function)(jax.random.key(0))).count('erf_inv')
    assert draws(lambda key: drawn_at_once(init, key)) == 1
    assert draws(init) >= 1
    assert not initial._RECIPES.get()
