import functools

import pytest

from cpng_jax.models import registry
from cpng_jax.models.vgg import VGG
from cpng_jax.nn.layers import TdBN
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.runtime.errors import UserError


def test_the_configuration_reaches_the_layers(tiny_config):
    tiny_config.neuron.tau = 0.25
    tiny_config.neuron.v_th = 0.5
    tiny_config.neuron.surrogate = 'arctan'
    tiny_config.neuron.detach_reset = True
    tiny_config.cpng.beta_init = 1.5
    tiny_config.norm.alpha = 0.7
    tiny_config.norm.momentum = 0.8
    tiny_config.model.head = (12,)
    model = registry.build(tiny_config, classes=7)
    assert isinstance(model, VGG)
    assert (model.classes, model.stages, model.head, model.time_steps) == (7, ((4,), (8,)), (12,), 2)
    assert isinstance(model.neuron, functools.partial)
    neurons = {'surrogate': 'arctan', 'beta_init': 1.5, 'detach_reset': True, 'implementation': 'auto'}
    assert model.neuron() == LIF(tau=0.25, v_th=0.5, **neurons)
    assert model.norm() == TdBN(v_th=0.5, alpha=0.7, momentum=0.8)


def test_an_unknown_network_is_named(tiny_config):
    tiny_config.model.name = 'vgg99'
    with pytest.raises(UserError, match=r"config.model.name is 'vgg99', expected one of vgg, .*; the nearest is 'vgg'"):
        registry.build(tiny_config, classes=10)


def test_a_key_of_another_network_names_the_nearest(tiny_config):
    tiny_config.model.stage = ((4,),)
    with pytest.raises(UserError, match=r"no key 'model.stage'; the nearest of the network vgg is 'model.stages'"):
        registry.build(tiny_config, classes=10)


@pytest.mark.parametrize('internal', ['neuron', 'classes', 'parent'])
def test_what_the_program_sets_cannot_be_set(tiny_config, internal):
    tiny_config.model[internal] = 3
    with pytest.raises(UserError, match=f"no key 'model.{internal}'"):
        registry.build(tiny_config, classes=10)


def test_a_missing_field_is_named(tiny_config):
    del tiny_config.model.stages
    with pytest.raises(UserError, match=r'does not describe a network vgg.*stages'):
        registry.build(tiny_config, classes=10)
