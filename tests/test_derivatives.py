"""Every public function against finite differences, by each of its floating arguments; or it stops the gradient."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax.test_util import check_grads

import cpng_jax
from cpng_jax import (
    MembraneDistances,
    MembraneStats,
    avg_pool,
    beta_for_chi,
    beta_for_coherence,
    beta_for_gain,
    chi,
    coherence,
    cpng,
    gain,
    like_beta,
    scale_for_gain,
)
from cpng_jax.control.effective_domain import chi_by_layer
from cpng_jax.nn.losses import mean_output_cross_entropy, temporal_efficient_training
from cpng_jax.nn.neuron import lif, potentials
from cpng_jax.nn.statistics import DISTANCES, join_layers, membrane_stats
from cpng_jax.nn.surrogate import beta_of_width

rng = np.random.default_rng(0)
MEAN, VARIANCE, BETA, V_TH = (
    rng.normal(size=4),
    rng.uniform(0.5, 2, 4),
    rng.uniform(0.5, 2, 4),
    rng.uniform(0.8, 1.2, 4),
)
TARGET, OTHER = rng.uniform(0.2, 0.6, 4), rng.normal(size=4)
# As many shares within each distance as a Gaussian about the threshold has; no two equal.
SHARES = 1 - np.exp(-DISTANCES) * rng.uniform(0.9, 1, (4, 1))
CURRENT, RATE, DECAY, RHO = rng.uniform(0.5, 2, 4), rng.uniform(0.1, 0.4, 4), rng.uniform(0.3, 0.9, 4), TARGET / 2
LOGITS, WIDE = rng.normal(size=(3, 4, 5)), rng.normal(size=(2, 3, 4, 4, 2))
MIXED = rng.dirichlet(np.ones(5), 4)
CURRENTS = rng.normal(0.5, 1, (3, 2, 4))


def of_update(mean, variance, beta):
    """A layer whose chi rose above the smallest so far, and gets the beta that brings it back."""
    new, state, report = cpng.update(MembraneStats(mean, variance), beta, cpng.CPNGState(jnp.full(4, 0.21)))
    return new, state.chi_recorder, report.chi


def of_gain(function, shape, kind=MembraneStats):
    """A gain or an inverse of it, over three steps, by its statistics and all other numbers."""

    def by_all(first, stats, other, currents, rate, v_th, tau, correlation):
        measured = kind(*stats) if kind is MembraneStats else kind(stats)
        leading = (measured, first) if function is gain else (first, measured)
        rest = dict(currents=currents, firing_rate=rate, v_th=v_th, tau=tau, correlation=correlation)
        return function(*leading, other, surrogate=shape, time_steps=3, **rest)

    return jax.jit(by_all)


OF_LAYERS = (BETA, CURRENT, RATE, V_TH, DECAY, RHO)


# What is differentiable: the function, and all of its floating arguments.
DIFFERENTIABLE = {
    'chi': (
        lambda mean, variance, beta, v_th: chi(MembraneStats(mean, variance), beta, v_th=v_th),
        (MEAN, VARIANCE, BETA, V_TH),
    ),
    'chi of counts': (lambda shares, beta: chi(MembraneDistances(shares), beta), (SHARES, BETA)),
    'beta_for_chi': (
        lambda target, mean, variance, v_th: beta_for_chi(target, MembraneStats(mean, variance), v_th=v_th),
        (TARGET, MEAN, VARIANCE, V_TH),
    ),
    'beta_for_chi of counts': (
        lambda target, shares: beta_for_chi(target, MembraneDistances(shares)),
        (TARGET, SHARES),
    ),
    'coherence of counts': (
        jax.jit(lambda shares, beta: coherence(MembraneDistances(shares), beta, surrogate='arctan')),
        (SHARES, BETA),
    ),
    'beta_for_coherence': (
        jax.jit(
            lambda target, mean, variance, v_th: beta_for_coherence(target, MembraneStats(mean, variance), v_th=v_th)
        ),
        (TARGET, MEAN, VARIANCE, V_TH),
    ),
    'gain': (of_gain(gain, 'triangular'), (TARGET, (MEAN, VARIANCE), *OF_LAYERS)),
    'scale_for_gain of counts': (
        of_gain(scale_for_gain, 'triangular', MembraneDistances),
        (TARGET, SHARES, *OF_LAYERS),
    ),
    'beta_for_gain': (of_gain(beta_for_gain, 'arctan'), (TARGET, (MEAN, VARIANCE), *OF_LAYERS)),
    'beta_of_width': (lambda width: beta_of_width(width, 'rectangular'), (BETA,)),
    'chi_by_layer': (
        lambda mean, variance, beta: chi_by_layer({'a': MembraneStats(mean, variance)}, {'a': beta}),
        (MEAN, VARIANCE, BETA),
    ),
    'cpng.update': (of_update, (MEAN, VARIANCE, BETA)),
    'like_beta': (lambda mean, beta: like_beta({'a': {'rate': mean}}, {'a': {'beta': beta}}), (MEAN, BETA)),
    'join_layers': (
        lambda *given: join_layers(MembraneStats(*given[:2]), MembraneStats(*given[2:4]), given[4]),
        (MEAN, VARIANCE, OTHER, BETA, TARGET[0]),
    ),
    'mean_output_cross_entropy': (mean_output_cross_entropy, (LOGITS, MIXED)),
    'temporal_efficient_training': (
        lambda logits, labels, weight, target: temporal_efficient_training(
            logits, labels, weight=weight, target=target
        ),
        (LOGITS, MIXED, np.float64(0.3), np.float64(1.2)),
    ),
    'avg_pool': (lambda x: avg_pool(x, 2), (WIDE,)),
    'potentials': (lambda c, tau, state: potentials(c, tau=tau, initial_state=state), (CURRENTS, 0.6, CURRENTS[0])),
}
# What is not, and says so; or gets a surrogate in the place of its derivative, which tests of its own are about.
STOPPED = {'membrane_stats': membrane_stats, 'lif, its statistics': lambda currents: lif(currents, 1.0)[1]}
SURROGATES = {'lif', 'spike', 'LIF', 'VGG', 'Conv', 'Dense', 'TdBN'}
DATA = {'CPNGConfig', 'CPNGReport', 'CPNGState', 'MembraneDistances', 'MembraneStats', 'Surrogate', 'cpng'}
ON_THE_HOST = {'card', 'load', 'network_input'}  # which read files and bytes


@pytest.fixture
def in_64_bits():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize('name', DIFFERENTIABLE)
def test_derivatives_are_those_of_finite_differences(name, in_64_bits):
    function, arguments = DIFFERENTIABLE[name]
    arguments = jax.tree.map(lambda value: jnp.asarray(value, jnp.float64), arguments)
    check_grads(function, arguments, order=1, modes=['fwd', 'rev'], eps=1e-6, atol=1e-6, rtol=1e-6)


def test_the_inverse_has_second_derivatives_too(in_64_bits):
    function, arguments = DIFFERENTIABLE['beta_for_chi']
    check_grads(function, tuple(map(jnp.asarray, arguments)), order=2, modes=['rev'], eps=1e-4, atol=1e-4, rtol=1e-4)


ALL = (0, 1, 2, 3)
FORWARD = jax.jit(jax.value_and_grad(lambda b, mean, var, v_th: chi(MembraneStats(mean, var), b, v_th=v_th), ALL))
INVERSE = jax.jit(
    jax.value_and_grad(lambda t, mean, var, v_th: beta_for_chi(t, MembraneStats(mean, var), v_th=v_th), ALL)
)


@given(st.floats(0.02, 0.98), st.floats(-3, 5), st.floats(0.01, 10), st.floats(0.1, 3))
def test_the_inverse_has_the_inverse_derivative(target, mean, variance, v_th):
    """d beta / d chi = 1 / (d chi / d beta); by the others as the implicit function theorem has it."""
    with jax.enable_x64(True):
        given = tuple(map(jnp.float64, (mean, variance, v_th)))
        beta, gradients = INVERSE(jnp.float64(target), *given)
        by_target, *others = map(float, gradients)
        slope, *rest = map(float, FORWARD(beta, *given)[1])
    assume(abs(slope) > 1e-12)
    np.testing.assert_allclose(by_target, 1 / slope, rtol=1e-6)
    np.testing.assert_allclose(others, -np.array(rest) / slope, rtol=1e-5, atol=1e-9)


def test_the_example_of_a_user():
    stats = MembraneStats(jnp.float32(0.2), jnp.float32(1))
    step = (beta_for_chi(0.401, stats) - beta_for_chi(0.399, stats)) / 0.002
    assert step < -2
    np.testing.assert_allclose(jax.grad(lambda target: beta_for_chi(target, stats))(0.4), step, rtol=1e-3)


@pytest.mark.parametrize('target', [0.0, 1.0, 1.5])
@pytest.mark.parametrize('stats', [MembraneStats(0.2, 1.0), MembraneStats(0.2, 0.0), MembraneDistances(SHARES[0] / 2)])
def test_where_there_is_no_solution_derivatives_are_0(stats, target):
    stats = jax.tree.map(jnp.float32, stats)
    gradients = jax.grad(beta_for_chi, argnums=(0, 1))(jnp.float32(target), stats)
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize('name', STOPPED)
def test_measurements_stop_the_gradient(name):
    total = lambda currents: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(STOPPED[name](currents)))
    assert total(jnp.float32(CURRENTS)) != 0
    np.testing.assert_array_equal(jax.grad(total)(jnp.float32(CURRENTS)), 0)


def test_forward_mode_is_refused_as_the_docstrings_say():
    for function in (lif, cpng_jax.spike):
        assert 'TypeError' in (inspect.getdoc(function) or '')
        with pytest.raises(TypeError, match='forward-mode'):
            jax.jvp(lambda u, function=function: function(u, 1.0), (jnp.ones((2, 3)),), (jnp.ones((2, 3)),))


def test_no_public_name_is_left_out():
    checked = {name.split()[0].rstrip(',') for name in (*DIFFERENTIABLE, *STOPPED)}
    assert set(cpng_jax.__all__) <= checked | SURROGATES | DATA | ON_THE_HOST
