import importlib.util
import json
import pathlib

import pytest

from configs import base
from cpng_jax.runtime import config as configuration
from cpng_jax.runtime.config import Key, Keys, Retired
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import keys

CONFIGS = sorted(path for path in (pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_each_config_file_is_valid_and_documented(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    configuration.validate(module.get_config(), keys.table())
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
        ('cpng.rule', 'dspik', 'one of cpng, mpd_agl, ds_atgo, lsg, dspike, fixed, from_run'),
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
        configuration.validate(config, keys.table())
    assert str(caught.value) == f'config.{key} is {value!r}, expected {expected}.'


def test_every_range_accepts_the_default():
    flat, known = configuration.flatten(base.get_config()), keys.table().known
    assert set(known) == set(flat)
    assert all(known[key].accepts(flat[key]) for key in known)


@pytest.mark.parametrize(
    ('wrong', 'near'),
    [
        ('cpng.beta_int', 'cpng.beta_init'),
        ('optim.lerning_rate', 'optim.learning_rate'),
        ('batchsize', 'batch_size'),
        ('neurons.tau', 'neuron.tau'),
        ('modle.name', 'model.name'),
    ],
)
def test_an_unknown_key_names_the_nearest(wrong, near):
    config = base.get_config()
    *sections, key = wrong.split('.')
    if sections and sections[0] not in config:
        config[sections[0]] = {}
    (config[sections[0]] if sections else config)[key] = 1
    with pytest.raises(UserError) as caught:
        configuration.validate(config, keys.table())
    assert str(caught.value) == f'config has no key {wrong!r}; the nearest is {near!r}.'


def test_a_missing_key_is_named():
    config = base.get_config()
    del config.cpng.chi_limit
    with pytest.raises(UserError, match=r"lacks the key 'cpng\.chi_limit'"):
        configuration.validate(config, keys.table())


def test_changed_keys_ignore_what_does_not_change_the_result():
    config = base.get_config()
    config.model.stages = ((4, 4), (8,))
    stored = json.loads(config.to_json())
    assert configuration.changed_keys(stored, config, keys.table()) == []
    config.log.every_steps = 3
    config.eval.checkpoint = 'best'
    config.checkpoint.keep = 9
    assert configuration.changed_keys(stored, config, keys.table()) == []
    config.cpng.beta_init = 2.0
    config.model.stages = ((4,),)
    config.model.head = (5,)
    assert configuration.changed_keys(stored, config, keys.table()) == [
        'cpng.beta_init: 1.0 -> 2.0',
        "model.head: 'absent' -> [5]",
        'model.stages: [[4, 4], [8]] -> [[4]]',
    ]


def key_of(name, default, **more):
    return Key(name, default, lambda value: True, 'anything', 'a line', more.pop('since', '0.1'), ('here',), **more)


MADE_UP = Keys(
    {
        key.name: key
        for key in (
            key_of('a.first', 1),
            key_of('a.follower', None, follows='b.led'),
            key_of('b.led', 2.0),
            key_of('b.later', 3, since='0.2'),
            key_of('b.changed', 4, since='0.3', before=5),
            key_of('c', 'x', free=True),
            key_of('d.kind', 'plain', since='0.3'),
        )
    },
    {'d.fancy': Retired('d.kind', '0.3', {True: 'fancy', False: 'plain'})},
)


def test_a_configuration_of_defaults_in_which_a_key_follows_another():
    config = configuration.defaults(MADE_UP)
    assert configuration.flatten(config) == {
        **{'a.first': 1, 'a.follower': 2.0, 'b.led': 2.0, 'b.later': 3, 'b.changed': 4, 'c': 'x', 'd.kind': 'plain'}
    }
    config.b.led = 7.0
    assert config.a.follower == 7.0
    config = base.get_config()
    config.model.time_steps, config.neuron.v_th = 3, 0.5
    assert (config.data.time_steps, config.loss.tet_target) == (3, 0.5)


@pytest.mark.parametrize(
    ('stored', 'kind'),
    [({}, 'plain'), ({'d': {'fancy': False}}, 'plain'), ({'d': {'fancy': True}}, 'fancy'), ({'d': {'kind': 'x'}}, 'x')],
)
def test_the_configuration_of_an_older_run_is_brought_up_to_date(stored, kind):
    """A key that came later stands for what the run did, which need not be today's default; a retired one is read."""
    stored = {'a': {'first': 1, 'follower': 2.0}, 'b': {'led': 2.0}, 'c': 'y', **stored}
    flat = configuration.brought_up_to_date(stored, MADE_UP)
    assert (flat['b.later'], flat['b.changed'], flat['d.kind'], flat['c']) == (3, 5, kind, 'y')
    configuration.validate(flat, MADE_UP)
    assert configuration.flatten(configuration.from_flat(flat)) == flat
    config = configuration.defaults(MADE_UP)
    config.b.changed, config.d.kind = 5, kind
    assert configuration.changed_keys(stored, config, MADE_UP) == []
    config.b.changed, config.d.kind = 4, 'z'
    assert configuration.changed_keys(stored, config, MADE_UP) == ['b.changed: 5 -> 4', f"d.kind: {kind!r} -> 'z'"]


def test_a_key_of_the_first_version_is_not_made_up():
    with pytest.raises(UserError, match=r"lacks the key 'a\.first'"):
        configuration.validate(configuration.brought_up_to_date({'c': 'x'}, MADE_UP), MADE_UP)


def test_a_retired_key_says_what_to_write_instead():
    config = base.get_config()
    config.neuron.ds_atgo = True
    with pytest.raises(UserError) as caught:
        configuration.validate(config, keys.table())
    assert str(caught.value) == (
        "config.neuron.ds_atgo has become config.neuron.kind: write 'ds_atgo' for True, 'lif' for False."
    )
    damaged = configuration.brought_up_to_date({'neuron': {'ds_atgo': 'yes'}}, keys.table())
    with pytest.raises(UserError, match=r'config\.neuron\.ds_atgo has become config\.neuron\.kind'):
        configuration.validate(damaged, keys.table())
