import importlib.util
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from configs import base
from cpng_jax import data
from cpng_jax.control import rules
from cpng_jax.runtime import config as configuration
from cpng_jax.runtime.config import Key, Keys, Only, Retired
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import keys

CONFIGS = sorted(path for path in (pathlib.Path(__file__).parents[2] / 'configs').glob('[!_]*.py'))


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
        (
            'neuron.surrogate',
            'triangle',
            "one of triangular, rectangular, arctan, dspike; the nearest is 'triangular'",
        ),
        ('optim.learning_rate', float('nan'), 'a number above 0'),
        ('optim.momentum', 1.0, 'a number of at least 0 and below 1'),
        ('cpng.beta_init', float('inf'), 'a number above 0'),
        ('cpng.chi_limit', 1.0, 'a number of at least 0 and below 1'),
        ('cpng.every', 'step', 'one of epoch, batch'),
        (
            'cpng.rule',
            'dspik',
            'one of ' + ', '.join(rules.RULES) + "; the nearest is 'dspike'",
        ),
        ('cpng.per', 'neuron', 'one of layer, channel'),
        ('cpng.chi', 'exact', 'one of gaussian, counted'),
        ('data.name', 'minst', f"{data.names()}; the nearest is 'mnist'"),
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


@pytest.mark.parametrize(
    ('key', 'value', 'largest'),
    [
        ('epochs', 2**63, '4.294'),
        ('data.crop_padding', 2**32, '4.294'),
        ('optim.learning_rate', 1e300, '3.402'),
        ('model.width', 1e39, '3.402'),
    ],
)
def test_a_number_too_large_to_count_with_is_one_sentence(key, value, largest):
    config = base.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=re.escape(f'config.{key} is {value!r}, expected at most {largest}')):
        configuration.validate(config, keys.table())


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('model.stages', ((np.int64(16),),)),
        ('model.head', np.array([1, 2])),
        ('model.width', np.float32(0.5)),
        ('model.pool_last', np.bool_(True)),
        ('epochs', np.int64(3)),
        ('seed', jax.numpy.int32(3)),
        ('data.dir', pathlib.Path('data')),
        ('profile.steps', {1, 2}),
        ('neuron.surrogate', print),
    ],
)
def test_what_is_no_plain_value_is_refused_by_its_key(key, value):
    config = base.get_config()
    section, _, name = key.rpartition('.')
    with config.ignore_type():
        (config[section] if section else config)[name] = value
    with pytest.raises(UserError, match=re.escape(f'config.{key} is {value!r}, expected numbers, texts and tuples of')):
        configuration.validate(config, keys.table())


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


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        (
            {'data.name': 'digits_events', 'data.cutout': 4},
            "config.data.cutout is 4, which has no effect with config.data.name 'digits_events': leave it at 0, "
            'or choose digits, mnist5k, fashion_mnist, mnist, kmnist, cifar10, cifar100, imagenet2012, folder or '
            'tfds:NAME.',
        ),
        (
            {'optim.name': 'adam', 'optim.momentum': 0.8},
            "config.optim.momentum is 0.8, which has no effect with config.optim.name 'adam': leave it at 0.9, "
            'or choose sgd.',
        ),
        (
            {'data.fake_examples': 8},
            'config.data.fake_examples is 8, which has no effect with config.data.fake False: leave it at 2048, '
            'or choose True.',
        ),
        (
            {'cpng.beta_from_epoch': 2},
            "config.cpng.beta_from_epoch is 2, which has no effect with config.cpng.beta_from '': leave it at 0, "
            'or choose the folder of a run.',
        ),
    ],
    ids=lambda value: '',
)
def test_a_key_without_effect_is_one_sentence(changes, sentence):
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    configuration.validate(config, keys.table())
    with pytest.raises(UserError) as caught:
        configuration.refuse_idle([config], keys.table())
    assert str(caught.value) == sentence


def test_what_a_switch_turns_off_is_not_refused():
    """A run to compare with differs by the switch alone."""
    config = base.get_config()
    config.cpng.chi_limit, config.cpng.enabled = 0.3, False
    config.data.name, config.data.slicing, config.data.fake = 'digits_events', 'time', True
    configuration.refuse_idle([config], keys.table())


DEPENDENT = Keys(
    {
        key.name: key
        for key in (
            key_of('kind', 'a'),
            key_of('weight', 1.0, only=(Only('kind', ('b',), ('a',)),)),
            key_of('time', 4),
            key_of('frames', None, follows='time', only=(Only('kind', ('b',), ('a',)),)),
            key_of('folder', 'x', free=True),
        )
    }
)
IDLE = {'kind': 'a', 'weight': 2.0, 'time': 4, 'frames': 4, 'folder': 'y'}


def refusal(configs, keys=DEPENDENT, **more):
    try:
        configuration.refuse_idle(configs, keys, **more)
    except UserError as error:
        return str(error)
    return None


def test_a_key_is_refused_where_it_is_idle_alone():
    assert (
        refusal([IDLE])
        == "config.weight is 2.0, which has no effect with config.kind 'a': leave it at 1.0, or choose b."
    )
    assert refusal([IDLE | {'weight': 1.0}]) is None
    assert refusal([IDLE | {'kind': 'b'}]) is None
    assert refusal([IDLE | {'kind': 'from outside'}]) is None, 'nothing is known of what others have registered'
    assert 'config.frames is 5, ' in str(refusal([IDLE | {'weight': 1.0, 'frames': 5}]))
    assert 'leave it at 4, or choose b.' in str(refusal([IDLE | {'weight': 1.0, 'frames': 5}]))
    assert refusal([IDLE | {'weight': 1.0, 'time': 5, 'frames': 5}]) is None, 'a key that follows says nothing'


def test_a_key_that_counts_in_one_of_several_runs_is_not_refused():
    assert refusal([IDLE, IDLE | {'kind': 'b'}]) is None
    assert 'config.weight is 2.0' in str(refusal([IDLE | {'weight': 1.0}, IDLE]))


def test_a_run_that_was_begun_with_an_idle_value_goes_on():
    assert refusal([IDLE], stored=IDLE) is None
    assert 'config.weight is 2.0' in str(refusal([IDLE], stored=IDLE | {'weight': 3.0}))


def test_idle_values_make_no_other_run():
    assert configuration.differing(IDLE, IDLE | {'weight': 1.0}, DEPENDENT) == []
    counts = IDLE | {'kind': 'b'}
    assert configuration.differing(counts, counts | {'weight': 1.0}, DEPENDENT) == ['weight']
    assert configuration.differing(IDLE, counts | {'weight': 1.0}, DEPENDENT) == ['kind', 'weight']


def test_without_idle_values_the_run_is_the_same():
    config = base.get_config()
    changes = {
        'optim.name': 'adam',
        'optim.momentum': 0.8,
        'neuron.v_th': 0.5,
        'cpng.rule': 'lsg',
        'cpng.chi_limit': 0.3,
    }
    config.update_from_flattened_dict(changes)
    settled = configuration.flatten(configuration.without_idle(config, keys.table()))
    before = configuration.flatten(config)
    assert {key: value for key, value in settled.items() if before[key] != value} == {
        'optim.momentum': 0.9,
        'cpng.chi_limit': 0.2,
    }
    assert configuration.differing(before, settled, keys.table()) == []
    assert config.optim.momentum == 0.8
