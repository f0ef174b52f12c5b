"""The rules of other papers against their equations in float64 numpy."""

import functools
import math
from typing import Any

import chex
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpng_jax.control import ds_atgo, lsg, mpd_agl, rules
from cpng_jax.control.controller import Observed, Settings, Surrogates
from cpng_jax.control.effective_domain import chi
from cpng_jax.experiments.catalogue import compare
from cpng_jax.experiments.grid import cells_of
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import MembraneStats
from cpng_jax.nn.surrogate import beta_of_width
from cpng_jax.runtime.config import validate
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import keys, loop, objective, set_beta
from cpng_jax.training.setup import build
from tests.equations import eq_2, eq_3_and_4, eq_7_and_8
from tests.runs import epoch_rows
from tests.training.test_step import batch, make

# The rules that give a width by a formula.
BY_WIDTH = ('mpd_agl', 'ds_atgo', 'lsg')

f32: Any = functools.partial(np.asarray, dtype=np.float32)


def rectangle(x, width):
    """The surrogate gradient of all three papers: 1 / width where |u - v_th| < width / 2."""
    return np.where(np.abs(x) < width / 2, 1 / width, 0)


def mpd_agl_width(variance):
    """Theorem 2, its standard deviation being that of the potentials."""
    return 2 * np.sqrt(variance)


def ds_atgo_width(mean, variance, v_th, width):
    """Eq. 5 with f_c = 1, and Eq. 7 with its two cases."""
    threshold = mean + np.sqrt(variance)
    if threshold < v_th:
        return (1 - np.tanh(v_th - threshold)) * width
    return (1 + np.tanh(threshold - v_th)) * width


def lsg_width(tau, v_th):
    return 2 * v_th * np.sqrt(1 + tau**2)


widths = st.floats(0.01, 50)
means, variances, thresholds = st.floats(-3, 3), st.floats(1e-3, 20), st.floats(0.1, 2)
X = np.linspace(-40, 40, 1001)


@given(width=widths)
def test_the_rectangle_has_the_width_of_the_papers(width):
    beta = float(beta_of_width(np.float64(width), 'rectangular'))
    inside = np.abs(np.abs(X) - width / 2) > 1e-4 * width  # away from the edge, which float32 moves
    np.testing.assert_allclose(eq_3_and_4(X, beta, 'rectangular')[inside], rectangle(X, width)[inside], rtol=1e-5)


@given(width=widths)
def test_other_shapes_lie_over_the_same_interval(width):
    beta = float(beta_of_width(np.float64(width), 'triangular'))
    nonzero = eq_3_and_4(X, beta, 'triangular') > 0
    away = np.abs(np.abs(X) - width / 2) > 1e-4 * width
    np.testing.assert_array_equal(nonzero[away], (np.abs(X) < width / 2)[away])
    assert float(beta_of_width(width, 'arctan')) == pytest.approx(beta)


@given(mean=means, variance=variances)
def test_mpd_agl(mean, variance):
    beta = mpd_agl.beta_of(MembraneStats(f32(mean), f32(variance)), surrogate='rectangular')
    assert beta.dtype == np.float32
    assert float(beta) == pytest.approx(1 / mpd_agl_width(variance), rel=1e-5)


def test_mpd_agl_keeps_the_share_in_the_interval_whatever_the_scale():
    """What the paper is after: potentials that are scaled about the threshold leave chi where it was."""
    shares = []
    for sigma in (0.1, 1, 10):
        stats = MembraneStats(f32(1 - 0.5 * sigma), f32(sigma**2))
        beta = mpd_agl.beta_of(stats, surrogate='triangular')
        shares.append(float(chi(stats, beta)))
    np.testing.assert_allclose(shares, shares[0], rtol=1e-4)


@given(mean=means, variance=variances, v_th=thresholds, beta_init=st.floats(0.1, 5))
def test_ds_atgo(mean, variance, v_th, beta_init):
    mean, variance = f32(mean), f32(variance)
    beta = ds_atgo.beta_of(MembraneStats(mean, variance), beta_init=beta_init, v_th=v_th)
    width = ds_atgo_width(np.float64(mean), np.float64(variance), v_th, 1 / beta_init)
    assert float(beta) == pytest.approx(1 / width, rel=1e-3)
    # Wider than at the start just where the adaptive threshold is above v_th.
    threshold = float(mean) + math.sqrt(variance)
    if abs(threshold - v_th) > 1e-3:
        assert (float(beta) < beta_init) == (threshold > v_th)


@given(decay=st.floats(-6, 6), v_th=thresholds)
def test_lsg(decay, v_th):
    tau = 1 / (1 + math.exp(-decay))
    beta = lsg.beta_of(f32(decay), surrogate='rectangular', v_th=v_th)
    assert float(beta) == pytest.approx(1 / lsg_width(tau, v_th), rel=1e-5)
    # v_th = 0.5 and tau = 0.2, where their training starts, are about the usual width of 1.
    assert float(lsg.beta_of(f32(math.log(0.2 / 0.8)), surrogate='rectangular', v_th=0.5)) == pytest.approx(
        0.98, abs=0.01
    )


