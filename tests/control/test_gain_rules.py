"""The rules that hold the gain: at what they set it has its target, in every layer that has a gain."""

import functools
from typing import Any

import chex
import jax
import numpy as np
import pytest

from cpng_jax.control import rules
from cpng_jax.control.coherence import coherence
from cpng_jax.control.controller import Controller, Observed, Settings, Surrogates
from cpng_jax.control.effective_domain import beta_for_chi, chi_by_layer
from cpng_jax.control.gradient_gain import gain
from cpng_jax.control.layer_tree import layer_paths
from cpng_jax.nn.statistics import DISTANCES, MembraneDistances, MembraneStats
from cpng_jax.training import loop
from tests.runs import epoch_rows

f32: Any = functools.partial(np.asarray, dtype=np.float32)

# Mean and variance of the potentials, variance of the currents, firing rate; the last has a silent channel.
LAYERS = {
    'conv01': (0.3, 0.5, 0.4, 0.2),
    'conv02': (-0.5, 2.0, 1.5, 0.15),
    'constant': (0.3, 0.0, 0.4, 0.2),
    'fed alike': (0.3, 0.5, 0.0, 0.2),
    'saturated': (3.0, 0.5, 0.4, 1.0),
    'silent': (-3.0, 0.5, 0.4, 0.0),
    'by channel': ([0.2, 0.3, -0.4], [0.6, 0.5, 0.8], [0.5, 0.4, 0.7], [0.2, 0.0, 0.1]),
}
WITHOUT_GAIN = ['by channel', 'constant', 'fed alike', 'saturated', 'silent']  # in the order of a pytree
RULES = ('chi_gain', 'coherent_gain', 'gain', 'gain_width', 'cpng_gain')
OVER_TIME: dict[str, Any] = {'time_steps': 4, 'tau': 0.6, 'v_th': 0.8}


def tree(of_layer) -> Any:
    """What a function makes of the numbers of each layer, laid out like beta."""
    return {name: {'beta': of_layer(*map(f32, numbers))} for name, numbers in LAYERS.items()}


SURROGATES = Surrogates(tree(lambda mean, *_: 0.7 + 0.1 * np.abs(mean)), tree(lambda mean, *_: 0.9 + 0.0 * mean))


def counted(mean, variance, *_) -> MembraneDistances:
    """Shares that grow with the distance, to all; in the layer whose potentials are constant none is near."""
    near = np.asarray(DISTANCES) ** 0.7 / (1 + variance[..., None]) * (variance[..., None] > 0)
    return MembraneDistances(f32(np.minimum(near, 0.95)))


def observed(**changes) -> Observed:
    return Observed(
        membrane=tree(lambda mean, variance, *_: MembraneStats(mean, variance)),
        distances=tree(counted),
        currents=tree(lambda mean, _, currents, __: MembraneStats(mean, currents)),
        firing_rate=tree(lambda *numbers: numbers[-1]),
        params={name: {'decay': f32(0.1 * number)} for number, name in enumerate(LAYERS)},
        updates=1,
    )._replace(**changes)


def make(name: str, target: float = 1.0, **settings) -> Controller:
    return rules.make(name, Settings(options={'gain_target': target}, **settings))


def gains(surrogates: Surrogates, decays=None, seen=None, **settings) -> dict[str, np.ndarray]:
    """The gain of each layer by the function that is tested by itself; NaN where there is none."""
    seen, settings = seen or observed(), Settings(**settings)
    found = {}
    for name in LAYERS:
        of = lambda tree, name=name: tree[name]['beta']
        found[name] = np.asarray(
            gain(
                of(getattr(seen, settings.statistics)),
                of(surrogates.beta),
                of(surrogates.scale),
                currents=of(seen.currents).variance,
                firing_rate=of(seen.firing_rate),
                v_th=settings.v_th,
                surrogate=settings.surrogate,
                tau=settings.tau if decays is None else decays[name],
                time_steps=settings.time_steps,
                detach_reset=settings.detach_reset,
            )
        )
    return found


def assert_kept(old, new, name: str, where: np.ndarray) -> None:
    old, new = (np.asarray(tree[name]['beta'])[where] for tree in (old, new))
    np.testing.assert_array_equal(new, old, err_msg=name)


