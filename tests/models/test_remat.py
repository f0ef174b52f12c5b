"""Computing again in the backward pass: the same results from less memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from cpng_jax.models import registry
from cpng_jax.models.blocks import REMATS
from cpng_jax.models.resnet import ResNet
from cpng_jax.models.sew_resnet import SEWResNet
from cpng_jax.models.vgg import VGG
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.runtime import sharding
from cpng_jax.training import keys, step

pytestmark = pytest.mark.deep

# A low threshold, so that nets this small are alive from their start.
SMALL = {'time_steps': 2, 'neuron': functools.partial(LIF, surrogate='arctan', v_th=0.3)}
NETWORKS = {
    'vgg': functools.partial(VGG, 5, ((4, 4), (6,)), dropout=0.3, **SMALL),
    'resnet': functools.partial(ResNet, 5, (1, 1), (4, 6), 4, **SMALL),
    'sew_resnet': functools.partial(SEWResNet, 5, (1, 1), widths=(4, 6), stem_width=4, **SMALL),
}


def loss_of(model, variables, images):
    def loss(params):
        logits, updates = model.apply(
            {**variables, 'params': params},
            images,
            train=True,
            mutable=['batch_stats', 'membrane', 'firing_rate'],
            rngs={'dropout': jax.random.key(1)},
        )
        return jnp.mean(jnp.square(logits)), updates

    return loss


def kept_bytes(loss, params):
    """What the forward pass leaves behind for the backward pass."""
    backward = jax.eval_shape(lambda params: jax.vjp(loss, params, has_aux=True)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))


@pytest.mark.parametrize('name', NETWORKS)
def test_results_and_statistics_are_the_same_from_less_memory(name):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16, 16, 3)), jnp.float32)
    variables = jax.jit(NETWORKS[name]().init)(jax.random.key(0), images)
    results, memory = {}, {}
    for remat in REMATS:
        model = NETWORKS[name](remat=remat)
        assert jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0), images)) == jax.tree.structure(
            variables
        )
        loss = loss_of(model, variables, images)
        memory[remat] = kept_bytes(loss, variables['params'])
        results[remat] = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])
    (_, updates), gradients = results['none']
    assert sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradients)) > 0
    assert {*updates} == {'batch_stats', 'membrane', 'firing_rate'}
    chex.assert_trees_all_close(results['block'], results['none'], rtol=1e-5, atol=1e-6)
    assert memory['block'] < memory['none']


def test_a_program_keeps_nothing_of_a_block_but_bytes_of_its_input():
    """What JAX computes again XLA would take for the same as before, and so keep it."""
    images = jnp.zeros((2, 32, 32, 3))

    def needs(remat):
        model = ResNet(5, (6,), (16,), 16, time_steps=4, remat=remat)
        variables = model.init(jax.random.key(0), images)
        loss = loss_of(model, variables, images)
        options = step.compiler_options(sharding.make_mesh(2))
        program = jax.jit(jax.grad(loss, has_aux=True), compiler_options=options).lower(variables['params']).compile()
        return program.memory_analysis().temp_size_in_bytes

    maps = 4 * 2 * 32 * 32 * 16 * 4
    # The outputs of all twelve convolutions. Where XLA takes what is computed again for the same, it is half of them.
    assert needs('none') - needs('block') > 12 * maps


def test_a_wrong_choice_names_the_others():
    images = jnp.zeros((1, 16, 16, 3))
    with pytest.raises(ValueError, match=r"remat is 'all', expected one of none, block\."):
        NETWORKS['vgg'](remat='all').init(jax.random.key(0), images)


@pytest.mark.parametrize('remat', REMATS)
def test_the_configuration_sets_it(remat):
    config = base.get_config()
    config.remat = remat
    config.model.name = 'resnet19'
    assert registry.build(config, 10).remat == remat
    assert keys.table().known['remat'].accepts(remat)