def test_a_layer_without_a_width_keeps_its_own():
    beta = {'a': f32(0.7), 'b': f32([0.7, 0.7]), 'c': f32(0.7)}
    stats = {
        'a': MembraneStats(f32(0), f32(0)),
        'b': MembraneStats(f32([0, 0]), f32([4, np.nan])),
        'c': MembraneStats(f32(0), f32(1)),
    }
    controller = rules.make('mpd_agl', Settings())
    heights = jax.tree.map(np.ones_like, beta)
    (new, scale), _, report = controller.update(
        Observed(membrane=stats), Surrogates(beta, heights), controller.init(beta)
    )
    assert scale is heights
    skipped = report.skipped
    assert report.skipped_layers() == ['a', 'b']
    assert {name: np.asarray(skip).tolist() for name, skip in skipped.items()} == {
        'a': True,
        'b': [False, True],
        'c': False,
    }
    assert float(new['a']) == np.float32(0.7)
    np.testing.assert_allclose(new['b'], [0.5, 0.7])
    assert float(new['c']) == 1
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(new))
    # So far below the threshold that the width of Eq. 7 vanishes in float32.
    controller = rules.make('ds_atgo', Settings())
    observed = Observed(membrane={'a': MembraneStats(f32(-50), f32(1))})
    assert controller.update(observed, Surrogates({'a': beta['a']}, {'a': f32(1)}), ())[-1].skipped['a']


def test_unknown_rules_are_named():
    message = f"rule must be one of {', '.join(rules.RULES)}, got 'dspik'"
    with pytest.raises(ValueError, match=message):
        rules.make('dspik', Settings())


@pytest.mark.trains
@pytest.mark.parametrize('per_channel', [False, True], ids=['layer', 'channel'])
@pytest.mark.parametrize('name', BY_WIDTH)
def test_a_step_with_a_rule_is_the_rule_after_the_step(name, per_channel):
    neuron = functools.partial(LIF, per_channel=per_channel, learn_tau=name == 'lsg')
    controller = rules.make(name, Settings(beta_init=0.7, decay_learnt=name == 'lsg'))
    *_, state, step = make(beta=0.7, neuron=neuron, controller=controller, every_batch=True)
    *_, other, plain = make(beta=0.7, neuron=neuron, controller=controller)
    for seed in range(3):
        state = step(state, batch(seed))
        other, report = set_beta.update(controller, plain(other, batch(seed)), seed + 1)
        chex.assert_trees_all_close(state.surrogate, other.surrogate, rtol=1e-4)
        assert report.skipped_layers() == []
    stats = other.epoch.observed['membrane']['conv02']['lif']['beta']
    if name == 'lsg':
        decay = np.float64(other.params['conv02']['lif']['decay'])
        assert decay != 0  # it is learnt, from tau = 1/2 on
        expected = 2 / lsg_width(1 / (1 + np.exp(-decay)), 1)
    elif name == 'mpd_agl':
        expected = 2 / mpd_agl_width(np.float64(stats.variance))
    else:
        expected = 1 / np.vectorize(ds_atgo_width)(np.float64(stats.mean), np.float64(stats.variance), 1, 1 / 0.7)
    beta = other.surrogate['conv02']['lif']['beta']
    assert beta.shape == ((6,) if per_channel else ())
    np.testing.assert_allclose(beta, np.broadcast_to(expected, beta.shape), rtol=1e-4)
    assert state.control == ()  # nothing is remembered