def assert_held(before: Surrogates, after: Surrogates, skipped, target: float, **settings) -> None:
    """The gain is the target where there is one; elsewhere height and width are what they were."""
    found = gains(after, **settings)
    has_gain = {name: value > 0 for name, value in found.items()}  # NaN, or 0 where none was counted inside
    assert [name for name in sorted(LAYERS) if not has_gain[name].all()] == WITHOUT_GAIN
    np.testing.assert_array_equal(has_gain['by channel'], [True, False, True])
    for name, value in found.items():
        np.testing.assert_allclose(value[has_gain[name]], target, rtol=1e-4, err_msg=name)
        np.testing.assert_array_equal(skipped[name]['beta'], ~has_gain[name], err_msg=name)
        for old, new in zip(before, after, strict=True):
            assert_kept(old, new, name, ~has_gain[name])


@pytest.mark.parametrize(
    ('target', 'settings'),
    [
        (1.0, {}),
        (0.25, {**OVER_TIME}),
        (1.0, {**OVER_TIME, 'detach_reset': True}),
        (1.0, {'counted': True}),
    ],
    ids=['one step', 'four steps', 'detached', 'counted'],
)
@pytest.mark.parametrize('name', ['gain', 'gain_width'])
def test_the_gain_is_the_target_in_every_layer_that_has_one(name, target, settings):
    controller, before = make(name, target, **settings), SURROGATES
    after, state, report = controller.update(observed(), before, controller.init(before.beta))
    assert_held(before, after, report.skipped, target, **settings)
    assert report.skipped_layers() == WITHOUT_GAIN
    assert state == ()
    # The one is set, the other is as it was.
    other = 'beta' if name == 'gain' else 'scale'
    chex.assert_trees_all_equal(getattr(after, other), getattr(before, other))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, before)
    # Before the first step the same is done by the same numbers, and of a statistic that is held nothing changes.
    assert controller.start is not None
    assert controller.start_needs == controller.needs
    chex.assert_trees_all_equal(controller.start(observed(updates=0), before, state), (after, state))
    chex.assert_trees_all_close(controller.update(observed(), after, state)[0], after, rtol=1e-5)


@pytest.mark.parametrize('name', RULES)
def test_a_layer_that_is_nearly_silent_is_passed_gradients_as_one_that_fires_at_a_twentieth(name):
    """By its own rate they would be as weak as its signals, and it would stay as it is."""
    options = {'gain_target': 1.0, 'chi_target': 0.7, 'coherence': 1e-4, 'chi_limit': 0.2, 'limit_mode': 'delayed'}
    controller = rules.make(name, Settings(options=options))

    def surrogates_at(rate: float) -> Surrogates:
        seen = observed(firing_rate=tree(lambda mean, *_: f32(np.full(np.shape(mean), rate))))
        return controller.update(seen, SURROGATES, controller.init(SURROGATES.beta))[0]

    twentieth, most = surrogates_at(0.05), surrogates_at(0.95)
    chex.assert_trees_all_equal(surrogates_at(1e-5), surrogates_at(0.049), twentieth)
    chex.assert_trees_all_equal(surrogates_at(0.9999), most)
    scales = [
        float(each.scale['conv01']['beta'] * each.beta['conv01']['beta']) for each in (twentieth, surrogates_at(0.1))
    ]
    assert scales[0] < scales[1]


@pytest.mark.parametrize(
    'settings',
    [{'surrogate': 'rectangular', 'interval': 'support'}, {'counted': True, **OVER_TIME}],
    ids=['moments', 'counted'],
)
def test_chi_and_the_gain_are_their_targets_whatever_the_start(settings):
    options = {'chi_target': 0.6, 'gain_target': 0.5}
    controller = rules.make('chi_gain', Settings(options=options, **settings))
    seen, of = observed(), Settings(**settings)
    stats, state = getattr(seen, of.statistics), controller.init(SURROGATES.beta)
    after, state, report = controller.update(seen, SURROGATES, state)
    assert state == ()
    shares = chi_by_layer(stats, after.beta, v_th=of.v_th, surrogate=of.surrogate, interval=of.interval)
    found, reached = gains(after, **settings), 0
    for name, gain_of in found.items():
        has_chi = np.asarray(beta_for_chi(0.6, stats[name]['beta'], v_th=of.v_th)) > 0
        np.testing.assert_allclose(np.asarray(shares[name]['beta'])[has_chi], 0.6, rtol=1e-5, err_msg=name)
        assert_kept(SURROGATES.beta, after.beta, name, ~has_chi)
        has_gain = gain_of > 0
        np.testing.assert_allclose(gain_of[has_gain], 0.5, rtol=1e-4, err_msg=name)
        assert_kept(SURROGATES.scale, after.scale, name, ~has_gain)
        np.testing.assert_array_equal(report.skipped[name]['beta'], ~(has_chi & has_gain), err_msg=name)
        reached += np.sum(has_chi & has_gain)
    assert reached == 4  # conv01, conv02, and two of three channels
    # What layers have at first is forgotten, and a first batch does what an epoch does.
    other = jax.tree.map(lambda leaf: f32(7 * leaf), SURROGATES)
    assert controller.start is not None
    started, _ = controller.start(observed(updates=0), other, ())
    for name in ('conv01', 'conv02'):
        chex.assert_trees_all_equal([tree[name] for tree in started], [tree[name] for tree in after])


