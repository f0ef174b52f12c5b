"""The loop over time in segments: what `jax.lax.scan` gives, and neurons over many time steps as over few."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cpng_jax.nn import segments, time_loop
from cpng_jax.nn.surrogate import get_surrogate
from cpng_jax.nn.terms import Affine, Normalised
from cpng_jax.nn.time_loop import Neurons, Parameters

SURROGATE = get_surrogate('arctan')


def array(*shape, seed=0, mean=0.4):
    return jnp.asarray(np.random.default_rng(seed).normal(mean, 0.6, shape), jnp.float32)


@pytest.mark.parametrize(('time_steps', 'length'), [(9, 3), (10, 2), (11, 1), (25, 5), (12, 2), (1, 1)])
def test_the_length_divides_the_time_steps(time_steps, length):
    assert segments.length(time_steps) == length


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('time_steps', [9, 10, 11, 25])
def test_a_scan_of_the_same_function(time_steps, reverse):
    x, start = array(time_steps, 3, 2), array(3, 2, seed=1)
    of_segments = array(time_steps // segments.length(time_steps), 3, 2, seed=2)

    def step(carry, now):
        return 0.9 * carry + now, (carry * now, jnp.sum(now))

    def segment(carry, steps, of_segment):
        assert len(steps) == segments.length(time_steps)
        before, outputs = carry, []
        for now in reversed(steps) if reverse else steps:
            carry, output = step(carry, now)
            outputs.append(output)
        return carry, outputs[::-1] if reverse else outputs, before + of_segment

    expected, outputs = lax.scan(step, start, x, reverse=reverse)
    carry, mine, kept = segments.scan(segment, start, x, of_segments, time_steps=time_steps, reverse=reverse)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), (carry, mine), (expected, outputs))
    # What is kept of a segment is what the carry was before it.
    first = -1 if reverse else 0
    np.testing.assert_allclose(kept[first], start + of_segments[first], rtol=1e-6)
    assert kept.shape == of_segments.shape


def neurons_over(time_steps, given, **options):
    """Neurons, and gradients by all that they are given, of a sum of what they put out."""
    neurons = Neurons(SURROGATE, time_steps=time_steps, **{'detach_reset': False, **options})
    weights = array(time_steps, 4, 6, seed=7)

    def total(terms, tau, v_th, state):
        parameters = Parameters(jnp.float32(1.5), tau, v_th, jnp.float32(0.7))
        spikes, measured, left = time_loop.integrate(terms, parameters, neurons, state)
        return jnp.sum(spikes * weights) + jnp.sum(jnp.sin(left)), (spikes, measured, left)

    numbers = range(4) if given[3] is not None else range(3)
    return jax.jit(jax.value_and_grad(total, tuple(numbers), has_aux=True))(*given)


def plain(steps):
    return (Normalised(array(steps, 4, 6), None),)


def normalised(steps):
    affine = Affine(array(6, seed=3), 1 + array(6, seed=4), array(6, seed=5))
    return Normalised(array(steps, 4, 6), affine), Normalised(array(steps, 4, 6, seed=6), None)


TAU, V_TH, STATE = jnp.float32(0.6), jnp.float32(0.8), array(4, 6, seed=8, mean=0)
CASES = {
    'plain': (plain, TAU, V_TH, None, {}),
    'from a state': (plain, TAU, V_TH, STATE, {'detach_reset': True}),
    'normalised': (normalised, TAU, V_TH, None, {'count': True, 'currents': True}),
    'each channel': (normalised, 0.5 + 0.1 * array(6, seed=9), V_TH + jnp.zeros(6), STATE, {'per_channel': True}),
}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('same', [False, True], ids=['currents of each step', 'the same at each'])
@pytest.mark.parametrize('time_steps', [9, 10, 11])
def test_segments_change_nothing(case, same, time_steps, monkeypatch):
    terms, tau, v_th, state, options = CASES[case]
    given = terms(1 if same else time_steps), tau, v_th, state
    mine = neurons_over(time_steps, given, **options)
    monkeypatch.setattr(time_loop, '_UNROLL_CPU', time_steps)
    # `_run` and `_backward` are traced once for all layers that are alike.
    jax.clear_caches()
    expected = neurons_over(time_steps, given, **options)
    jax.clear_caches()
    assert jax.tree.structure(mine) == jax.tree.structure(expected)
    np.testing.assert_array_equal(mine[0][1][0], expected[0][1][0])  # spikes
    assert 0.1 < np.mean(mine[0][1][0]) < 0.9
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), mine, expected)


def test_a_segment_keeps_one_state():
    """Of T = 10, the backward pass gets the currents and five states, not ten potentials."""
    neurons = Neurons(SURROGATE, detach_reset=False, time_steps=10)
    parameters = Parameters(*map(jnp.float32, (1, 0.5, 1, 1)))
    run = lambda x: time_loop.integrate((Normalised(x, None),), parameters, neurons)[0]
    _, pull = jax.vjp(run, array(10, 4, 6))
    shapes = [leaf.shape for leaf in jax.tree.leaves(pull) if getattr(leaf, 'ndim', 0) == 3]
    assert sorted(shapes) == [(5, 4, 6), (10, 4, 6)]


def test_inside_shard_map():
    """What varies over devices keeps its type in the loop: tau is the same on all of them, currents are not."""
    mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    spread, same = jax.sharding.PartitionSpec(None, 'data'), jax.sharding.PartitionSpec()
    neurons = Neurons(SURROGATE, detach_reset=False, time_steps=10)

    def total(x, tau):
        parameters = Parameters(jnp.float32(1), tau, V_TH, jnp.float32(1))
        return jnp.sum(time_loop.integrate((Normalised(x, None),), parameters, neurons)[0] * jnp.arange(6.0))

    gradients = jax.grad(lambda *given: lax.psum(total(*given), 'data'), (0, 1))
    mapped = jax.shard_map(gradients, mesh=mesh, in_specs=(spread, same), out_specs=(spread, same))
    x = array(10, 4, 6)
    for mine, expected in zip(jax.jit(mapped)(x, TAU), jax.grad(total, (0, 1))(x, TAU), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)
