"""The library inside `jax.shard_map` with its default checks, and on explicit axes of a mesh.

Types are the same whatever the size of an axis, so that one device shows whether they fit; that the numbers are right
is shown on four.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cpng_jax import LIF, VGG, Conv, MembraneDistances, MembraneStats, beta_for_chi, chi, cpng, lif, spike
from cpng_jax.nn.adaptive_neuron import adapted_lif
from cpng_jax.nn.deviation_neuron import deviation_lif
from cpng_jax.nn.neuron import lif_reference
from tests import forked

MEASURED = ('membrane', 'currents', 'distances', 'firing_rate', 'potentials')
CURRENTS = np.float32(np.random.default_rng(0).normal(0.5, 1, (3, 4, 6)))
UPSTREAM = np.float32(np.random.default_rng(1).normal(size=CURRENTS.shape))
IMAGES = np.float32(np.random.default_rng(2).normal(size=(4, 8, 8, 3)))
# Maps so large that the gradient of a kernel is summed in parts; of 0 and 1.
SPIKES = np.float32(np.random.default_rng(3).integers(0, 2, (1, 8, 48, 48, 3)))
NETWORK = VGG(10, stages=((4,), (8,)), head=(6,), pool_last=True)
VARIABLES = jax.jit(NETWORK.init)(jax.random.key(0), IMAGES)
PARAMS = VARIABLES['params']
REST = {name: value for name, value in VARIABLES.items() if name != 'params'}
CONV = Conv(4)
KERNEL = jax.jit(CONV.init)(jax.random.key(0), SPIKES)


def loss_of_neurons(currents, upstream, tau, v_th, beta, neurons=lif):
    return jnp.sum(upstream * neurons(currents, beta, tau=tau, v_th=v_th)[0])


def loss_of_network(params, images, remat='none'):
    outputs, seen = NETWORK.clone(remat=remat).apply(
        {'params': params, **REST}, images, train=True, mutable=['batch_stats', *MEASURED]
    )
    return jnp.sum(jnp.square(outputs)), seen


def loss_of_convolution(kernel, spikes):
    return jnp.sum(jnp.square(CONV.apply(kernel, spikes, unit=1.0, method=CONV.packed)))


# Each a function, the axis of each argument that the devices share, None where they do not, and the arguments.
NUMBERS = (np.float32(0.5), np.float32(1), np.float32(1))
LOSSES = {
    'lif': (loss_of_neurons, (1, 1, None, None, None), (CURRENTS, UPSTREAM, *NUMBERS)),
    'parameters of each neuron': (
        loss_of_neurons,
        (1, 1, None, 0, 0),
        (CURRENTS, UPSTREAM, np.full(6, 0.5, np.float32), *np.ones((2, 4, 6), np.float32)),
    ),
    'lif_reference': (
        lambda *given: loss_of_neurons(*given, neurons=lif_reference),
        (1, 1, None, None, None),
        (CURRENTS, UPSTREAM, *NUMBERS),
    ),
    'from a state': (
        lambda c, state, tau: jnp.sum(lif(c, 1.0, tau=tau, initial_state=state, return_state=True)[2]),
        (1, 0, None),
        (CURRENTS, CURRENTS[0], np.float32(0.5)),
    ),
    'spike': (
        lambda u, v_th, beta: jnp.sum(u * spike(u, beta, v_th)),
        (1, None, 1),
        (CURRENTS, NUMBERS[1], CURRENTS**2),
    ),
    'network': (lambda params, x: loss_of_network(params, x)[0], (None, 0), (PARAMS, IMAGES)),
    'blocks computed again': (lambda params, x: loss_of_network(params, x, 'block')[0], (None, 0), (PARAMS, IMAGES)),
    'convolution': (loss_of_convolution, (None, 1), (KERNEL, SPIKES)),
    'adaptive neurons': (lambda c: jnp.sum(c * adapted_lif(c, 1.0).spikes), (1,), (CURRENTS,)),
    'a width for each step': (lambda c: jnp.sum(c * deviation_lif(c, 1.0, 0.7).spikes), (1,), (CURRENTS,)),
    'beta_for_chi': (
        lambda mean, variance, target: jnp.sum(beta_for_chi(target, MembraneStats(mean, variance))),
        (0, 0, None),
        (CURRENTS[0, :, 0], CURRENTS[0, :, 1] ** 2, np.float32(0.4)),
    ),
    'chi': (
        lambda shares, beta: jnp.sum(chi(MembraneDistances(shares), beta)),
        (0, None),
        (np.float32(np.linspace(0, [[0.9], [0.8]], 41, axis=-1)).reshape(2, 41).repeat(2, 0), np.float32(1.2)),
    ),
}
# What holds of a loss that a device has computed of its own examples, normalised by themselves, is of these alone.
SUMS = [name for name in LOSSES if name not in ('network', 'blocks computed again', 'adaptive neurons')]


def spec(axis):
    return P() if axis is None else P(*[None] * axis, 'data')


def gradients_in_shard_map(name, mesh):
    """A function, and what to call it with."""
    function, axes, arguments = LOSSES[name]
    total = jax.shard_map(
        lambda *given: jax.lax.psum(function(*given), 'data'),
        mesh=mesh,
        in_specs=tuple(map(spec, axes)),
        out_specs=P(),
    )
    return jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(arguments))))), arguments


def gradients_inside(name, mesh):
    """Of what all devices have alike, differentiated by each device: JAX sums over them."""
    function, axes, arguments = LOSSES[name]
    alike = tuple(index for index, axis in enumerate(axes) if axis is None)
    inner = jax.grad(lambda *given: jax.lax.psum(function(*given), 'data'), argnums=alike)
    return jax.jit(jax.shard_map(inner, mesh=mesh, in_specs=tuple(map(spec, axes)), out_specs=P())), arguments


def gradients_on_explicit_axes(name):
    """To be called with a mesh set."""
    function, axes, arguments = LOSSES[name]
    placed = [jax.device_put(value, spec(axis)) for value, axis in zip(arguments, axes, strict=True)]
    return jax.jit(jax.value_and_grad(function, argnums=tuple(range(len(arguments))))), placed


def gradients(name):
    function, _, arguments = LOSSES[name]
    return jax.jit(jax.value_and_grad(function, argnums=tuple(range(len(arguments))))), arguments


def computed(made):
    function, arguments = made
    return function(*arguments)


def close(result, expected):
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope='module')
def manual():
    return jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,))


@pytest.fixture(scope='module')
def explicit():
    return jax.make_mesh((1,), ('data',))


@pytest.mark.parametrize('name', LOSSES)
def test_types_fit(name, manual, explicit):
    """Traced, not compiled: an axis of one device is of the same type as a longer one."""

    def shapes(made):
        function, arguments = made
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(function, *arguments))

    expected = shapes(gradients(name))
    assert shapes(gradients_in_shard_map(name, manual)) == expected
    with jax.set_mesh(explicit):
        assert shapes(gradients_on_explicit_axes(name)) == expected
    axes = LOSSES[name][1]
    if None in axes:
        alike = tuple(gradient for gradient, axis in zip(expected[1], axes, strict=True) if axis is None)
        assert shapes(gradients_inside(name, manual)) == alike


def test_every_measurement_and_an_update_of_beta(manual, explicit):
    layer, beta = LIF(), {'beta': jnp.float32(1)}

    def measure(currents):
        return layer.apply({'surrogate': beta}, currents, mutable=MEASURED)[1]

    def adapt(currents):
        updated, _, report = cpng.update(
            measure(currents)['membrane'], beta, cpng.CPNGState({'beta': jnp.float32(0.2)})
        )
        return updated['beta'][None], report.chi['beta'][None]

    shared = P(None, 'data')
    expected = measure(CURRENTS)
    with jax.set_mesh(explicit):
        close(jax.jit(measure)(jax.device_put(CURRENTS, shared)), expected)
    inside = jax.shard_map(
        lambda currents: jax.tree.map(lambda leaf: leaf[None], measure(currents)),
        mesh=manual,
        in_specs=shared,
        out_specs=P('data'),
    )
    close(jax.tree.map(lambda leaf: leaf[0], inside(CURRENTS)), expected)
    close(jax.shard_map(adapt, mesh=manual, in_specs=shared, out_specs=P('data'))(CURRENTS), adapt(CURRENTS))


@pytest.mark.processes
def test_four_devices_give_what_one_gives():
    program = """
        import warnings
        warnings.simplefilter('error')
        from tests.nn import test_meshes
        test_meshes.on_four_devices()
        print('the same')
    """
    result = forked.run(
        '-c',
        '\n'.join(map(str.strip, program.splitlines())),
        environment={'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'JAX_PLATFORMS': 'cpu'},
    )
    assert result.stdout == 'the same\n', result.stderr


def on_four_devices():
    """What the test above runs in a process that has four devices."""
    assert jax.device_count() == 4
    auto = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    explicit = jax.make_mesh((2,), ('data',), devices=jax.devices()[:2])
    for name in LOSSES:
        expected = computed(gradients(name))
        with jax.set_mesh(explicit):
            close(computed(gradients_on_explicit_axes(name)), expected)
        if name not in SUMS:
            continue
        close(computed(gradients_in_shard_map(name, auto)), expected)
        axes = LOSSES[name][1]
        if None in axes:
            alike = tuple(gradient for gradient, axis in zip(expected[1], axes, strict=True) if axis is None)
            close(computed(gradients_inside(name, auto)), alike)
    _statistics_are_global_under_jit()
    _statistics_of_shards_make_those_of_all(auto)


def _statistics_are_global_under_jit():
    """Each device sees other currents: the mean of their variances is far from the variance of all."""
    values = np.float32(np.random.default_rng(0).normal(size=(3, 8, 5)) + np.arange(8)[:, None])
    apply = jax.jit(lambda c: LIF().apply({'surrogate': {'beta': 1.0}}, c, mutable=list(MEASURED)))
    u, s, potentials = 0, 0, []
    for current in values.astype(np.float64):
        u = 0.5 * u * (1 - s) + current
        s = u >= 1
        potentials.append(u)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 2), ('data', 'neurons'), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            for axes in ((P(None, 'data')), P(None, ('data', 'neurons'))):
                spikes, seen = apply(jax.device_put(values, jax.NamedSharding(mesh, axes)))
                assert spikes.sharding.is_equivalent_to(jax.NamedSharding(mesh, axes), 3), spikes.sharding
                stats = seen['membrane']['membrane']
                np.testing.assert_allclose(stats.mean, np.mean(potentials), rtol=1e-6)
                np.testing.assert_allclose(stats.variance, np.var(potentials), rtol=1e-6)
                given = seen['currents']['currents']
                np.testing.assert_allclose(given, (np.mean(values), np.var(values)), rtol=1e-6)
                rate = np.mean(np.asarray(potentials) >= 1)
                np.testing.assert_allclose(seen['firing_rate']['firing_rate'], rate, rtol=1e-6)


def _statistics_of_shards_make_those_of_all(mesh):
    """As the docstring of `lif` says."""

    def pooled(currents):
        m, v = lif(currents, 1.0)[1]
        mean = jax.lax.pmean(m, 'data')
        return mean, jax.lax.pmean(v + (m - mean) ** 2, 'data')

    both = jax.shard_map(pooled, mesh=mesh, in_specs=P(None, 'data'), out_specs=P())
    np.testing.assert_allclose(both(CURRENTS), lif(CURRENTS, 1.0)[1], rtol=1e-5)