def test_the_learnt_decay_has_the_gradient_of_the_equations():
    rng = np.random.default_rng(3)
    currents, upstream = (f32(rng.integers(-16, 16, (5, 3, 2)) / 8) for _ in range(2))
    layer = LIF(tau=0.25, learn_tau=True)
    variables = layer.init(jax.random.key(0), currents)
    decay = np.float64(variables['params']['decay'])
    tau = 1 / (1 + math.exp(-decay))
    assert tau == pytest.approx(0.25, abs=1e-6)
    apply = lambda params: layer.apply({'params': params, 'surrogate': variables['surrogate']}, currents)
    loss = lambda params: (upstream * apply(params)).sum()
    gradient = jax.grad(loss)(variables['params'])['decay']
    u, s = eq_2(currents, tau, 1)
    _, d_tau, _ = eq_7_and_8(upstream, u, s, 1, tau, 1, 'triangular')
    assert float(gradient) == pytest.approx(d_tau * tau * (1 - tau), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize('tau', [0.0, 1.0])
def test_a_decay_at_the_end_of_its_range_cannot_be_learnt(tau, tiny_config):
    with pytest.raises(ValueError, match='tau must lie strictly between 0 and 1 to be learnt'):
        LIF(tau=tau, learn_tau=True).init(jax.random.key(0), f32(np.ones((2, 3, 4))))
    tiny_config.neuron.tau, tiny_config.neuron.learn_tau = tau, True
    with pytest.raises(UserError, match=rf'config\.neuron\.tau is {tau}, expected a number between 0 and 1'):
        build(tiny_config)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'cpng.rule': 'lsg'}, r'config\.cpng\.rule is lsg, whose width follows a decay that is learnt'),
        (
            {'cpng.rule': 'mpd_agl', 'cpng.chi': 'counted'},
            r'config\.cpng\.chi is counted and config\.cpng\.rule is mpd',
        ),
        ({'cpng.rule': 'dspike', 'cpng.every': 'batch'}, r'config\.cpng\.every is batch, expected epoch with it'),
        ({'neuron.kind': 'ds_atgo', 'neuron.implementation': 'pallas'}, r'implementation is pallas, whose kernels'),
        ({'neuron.kind': 'ds_atgo', 'cpng.chi': 'counted'}, r'kind is ds_atgo and config\.cpng\.chi is counted'),
        (
            {'neuron.kind': 'mpd_agl', 'neuron.surrogate': 'dspike'},
            r'kind is mpd_agl and config\.neuron\.surrogate is dspike: .* expected another shape',
        ),
        ({'neuron.kind': 'mpd_agl', 'cpng.rule': 'gain'}, r'config\.cpng\.rule goes by the gain, .*kind lif with it'),
        ({'neuron.learn_tau': True, 'neuron.implementation': 'pallas'}, r'implementation is pallas, whose kernels'),
        *(
            ({'neuron.kind': 'ds_atgo', 'cpng.rule': name}, r'config\.cpng\.rule goes by the gain, .*kind lif with it')
            for name in ('coherent_gain', 'chi_gain', 'gain', 'gain_width', 'cpng_gain', 'condition_iv')
        ),
    ],
)
def test_options_that_do_not_go_together(changes, message, tiny_config):
    tiny_config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        build(tiny_config)


@pytest.mark.trains
@pytest.mark.parametrize('name', BY_WIDTH)
@pytest.mark.parametrize('every', ['epoch', 'batch'])
def test_a_run_with_a_rule(tmp_path, tiny_config, name, every):
    tiny_config.update_from_flattened_dict(
        {'cpng.rule': name, 'cpng.every': every, 'neuron.learn_tau': name == 'lsg', 'epochs': 2}
    )
    loop.run(tiny_config, tmp_path)
    rows = epoch_rows(tmp_path)
    assert all(value != 1 for row in rows for value in row['beta'].values())
    assert all(0 < value < 1 for row in rows for value in row['chi'].values())
    assert all(set(row['chi_min'].values()) == {None} for row in rows)
    assert all(row['skipped'] == [] for row in rows)


@pytest.mark.trains
def test_a_rule_that_is_off_leaves_beta_alone(tmp_path, tiny_config):
    tiny_config.update_from_flattened_dict({'cpng.rule': 'mpd_agl', 'cpng.enabled': False, 'epochs': 1})
    loop.run(tiny_config, tmp_path)
    assert set(epoch_rows(tmp_path)[-1]['beta'].values()) == {1.0}


@pytest.mark.trains
def test_changing_beta_by_a_rule_never_recompiles(tiny_config, monkeypatch):
    make_loss = objective.make_loss
    monkeypatch.setattr(objective, 'make_loss', lambda *options: chex.assert_max_traces(make_loss(*options), n=1))
    chex.clear_trace_counter()
    tiny_config.update_from_flattened_dict({'cpng.rule': 'ds_atgo', 'cpng.every': 'batch'})
    setup = build(tiny_config)
    step, state = setup.train_step, setup.initial_state()
    rng = np.random.default_rng(0)
    for _ in range(3):
        images = rng.integers(0, 256, (128, *setup.dataset.image_shape)).astype(np.uint8)
        state = step(state, {'image': images, 'label': rng.integers(0, 10, 128).astype(np.int32)})


@pytest.mark.parametrize('tau', [0.5, 1.0])
def test_the_arms_of_compare_are_different_runs_that_can_be_built(tau, tiny_config, tmp_path):
    tiny_config.neuron.tau = tau
    plan = compare(tiny_config, None)
    labels = [arm.label for arm in plan.arms]
    assert labels[0] == 'fixed'
    assert ('LSG' in labels) == (tau < 1)
    assert {arm.baseline for arm in plan.arms[1:]} == {'fixed'}
    assert {tuple(arm.factors) for arm in plan.arms} == {('rule', 'chi', 'per', 'kind', 'learn_tau')}
    cells = cells_of(plan, tiny_config, [0], tmp_path)
    assert len({cell.folder for cell in cells}) == len(labels)
    for cell in cells:
        validate(cell.config, keys.table())
        build(cell.config)
