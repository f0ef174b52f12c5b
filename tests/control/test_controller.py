"""What every rule of the table keeps to: the pair (init, update), its needs, and what goes with it."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpng_jax.control import fixed, from_run, rules
from cpng_jax.control.controller import (
    MEASURED,
    Controller,
    FirstLayer,
    Observed,
    Report,
    Settings,
    Surrogates,
    stateless,
)
from cpng_jax.control.layer_tree import by_layer
from cpng_jax.nn.statistics import DISTANCES, MembraneDistances, MembraneStats

f32: Any = functools.partial(np.asarray, dtype=np.float32)

BETA = {'conv01': {'lif': {'beta': f32(0.9)}}, 'conv02': {'lif': {'beta': f32([0.5, 1.5])}}}
SURROGATES = Surrogates(BETA, jax.tree.map(lambda leaf: 0.5 * leaf, BETA))
FOUND = {'conv01/lif': 0.25, 'conv02/lif': 4.0}
SETTINGS = {'beta_of_run': lambda folder: FOUND, 'decay_learnt': True}
GAIN = {'gain_target': 1.0}
OPTIONS = {'from_run': {'beta_from': 'runs/x'}, 'gain': GAIN, 'gain_width': GAIN, 'cpng_gain': GAIN}
OPTIONS |= {'chi_gain': {'chi_target': 0.7, **GAIN}, 'coherent_gain': {'coherence': 1e-4, **GAIN}}


def like_beta(make):
    return jax.tree.map(lambda leaf: make(leaf.shape), BETA)


def everything(**changes) -> Observed:
    """What every rule may look at."""
    moments = lambda shape: MembraneStats(np.full(shape, 0.2, np.float32), np.full(shape, 0.7, np.float32))
    shares = lambda shape: MembraneDistances(np.broadcast_to(f32(np.linspace(0, 1, len(DISTANCES))), (*shape, 41)))
    return Observed(
        membrane=like_beta(moments),
        distances=like_beta(shares),
        currents=like_beta(moments),
        firing_rate=like_beta(lambda shape: np.full(shape, 0.2, np.float32)),
        params={'conv01': {'lif': {'decay': f32(0.1)}}, 'conv02': {'lif': {'decay': f32(-0.3)}}},
        first_layer=FirstLayer(
            jnp.asarray([0.3, -0.4]), lambda weights, beta: jnp.sum(weights**2) * beta['conv01']['lif']['beta']
        ),
        updates=1,
    )._replace(**changes)


def make(name: str, **settings) -> Controller:
    return rules.make(name, Settings(options=OPTIONS.get(name, {}), **(SETTINGS | settings)))


@pytest.fixture(params=[*rules.RULES, 'cpng counted'])
def controller(request) -> Controller:
    name, *counted = request.param.split()
    return make(name, counted=bool(counted))


def test_update_is_pure_and_the_same_under_jit(controller):
    surrogates, observed = jax.tree.map(np.copy, SURROGATES), everything()
    state = controller.init(BETA)
    first = controller.update(observed, surrogates, state)
    second = controller.update(observed, surrogates, state)
    jitted = jax.jit(lambda *given: controller.update(observed, *given))(surrogates, state)
    chex.assert_trees_all_equal(first, second)
    chex.assert_trees_all_close(first, jitted, rtol=1e-6)
    chex.assert_trees_all_equal(surrogates, SURROGATES)


def test_what_is_set_and_state_keep_their_layout_over_many_updates(controller):
    surrogates, state = SURROGATES, controller.init(BETA)
    for number in range(3):
        surrogates, state, report = controller.update(everything(updates=number), surrogates, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(surrogates, SURROGATES)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, controller.init(BETA))
        assert isinstance(report, Report)
        chex.assert_trees_all_equal_structs(report.skipped, BETA)
        for tree in controller.numbers(state).values():
            chex.assert_trees_all_equal_shapes(tree, BETA)


def test_it_looks_at_nothing_but_what_it_needs(controller):
    state, functions = controller.init(BETA), [(controller.update, controller.needs)]
    if controller.start is not None:
        functions.append((controller.start, controller.start_needs))
    for function, needs in functions:
        assert set(needs) <= set(Observed._fields)
        bare = Observed(updates=1, **{name: getattr(everything(), name) for name in needs})
        chex.assert_trees_all_equal(function(bare, SURROGATES, state), function(everything(), SURROGATES, state))
        for name in needs:
            with pytest.raises((TypeError, ValueError, AttributeError)):
                jax.block_until_ready(function(bare._replace(**{name: None}), SURROGATES, state))


def test_what_is_measured_has_a_field():
    assert set(MEASURED) <= set(Observed._fields)


def test_a_rule_that_runs_in_the_step_never_recompiles(controller):
    chex.clear_trace_counter()
    loss = everything().first_layer.loss  # pyright: ignore[reportOptionalMemberAccess]

    @jax.jit
    @chex.assert_max_traces(n=1)
    def update(observed, weights, surrogates, state):
        return controller.update(observed._replace(first_layer=FirstLayer(weights, loss)), surrogates, state)

    surrogates, state = SURROGATES, controller.init(BETA)
    for number in range(4):
        observed = everything(first_layer=None, updates=jnp.int32(number))
        surrogates, state, _ = update(observed, jnp.ones(2), surrogates, state)


def test_fixed_keeps_width_and_height():
    surrogates, state, report = make('fixed').update(Observed(), SURROGATES, ())
    chex.assert_trees_all_equal(surrogates, SURROGATES)
    assert state == ()
    assert report.skipped_layers() == []


@pytest.mark.parametrize('wanted', [np.nan, np.inf, 0.0, -1.0])
def test_without_a_usable_width_a_layer_keeps_its_own_and_is_named(wanted):
    aims = {'conv01': {'lif': {'beta': f32(2)}}, 'conv02': {'lif': {'beta': f32([wanted, 3])}}}
    controller = stateless(lambda observed, beta: aims)
    (beta, scale), _, report = controller.update(Observed(), SURROGATES, ())
    assert scale is SURROGATES.scale
    assert by_layer(beta['conv01']) == {'lif': 2}
    np.testing.assert_array_equal(beta['conv02']['lif']['beta'], f32([0.5, 3]))
    assert report.skipped_layers() == ['conv02/lif']


def found_beta():
    return {'conv01': {'lif': {'beta': f32(0.25)}}, 'conv02': {'lif': {'beta': f32([4, 4])}}}


@pytest.mark.parametrize(('epochs', 'per_epoch'), [(0, 1), (2, 1), (2, 3)])
def test_the_beta_of_another_run_is_taken_once_its_epoch_has_come(epochs, per_epoch):
    options = {'beta_from': 'runs/x', 'beta_from_epoch': epochs}
    controller = rules.make('from_run', Settings(options=options, updates_per_epoch=per_epoch, **SETTINGS))
    assert controller.start is not None
    surrogates, state = controller.start(Observed(), SURROGATES, controller.init(BETA))
    for number in range(1, 9):
        due = number > epochs * per_epoch
        chex.assert_trees_all_equal(surrogates, SURROGATES._replace(beta=found_beta() if due else BETA))
        surrogates, state, _ = controller.update(Observed(updates=number), surrogates, state)
    chex.assert_trees_all_equal(surrogates.beta, found_beta())


def test_another_rule_goes_on_from_it():
    """The rule's own state and needs stay; its beta is replaced at that one update."""
    options = {'beta_from': 'runs/x', 'beta_from_epoch': 2}
    both, alone = make('cpng'), rules.make('cpng', Settings(options=options, **SETTINGS))
    assert alone.needs == both.needs
    state = alone.init(BETA)
    for number, expected in ((1, BETA), (2, found_beta())):
        _, plain, _ = both.update(everything(updates=number), SURROGATES, state)
        surrogates, state, _ = alone.update(everything(updates=number), SURROGATES, state)
        chex.assert_trees_all_equal(state, plain)
        chex.assert_trees_all_equal(surrogates, SURROGATES._replace(beta=expected))
    (after, _), _, _ = alone.update(everything(updates=3), surrogates, state)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(after, found_beta())


