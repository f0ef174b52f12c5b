import importlib.util
import json
import pathlib

import pytest

from configs import base
from cpng_jax.runtime import config as configuration
from cpng_jax.runtime.errors import UserError

CONFIGS = sorted(path for path in (pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_each_config_file_is_valid_and_documented(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    configuration.validate(module.get_config())
    assert module.__doc__


@pytest.mark.parametrize(
    ('key', 'value', 'expected'),
    [
        ('epochs', 0, 'an integer of at least 1'),
        ('epochs', 2.0, 'an integer of at least 1'),
        ('epochs', True, 'an integer of at least 1'),
        ('seed', -1, 'an integer from 0 to 2**32 - 1'),
        ('neuron.tau', 1.5, 'a number of at least 0 and at most 1'),
        ('neuron.v_th', 0.0, 'a number above 0'),
        ('neuron.surrogate', 'triangle', 'one of triangular, rectangular, arctan'),
        ('optim.learning_rate', float('nan'), 'a number above 0'),
        ('optim.momentum', 1.0, 'a number of at least 0 and below 1'),
        ('cpng.beta_init', float('inf'), 'a number above 0'),
        ('cpng.chi_limit', 1.0, 'a number of at least 0 and below 1'),
        ('cpng.every', 'step', 'one of epoch, batch'),
        ('cpng.rule', 'fixed', 'one of cpng, mpd_agl, ds_atgo, lsg, dspike'),
        ('cpng.per', 'neuron', 'one of layer, channel'),
        ('cpng.chi', 'exact', 'one of gaussian, counted'),
        ('cpng.enabled', 1, 'True or False'),
    ],
)
def test_a_value_out_of_range_is_one_sentence(key, value, expected):
    config = base.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as caught:
        configuration.validate(config)
    assert str(caught.value) == f'config.{key} is {value!r}, expected {expected}.'


def test_every_rule_accepts_the_default():
    flat = configuration.flatten(base.get_config())
    assert set(configuration.RULES) == set(flat) - {'model.name'}
    assert all(configuration.RULES[key].accepts(flat[key]) for key in configuration.RULES)


@pytest.mark.parametrize(
    ('wrong', 'near'),
    [
        ('cpng.beta_int', 'cpng.beta_init'),
        ('optim.lerning_rate', 'optim.learning_rate'),
        ('batchsize', 'batch_size'),
        ('neurons.tau', 'neuron.tau'),
    ],
)
def test_an_unknown_key_names_the_nearest(wrong, near):
    config = base.get_config()
    *sections, key = wrong.split('.')
    if sections and sections[0] not in config:
        config[sections[0]] = {}
    (config[sections[0]] if sections else config)[key] = 1
    with pytest.raises(UserError) as caught:
        configuration.validate(config)
    assert str(caught.value) == f'config has no key {wrong!r}; the nearest is {near!r}.'


def test_a_missing_key_is_named():
    config = base.get_config()
    del config.cpng.chi_limit
    with pytest.raises(UserError, match=r"lacks the key 'cpng\.chi_limit'"):
        configuration.validate(config)


def test_changed_keys_ignore_what_does_not_change_the_result():
    config = base.get_config()
    config.model.stages = ((4, 4), (8,))
    stored = json.loads(config.to_json())
    assert configuration.changed_keys(stored, config) == []
    config.log.every_steps = 3
    config.eval.checkpoint = 'best'
    config.checkpoint.keep = 9
    assert configuration.changed_keys(stored, config) == []
    config.cpng.beta_init = 2.0
    config.model.stages = ((4,),)
    config.model.head = (5,)
    assert configuration.changed_keys(stored, config) == [
        'cpng.beta_init: 1.0 -> 2.0',
        "model.head: 'absent' -> [5]",
        'model.stages: [[4, 4], [8]] -> [[4]]',
    ]