@pytest.mark.parametrize(
    ('layers', 'through', 'expected'),
    [(12, 1e-4, 1e-4 ** (1 / 12)), (32, 1e-4, 1e-4 ** (1 / 32)), (12, 0.1, 0.1 ** (1 / 12)), (4, 1e-4, 0.4)],
)
def test_the_coherence_of_a_layer_is_that_of_the_network_by_its_depth(layers, through, expected):
    """Through all layers it is the target, but of a network that few have, where that would be too narrow."""
    of_each = lambda make: {f'conv{index:02}': {'beta': make(f32(0.1 * index))} for index in range(layers)}
    seen = Observed(
        membrane=of_each(lambda x: MembraneStats(-x, 1 + x)),
        currents=of_each(lambda x: MembraneStats(x, 1 + x)),
        firing_rate=of_each(lambda x: f32(0.2)),
        updates=1,
    )
    controller = rules.make('coherent_gain', Settings(options={'coherence': through}, surrogate='arctan', v_th=0.9))
    before = Surrogates(of_each(lambda x: 1 + x), of_each(lambda x: 2 + x))
    after, state, report = controller.update(seen, before, controller.init(before.beta))
    assert state == ()
    assert report.skipped_layers() == []
    for name, stats in seen.membrane.items():
        beta, scale = after.beta[name]['beta'], after.scale[name]['beta']
        found = coherence(stats['beta'], beta, v_th=0.9, surrogate='arctan')
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        of_layer = dict(currents=seen.currents[name]['beta'].variance, firing_rate=0.2, v_th=0.9, surrogate='arctan')
        np.testing.assert_allclose(gain(stats['beta'], beta, scale, **of_layer), 1, rtol=1e-4)
    # What layers have at first is forgotten, and a first batch does what an epoch does.
    assert controller.start is not None
    other = jax.tree.map(lambda leaf: f32(7 * leaf), before)
    chex.assert_trees_all_equal(controller.start(seen._replace(updates=0), other, ())[0], after)


@pytest.mark.trains
@pytest.mark.parametrize('rule', ['coherent_gain', 'gain_width'])
def test_runs_from_any_start_are_one_run(rule, tmp_path, tiny_config):
    rows = []
    for beta in (0.25, 5.0):
        tiny_config.update_from_flattened_dict({'cpng.rule': rule, 'epochs': 1, 'cpng.beta_init': beta})
        loop.run(tiny_config, tmp_path / str(beta))
        rows += epoch_rows(tmp_path / str(beta))
    assert [row.pop('beta_init') for row in rows] == [0.25, 5.0]
    assert rows[0] == rows[1]