@pytest.mark.parametrize(('updates', 'seen'), [(0, found_beta), (1, lambda: BETA)])
def test_what_follows_starts_by_the_beta_that_was_found(updates, seen):
    doubling = fixed.RULE.make(Settings())._replace(
        start=lambda observed, surrogates, state: (jax.tree.map(lambda leaf: 2 * leaf, surrogates), state)
    )
    controller = from_run.followed_by(FOUND, updates, doubling)
    surrogates, _ = controller.start(Observed(), SURROGATES, ())  # pyright: ignore[reportOptionalCall]
    chex.assert_trees_all_equal(surrogates.beta, jax.tree.map(lambda leaf: 2 * leaf, seen()))


@pytest.mark.parametrize(
    ('name', 'settings', 'sentence'),
    [
        ('mpd_agl', {'counted': True}, 'config.cpng.chi is counted and config.cpng.rule is mpd_agl'),
        ('ds_atgo', {'counted': True}, 'config.cpng.chi is counted and config.cpng.rule is ds_atgo'),
        ('lsg', {'decay_learnt': False}, 'set config.neuron.learn_tau to True'),
        ('lsg', {'decay_learnt': True, 'surrogate': 'dspike'}, 'surrogate is dspike and config.cpng.rule is lsg'),
        ('mpd_agl', {'surrogate': 'dspike'}, 'surrogate is dspike and config.cpng.rule is mpd_agl'),
        ('dspike', {'every': 'batch'}, 'config.cpng.every is batch, expected epoch'),
        *(
            (name, {'fixed_threshold': False}, 'expected config.neuron.kind lif with it')
            for name in ('coherent_gain', 'chi_gain', 'gain', 'gain_width', 'cpng_gain', 'condition_iv')
        ),
        ('from_run', {'options': {}}, "config.cpng.beta_from '', expected the folder of a run"),
    ],
)
def test_what_does_not_go_together_is_a_sentence(name, settings, sentence):
    with pytest.raises(ValueError, match=sentence.replace('.', r'\.')):
        rules.make(name, Settings(**(SETTINGS | settings)))


@pytest.mark.parametrize('rule', rules.RULES.values(), ids=rules.RULES.keys())
def test_options_accept_their_defaults_and_say_what_they_mean(rule):
    assert rule.title
    for option in rule.options:
        assert option.range.accepts(option.default)
        assert option.meaning
        assert option.since
