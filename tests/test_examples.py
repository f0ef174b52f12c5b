"""The examples train, and set beta on the way."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import digits
from cpng_jax import LIF, VGG, cpng, lif
from cpng_jax.training import loop


@pytest.mark.trains
@pytest.mark.parametrize('name', ['plain_jax', 'nnx_training', 'equinox_training'])
def test_an_example_trains(name, capsys):
    accuracy, beta = importlib.import_module(f'examples.{name}').train(epochs=4)
    assert accuracy > 0.85
    (width,) = jax.tree.leaves(beta)
    assert width > 1  # chi rises while it learns, and CPNG narrows the domain
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith('epoch 4: accuracy ')


MEASURED = ['membrane', 'currents', 'distances', 'firing_rate', 'potentials']


def test_nnx_tells_measurements_from_beta():
    currents = jnp.asarray(np.random.default_rng(0).normal(0.5, 1, (4, 2, 6)), jnp.float32)
    layer = nnx.bridge.ToNNX(LIF(beta_init=2.0), rngs=nnx.Rngs(0)).lazy_init(currents)
    for _ in range(2):  # also where they are there already
        spikes = layer(currents, mutable=MEASURED)
    expected, stats = lif(currents, 2.0)
    np.testing.assert_array_equal(spikes, expected)
    assert layer.beta.get_value() == 2
    np.testing.assert_allclose(layer.membrane.get_value(), stats)
    np.testing.assert_allclose(layer.firing_rate.get_value(), expected.mean())
    np.testing.assert_allclose(layer.currents.get_value(), (currents.mean(), currents.var()), rtol=1e-5)


def test_nnx_has_the_height_as_a_variable_and_probes_for_gradients():
    currents = jnp.asarray(np.random.default_rng(0).normal(0.5, 1, (4, 2, 6)), jnp.float32)
    layer = nnx.bridge.ToNNX(LIF(), rngs=nnx.Rngs(0)).lazy_init(currents)
    assert layer.scale.get_value() == 1
    layer.scale.set_value(jnp.float32(0.5))
    layer(currents, mutable=['probes'])
    for probe in (layer.probe_currents, layer.probe_spikes):
        np.testing.assert_array_equal(probe.get_value(), np.zeros_like(currents))
    expected = jax.grad(lambda c: jnp.sum(jnp.square(lif(c, 1.0, scale=0.5)[0]) * currents))(currents)
    kind = nnx.variable_type_from_name('probes')
    gradients = nnx.grad(lambda n: jnp.sum(jnp.square(n(currents)) * currents), argnums=nnx.DiffState(0, kind))(layer)
    np.testing.assert_allclose(gradients['probe_currents'].get_value(), expected, rtol=1e-5, atol=1e-6)


def test_nnx_takes_a_whole_network_through_an_update():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    network = nnx.bridge.ToNNX(VGG(3, stages=((4,), (4,)), time_steps=2), rngs=nnx.Rngs(0)).lazy_init(images)
    network(images, train=True, mutable=['batch_stats', *MEASURED])
    of = lambda name: nnx.to_pure_dict(nnx.state(network, nnx.variable_type_from_name(name)))
    beta = of('surrogate')
    for statistics in ('membrane', 'distances'):
        _, _, report = cpng.update(of(statistics), beta, cpng.init(beta))
        assert not report.skipped_layers()
        assert all(0 < chi < 1 for chi in jax.tree.leaves(report.chi))


ROOT = pathlib.Path(__file__).parents[1]


def test_the_page_shows_the_example_of_ones_own_data():
    code = (ROOT / 'examples' / 'own_data.py').read_text()
    assert f'<!-- example: own data -->\n```python\n{code}```\n' in (ROOT / 'docs' / 'data.md').read_text()


@pytest.mark.trains
@pytest.mark.parametrize(('name', 'size'), [('images', 8), ('recordings', 16)])
def test_ones_own_data_trains(tmp_path, shrink, name, size):
    config = shrink(digits.get_config())
    config.data.update(name=f'examples.own_data:{name}', dir=str(tmp_path), validation=0.2, roll=0, crop_padding=0)
    config.data.event_size, config.batch_size, config.epochs = size, 16, 6
    assert loop.run(config, tmp_path / 'run')['test_accuracy'] > 0.6