@pytest.mark.parametrize('settings', [{}, {'counted': True, 'every': 'batch'}], ids=['moments', 'counted'])
def test_cpng_sets_the_width_as_by_itself_and_the_height_holds_the_gain(settings):
    both, alone = make('cpng_gain', **settings), make('cpng', **settings)
    state = plain = both.init(SURROGATES.beta)
    chex.assert_trees_all_equal(state, alone.init(SURROGATES.beta))
    surrogates = expected = SURROGATES
    # Potentials move closer to the threshold, so that CPNG, which first records, has something to do.
    for number, closer in enumerate((0.0, 0.2, 0.3), start=1):
        moved = tree(lambda mean, variance, *_, closer=closer: MembraneStats(mean + closer, variance))
        seen = observed(membrane=moved, updates=number)
        before = surrogates
        surrogates, state, report = both.update(seen, surrogates, state)
        expected, plain, of_cpng = alone.update(seen, expected, plain)
        chex.assert_trees_all_equal((surrogates.beta, state), (expected.beta, plain))
        chex.assert_trees_all_equal(both.numbers(state), alone.numbers(plain))
        assert expected.scale is SURROGATES.scale
        skipped = of_cpng.skipped
        found = gains(surrogates, seen=seen, **settings)
        for name, value in found.items():
            usable = value > 0  # NaN, or 0 where none was counted inside
            np.testing.assert_allclose(value[usable], 1, rtol=1e-4, err_msg=name)
            assert_kept(before.scale, surrogates.scale, name, ~usable)
            np.testing.assert_array_equal(report.skipped[name]['beta'], ~usable | skipped[name]['beta'], err_msg=name)
    if not settings:
        assert not np.allclose(surrogates.beta['conv01']['beta'], SURROGATES.beta['conv01']['beta'])
    # CPNG starts with what it is given; the height does not.
    assert both.start is not None
    started, state = both.start(observed(updates=0), SURROGATES, both.init(SURROGATES.beta))
    chex.assert_trees_all_equal((started.beta, state), (SURROGATES.beta, both.init(SURROGATES.beta)))
    assert np.isclose(gains(started, **settings)['conv01'], 1, rtol=1e-4)


@pytest.mark.parametrize('name', RULES)
def test_decays_that_are_learnt_are_those_of_the_layers(name):
    settings = {**OVER_TIME, 'decay_learnt': True}
    controller, seen = make(name, **settings), observed()
    assert 'params' in controller.needs
    after, _, _ = controller.update(seen, SURROGATES, controller.init(SURROGATES.beta))
    decays = {layer: 1 / (1 + np.exp(-seen.params[layer]['decay'])) for layer in LAYERS}
    held, otherwise = gains(after, decays, **settings), gains(after, **settings)
    np.testing.assert_allclose([held['conv01'], held['conv02']], 1, rtol=1e-4)
    assert not np.isclose(otherwise['conv02'], 1, rtol=1e-3)


@pytest.mark.parametrize('epochs', [0, 2])
def test_the_gain_is_held_at_the_beta_of_another_run(epochs):
    """From the moment on that the width is taken, not only from the update after it."""
    options = {'beta_from': 'runs/x', 'beta_from_epoch': epochs, 'gain_target': 1.0}
    found = dict.fromkeys(layer_paths(SURROGATES.beta), 2.0)
    controller = rules.make('gain', Settings(options=options, beta_of_run=lambda folder: found))
    assert controller.start is not None
    surrogates, state = controller.start(observed(updates=0), SURROGATES, controller.init(SURROGATES.beta))
    update = jax.jit(lambda number, *given: controller.update(observed(updates=number), *given))
    for number in range(1, epochs + 1):
        assert gains(surrogates)['conv02'] == pytest.approx(1, rel=1e-4)
        chex.assert_trees_all_equal(surrogates.beta, SURROGATES.beta)
        surrogates, state, _ = update(number, surrogates, state)
    assert {float(beta) for beta in np.concatenate([*map(np.ravel, jax.tree.leaves(surrogates.beta))])} == {2.0}
    assert gains(surrogates)['conv02'] == pytest.approx(1, rel=1e-4)


@pytest.mark.trains
def test_a_run_holds_the_gain(tmp_path, tiny_config, undisturbed, capsys):
    """At the end of an epoch the gain is near 1, by heights of the epoch before, and of a batch before the first."""
    tiny_config.update_from_flattened_dict({'cpng.rule': 'gain', 'epochs': 2})
    loop.run(tiny_config, tmp_path)
    for row, other in zip(epoch_rows(tmp_path), epoch_rows(undisturbed[0]), strict=False):
        gains = np.array([*row['gain'].values()])
        assert (np.abs(np.log2(gains)) < 0.75).all(), gains
        assert np.abs(np.log2(gains)).max() < np.abs(np.log2([*other['gain'].values()])).max()
        assert 1.0 not in row['scale'].values()
        assert set(row['beta'].values()) == {1.0}
        assert row['skipped'] == []
    out = capsys.readouterr().out
    assert '  gain ' in out
    assert '  scale ' in out
    assert (tmp_path / 'plots' / 'gain.png').exists()
