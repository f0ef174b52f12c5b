"""The gain of layers: the prediction against probes, and the probes against gradients by arrays written out."""

import csv
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.image import imread

from cpng_jax.analysis import gain, probes
from cpng_jax.analysis.compared import Compared, spread_examples
from cpng_jax.control import gradient_gain
from cpng_jax.nn.neuron import lif_reference
from cpng_jax.nn.statistics import MembraneStats
from cpng_jax.runtime.errors import UserError
from cpng_jax.training.setup import build


@pytest.fixture
def config(tiny_config):
    """A tiny network of fully connected layers without norms."""
    tiny_config.batch_size, tiny_config.data.per_class = 128, 0
    tiny_config.model.time_steps = 3
    tiny_config.model.stages = ()
    tiny_config.model.head = (16, 12)
    return tiny_config


def compared(config, label='fixed'):
    setup = build(config)
    return Compared(label, setup, setup.initial_state())


def everywhere(state, beta, scale=1.0):
    filled = lambda value: jax.tree.map(lambda leaf: jnp.full_like(leaf, value), state.surrogate)
    return filled(beta), filled(scale)


@pytest.mark.trains
def test_wide_random_layers_have_the_gain_that_is_predicted(config):
    config.model.time_steps = 2
    config.model.head, config.model.head_norm = (96,) * 6, True
    run = compared(config)
    for layers in probes.gains(run, run.state, [everywhere(run.state, beta) for beta in (0.25, 1.0, 3.0)], 64):
        error = np.sqrt(layers.predicted / layers.measured) - 1
        assert abs(np.median(error)) < 0.1, layers
        # What a norm and random weights lie between conserves the gradient.
        np.testing.assert_allclose(np.sqrt(layers.between[:-1]), 1, atol=0.1)


@pytest.mark.trains
def test_what_is_measured_is_what_gradients_by_arrays_give(config):
    run, beta, scale = compared(config), 0.7, 1.3
    (layers,) = probes.gains(run, run.state, [everywhere(run.state, beta, scale)], images=20)
    dataset, params = run.setup.dataset, run.state.params
    examples = spread_examples(dataset, 'train', 20)
    images = np.float32((examples.images / 255 - dataset.mean) / dataset.std)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def network(added):
        x, kept = jnp.broadcast_to(images.reshape(20, 64), (3, 20, 64)), []
        for layer, (to_currents, to_spikes) in zip(('fc01', 'fc02'), added, strict=True):
            dense = params[layer]['dense']
            currents = x @ dense['kernel'] + dense['bias'] + to_currents
            spikes, stats = lif_reference(currents, beta, scale=scale)
            kept.append((currents, spikes, stats))
            x = spikes + to_spikes
        dense = params['output']['dense']
        logits = (x @ dense['kernel'] + dense['bias']).mean(0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels).sum(), (logits, kept)

    shapes = [(3, 20, width) for width in (16, 12)]
    gradients, (logits, kept) = network([(jnp.zeros(shape),) * 2 for shape in shapes])
    # An image at each of three steps is what the network itself makes of an image.
    np.testing.assert_allclose(run.setup.model.apply(run.state.variables, images).mean(0), logits, atol=1e-5)
    expected = []
    for (currents, spikes, stats), (by_currents, by_spikes) in zip(kept, gradients, strict=True):
        d_currents, d_spikes = np.float64(by_currents), np.float64(by_spikes)
        rate, pairs = np.float64(spikes).mean(), itertools.permutations(range(3), 2)
        backward = (d_currents**2).sum() * np.float64(currents).var()
        forward = (d_spikes**2).sum() * rate * (1 - rate)
        correlation = np.mean([(d_spikes[a] * d_spikes[b]).mean() for a, b in pairs]) / (d_spikes**2).mean()
        expected.append((np.float64(currents).var(), rate, *stats, correlation, backward, forward))
    currents, rate, mean, variance, correlation, backward, forward = np.transpose(expected)
    close = lambda value, right: np.testing.assert_allclose(value, right, rtol=2e-3)
    close([layers.currents, layers.firing_rate], [currents, rate])
    close([layers.u_mean, layers.u_variance], [mean, variance])
    close(layers.correlation, correlation)
    close(layers.measured, backward / forward)
    close(layers.between[0], forward[0] / backward[1])
    assert np.isnan(layers.between[1])
    of_layers = {'currents': currents, 'firing_rate': rate, 'tau': 0.5, 'time_steps': 3}
    stats = MembraneStats(jnp.float32(mean), jnp.float32(variance))
    close(layers.predicted, gradient_gain.gain(stats, beta, scale, **of_layers))
    close(layers.informed, gradient_gain.gain(stats, beta, scale, **of_layers, correlation=correlation))


