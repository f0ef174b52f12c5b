"""Neurons of MPD-AGL against Theorem 2 of that paper, and Eq. 2, 7 and 8 of ours, in float64 numpy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cpng_jax.control.effective_domain import chi
from cpng_jax.nn.currents import deviation
from cpng_jax.nn.deviation_neuron import DeviationLIF, deviation_lif, widths
from cpng_jax.nn.layers import TdBN
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import membrane_stats
from cpng_jax.nn.terms import Affine, Normalised
from cpng_jax.training import loop
from tests.equations import eq_2, eq_3_and_4
from tests.runs import epoch_rows

f32: Any = functools.partial(np.asarray, dtype=np.float32)
# 1/2 of the support in units of 1/beta.
SUPPORT = {'rectangular': 0.5, 'triangular': 1.0, 'arctan': 1.0}


def theorem_2(spread, tau, steps):
    return np.array([2 * spread * (1 if t == 0 else np.sqrt(1 + tau**2)) for t in range(steps)])


def unrolled(currents, upstream, width, tau, v_th, shape, detach_reset, scale, beta):
    """Spikes, and gradients of sum(upstream * s) by currents and tau with a width of its own at each step."""
    u, s = eq_2(currents, tau, v_th)
    d_u, d_tau, later = np.zeros_like(u), 0.0, 0.0
    for t in reversed(range(len(u))):
        d_s = upstream[t] + (0 if detach_reset else -later * tau * u[t])
        # Non-zero within width / 2 of the threshold, for beta = 1.
        f = scale * eq_3_and_4(u[t] - v_th, beta * 2 * SUPPORT[shape] / width[t], shape)
        d_u[t] = d_s * f + later * tau * (1 - s[t])
        d_tau += (d_u[t] * u[t - 1] * (1 - s[t - 1])).sum() if t else 0
        later = d_u[t]
    return u, s, d_u, d_tau


def draw(seed, shape=(4, 3, 5)):
    return f32(np.random.default_rng(seed).normal(0.3, 1.2, shape))


@pytest.mark.parametrize('detach_reset', [False, True])
@pytest.mark.parametrize('shape', ['rectangular', 'triangular', 'arctan'])
def test_spikes_and_gradients_are_those_of_the_equations(shape, detach_reset):
    currents, upstream, tau, v_th, spread = draw(1), np.float64(draw(2)), 0.6, 0.5, 0.7
    for beta, scale in ((1.0, 1.0), (1.4, 0.8)):
        expected = unrolled(currents, upstream, theorem_2(spread, tau, 4), tau, v_th, shape, detach_reset, scale, beta)
        options = dict(v_th=v_th, surrogate=shape, detach_reset=detach_reset, scale=scale)

        def total(c, tau, spread, beta=beta, options=options):
            ran = deviation_lif(c, beta, spread, tau=tau, **options)
            return jnp.sum(ran.spikes * f32(upstream)), ran

        (d_currents, d_tau, d_spread), ran = jax.grad(total, (0, 1, 2), has_aux=True)(
            currents, jnp.float32(tau), jnp.float32(spread)
        )
        u, s, d_u, through_dynamics = expected
        np.testing.assert_array_equal(ran.spikes, s)
        np.testing.assert_allclose(d_currents, d_u, rtol=1e-4, atol=1e-5)
        # The decay gets what Eq. 2 hands it, and nothing by way of the width; the scale of the norm nothing at all.
        np.testing.assert_allclose(d_tau, through_dynamics, rtol=1e-4, atol=1e-5)
        assert d_spread == 0
        # Of `near`, the share within 1 / beta is that of the potentials within the width of their step.
        widening = theorem_2(spread, tau, 4) / (2 * SUPPORT[shape])
        np.testing.assert_allclose(ran.widening, widening, rtol=1e-6)
        np.testing.assert_allclose(ran.near, v_th + (u - v_th) / widening[:, None, None], rtol=1e-5, atol=1e-5)


def test_the_width_by_step():
    np.testing.assert_allclose(widths(0.5, 0.2, 4), theorem_2(0.5, 0.2, 4), rtol=1e-6)
    np.testing.assert_array_equal(widths(None, 0.2, 3), np.ones(3, np.float32))
    assert widths(0.0, 0.2, 1) > 0, 'beta stays a number'


class Branches(nn.Module):
    """Neurons behind one norm, or behind two that are summed, or none, with a term that has none."""

    norms: int
    alpha: float = 1.0

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(TdBN, v_th=0.5, alpha=self.alpha)
        terms = [norm(name=f'norm{index}').deferred(x[index], train=True) for index in range(self.norms)]
        return DeviationLIF(tau=0.2, v_th=0.5, surrogate='rectangular', learn_tau=True, name='lif')((*terms, x[2]))


@pytest.mark.parametrize('norms', [0, 1, 2])
def test_gamma_is_the_mean_scale_of_the_norms_and_branches_add_as_squares(norms):
    x, alpha = draw(3, (3, 4, 6, 5)), 0.5**0.5
    network = Branches(norms, alpha)
    variables = network.init(jax.random.key(0), x)
    gammas = f32(np.random.default_rng(4).uniform(0.5, 2, (norms, 5)))
    params = {**variables['params'], **{f'norm{i}': {'scale': g, 'bias': f32([0] * 5)} for i, g in enumerate(gammas)}}
    params['lif'] = {'decay': jnp.float32(-0.4)}
    tau = 1 / (1 + np.exp(0.4))
    spread = np.sqrt(sum((alpha * 0.5 * np.float64(gamma).mean()) ** 2 for gamma in gammas))
    width = theorem_2(spread, tau, 4) if norms else np.ones(4)
    others = {name: variables[name] for name in variables if name != 'params'}

    def spikes(params):
        return network.apply({**others, 'params': params}, x, mutable=['batch_stats', 'widening', 'membrane'])

    s, seen = spikes(params)
    np.testing.assert_allclose(seen['widening']['lif']['widening'], width, rtol=1e-5)
    # Gradients by the decay, and by the scale of a norm, are those through the potentials alone.
    total = np.float64(x[2])
    normalised = [(x[i] - x[i].mean((0, 1))) / np.sqrt(x[i].var((0, 1)) + 1e-5) for i in range(norms)]
    for gamma, values in zip(gammas, normalised, strict=True):
        total = total + alpha * 0.5 * gamma * values
    upstream = np.float64(draw(5, total.shape))
    _, expected, d_u, d_tau = unrolled(total, upstream, width, tau, 0.5, 'rectangular', False, 1.0, 1.0)
    np.testing.assert_array_equal(s, expected)
    gradient = jax.grad(lambda params: jnp.sum(f32(upstream) * spikes(params)[0]))(params)
    np.testing.assert_allclose(gradient['lif']['decay'], d_tau * tau * (1 - tau), rtol=1e-3, atol=1e-4)
    for index, values in enumerate(normalised):
        d_gamma = (alpha * 0.5 * values * d_u).sum((0, 1))
        np.testing.assert_allclose(gradient[f'norm{index}']['scale'], d_gamma, rtol=1e-3, atol=1e-4)


def test_a_norm_and_its_neurons_agree_on_the_deviation():
    """In training the currents have it, channel by channel."""
    norm, x = TdBN(v_th=0.7, alpha=0.6), draw(6, (4, 200, 3))
    variables = {**norm.init(jax.random.key(0), x, train=False)}
    variables['params'] = {'scale': f32([0.5, 1, 2]), 'bias': f32([1, 0, -1])}
    term, _ = norm.apply(variables, x, train=True, mutable=['batch_stats'], method='deferred')
    np.testing.assert_allclose(term.array().std((0, 1)), term.deviation, rtol=1e-4)
    assert float(deviation(term)) == pytest.approx(0.7 * 0.6 * 3.5 / 3)
    assert deviation([x, Normalised(jnp.asarray(x), Affine(*f32([[0], [1], [0]])))]) is None


def test_chi_is_that_of_the_width_of_the_step():
    currents = f32(np.random.default_rng(7).normal(0, 1.5, (3, 100, 400)))
    near = deviation_lif(currents, 1.2, 0.8, tau=0.5).near
    u, _ = eq_2(currents, 0.5, 1.0)
    share = np.mean(np.abs(u - 1) < theorem_2(0.8, 0.5, 3)[:, None, None] / 2 / 1.2)
    assert float(chi(membrane_stats(near), 1.2)) == pytest.approx(share, abs=0.02)


def test_the_layer_has_the_variables_of_lif_and_an_image_is_given_once():
    layer, currents = DeviationLIF(v_th=0.8), draw(8)
    shapes = lambda kind: jax.eval_shape(kind.init, jax.random.key(0), currents)
    assert shapes(layer) == shapes(LIF(v_th=0.8))
    variables = layer.init(jax.random.key(0), currents)
    np.testing.assert_array_equal(layer.apply(variables, currents), LIF(v_th=0.8).apply(variables, currents))
    image = draw(9, (1, 3, 5))
    once = layer.apply(variables, image, 4, mutable=['membrane', 'firing_rate', 'potentials'])
    often = layer.apply(variables, np.repeat(image, 4, 0), mutable=['membrane', 'firing_rate', 'potentials'])
    jax.tree.map(np.testing.assert_array_equal, once, often)
    np.testing.assert_allclose(membrane_stats(once[1]['potentials']['potentials']), once[1]['membrane']['membrane'])
    with pytest.raises(ValueError, match=r'no beta makes that another width'):
        deviation_lif(image, 1.0, surrogate='dspike')


@pytest.mark.trains
def test_a_run_with_a_width_for_each_step(tmp_path, tiny_config):
    tiny_config.update_from_flattened_dict(
        {'neuron.kind': 'mpd_agl', 'neuron.learn_tau': True, 'cpng.enabled': False, 'remat': 'block'}
    )
    result = loop.run(tiny_config, tmp_path)
    rows = epoch_rows(tmp_path)
    assert result['test_accuracy'] > 0.2
    assert set(rows[-1]['beta'].values()) == {1.0}
    assert all(0 < value < 1 for value in rows[-1]['chi'].values())