@pytest.mark.trains
def test_a_width_for_each_channel_and_a_decay_of_each_layer(config):
    config.model.head_norm = True
    shared = compared(config)
    (of_layers,) = probes.gains(shared, shared.state, [everywhere(shared.state, 1.0)], 40)
    config.cpng.per = 'channel'
    config.neuron.learn_tau = True
    run = compared(config)
    # What has been learnt counts: with nothing kept from step to step there is no path from step to step.
    decays = {layer: {'decay': jnp.float32(-30)} for layer in ('fc01_lif', 'fc02_lif')}
    forgetful = run.state.replace(params={**run.state.params, **decays})
    settings = [everywhere(run.state, 1.0)]
    (of_channels,), (layers,) = (probes.gains(run, state, settings, 40) for state in (run.state, forgetful))
    np.testing.assert_allclose(layers.informed, layers.predicted, rtol=1e-5)
    assert not np.allclose(of_channels.informed, of_channels.predicted, rtol=1e-3)
    assert of_channels.beta.shape == (2,)
    for name in ('u_mean', 'currents', 'firing_rate', 'correlation'):
        np.testing.assert_allclose(getattr(of_channels, name), getattr(of_layers, name), rtol=0.02, err_msg=name)
    # Rates differ from channel to channel, so that spikes vary less within one.
    assert (of_channels.measured > of_layers.measured).all()
    np.testing.assert_allclose(np.sqrt(of_channels.measured), np.sqrt(of_layers.measured), rtol=0.1)


@pytest.mark.trains
def test_counted_potentials_of_events_in_half_precision(config):
    config.model.head_norm, config.dtype, config.cpng.chi = True, 'bfloat16', 'counted'
    config.data.name, config.data.event_size, config.model.time_steps = 'digits_events', 8, 2
    run = compared(config)
    (layers,) = probes.gains(run, run.state, [everywhere(run.state, 1.0)], 40)
    np.testing.assert_allclose(np.sqrt(layers.predicted), np.sqrt(layers.measured), rtol=0.3)


@pytest.mark.trains
def test_a_picture_and_tables(config, tmp_path):
    run = compared(config)
    other = run.state.replace(surrogate=jax.tree.map(lambda leaf: leaf * 1.7, run.state.surrogate))
    runs = [run, run._replace(label='CPNG', state=other)]
    paths = gain.draw(runs, tmp_path / 'new', betas=(0.5, 1), weights='trained', images=30)
    assert [path.name for path in paths] == ['gain.png', 'gain.csv', 'gain.md']
    assert np.std(imread(paths[0])) > 0.02, 'an empty picture'
    rows = list(csv.DictReader(paths[1].read_text().splitlines()))
    settings = [('fixed', 'beta 0.5'), ('fixed', 'beta 1'), ('CPNG', 'beta 0.5'), ('CPNG', 'beta 1')]
    settings.append(('CPNG', 'as the run has it'))
    assert [(row['run'], row['setting']) for row in rows[::2]] == settings
    assert [row['layer'] for row in rows[:2]] == ['fc01_lif', 'fc02_lif']
    assert float(rows[-1]['beta']) == pytest.approx(1.7)
    (layers,) = probes.gains(run, run.state, [everywhere(run.state, 0.5)], 30)
    assert float(rows[0]['measured']) == pytest.approx(layers.measured[0] ** 0.5, rel=1e-5)
    assert (rows[0]['between'], rows[1]['between']) == (f'{layers.between[0] ** 0.5}', '')
    text = paths[2].read_text()
    assert text.startswith('# Growth of gradients through neurons, trained weights\n')
    errors = [abs(float(row['predicted']) / float(row['measured']) - 1) for row in rows]
    assert f'is off by {np.median(errors):.1%} of `measured` in the median, by {np.percentile(errors, 90):.1%}' in text


@pytest.mark.trains
def test_a_network_without_spikes_is_no_error(config, tmp_path):
    config.model.head = (4,)
    run = compared(config)
    silent = run.state.replace(params=jax.tree.map(jnp.zeros_like, run.state.params))
    paths = gain.draw([run._replace(state=silent)], tmp_path, betas=(1.0,), weights='trained', images=10)
    (row,) = csv.DictReader(paths[1].read_text().splitlines())
    assert (row['firing_rate'], row['predicted'], row['measured']) == ('0.0', '', '')
    assert 'No layer passes a gradient.' in paths[2].read_text()


@pytest.mark.trains
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'weights': 'best'}, "weights is 'best', expected start or trained"),
        ({'betas': (1, 'two')}, r"betas is \(1, 'two'\), expected numbers above 0"),
        ({'images': 0}, 'images is 0, expected at least 1'),
    ],
)
def test_options_out_of_range_are_named(options, message, config, tmp_path):
    with pytest.raises(UserError, match=message):
        gain.draw([compared(config)], tmp_path / 'no', **options)
    assert not (tmp_path / 'no').exists()


@pytest.mark.trains
def test_a_threshold_that_moves_is_refused(config, tmp_path):
    config.neuron.kind = 'ds_atgo'
    with pytest.raises(UserError, match=r'neuron\.kind is ds_atgo, expected lif'):
        gain.draw([compared(config)], tmp_path / 'no')
    assert not (tmp_path / 'no').exists()
