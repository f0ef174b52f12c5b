"""The fall of the loss along surrogate gradients: against differences written out, and what a drawing refuses."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from cpng_jax.analysis import direction
from cpng_jax.analysis.compared import Compared, spread_examples
from cpng_jax.control.gradient_gain import scale_for_gain
from cpng_jax.nn.losses import mean_output_cross_entropy
from cpng_jax.nn.neuron import lif
from cpng_jax.runtime.errors import UserError
from cpng_jax.training.setup import build

STEPS = 3


@pytest.fixture
def config(tiny_config):
    """One layer of neurons without a norm, between two kernels."""
    tiny_config.model.time_steps = STEPS
    tiny_config.model.stages = ()
    tiny_config.model.head = (12,)
    return tiny_config


def compared(config, label='fixed'):
    setup = build(config)
    return Compared(label, setup, setup.initial_state())


@pytest.mark.trains
def test_the_fall_is_that_of_differences_written_out(config):
    run, beta, step = compared(config), 0.7, 0.05
    (row,) = direction.falls(run, run.state, [beta], images=20, step=step)
    examples, dataset = spread_examples(run.setup.dataset, 'train', 20), run.setup.dataset
    images = np.float32((examples.images / 255 - dataset.mean) / dataset.std).reshape(20, -1)
    layers = run.state.params['fc01']['dense'], run.state.params['output']['dense']

    def loss(kernels, scale=1.0):
        currents = (images @ kernels[0] + layers[0]['bias'])[None]
        spikes, _ = lif(currents, beta, scale=scale, time_steps=STEPS)
        return jnp.mean(mean_output_cross_entropy(spikes @ kernels[1] + layers[1]['bias'], examples.labels))

    kernels = tuple(layer['kernel'] for layer in layers)
    currents = images @ kernels[0] + layers[0]['bias']
    spikes, stats = lif(currents[None], beta, time_steps=STEPS)
    rate = jnp.mean(spikes)
    scale = scale_for_gain(1.0, stats, beta, currents=jnp.var(currents), firing_rate=rate, tau=0.5, time_steps=STEPS)
    gradients = jax.grad(loss)(kernels, scale)
    along = [g / np.linalg.norm(g) * np.linalg.norm(k) for g, k in zip(gradients, kernels, strict=True)]
    moved = lambda by: float(loss([k + by * to for k, to in zip(kernels, along, strict=True)]))
    assert row['fall'] == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=1e-3)
    assert row['scale'] == pytest.approx(float(scale), rel=1e-4)
    assert row['beta'] == pytest.approx(beta) and 0 < row['chi'] < 1


@pytest.mark.trains
def test_a_drawing_compares_the_widths_of_two_runs(config, tmp_path):
    runs = [compared(config, 'fixed'), compared(config, 'other')]
    files = direction.draw(runs, tmp_path / 'new', betas=(0.5, 1, 2), images=16)
    assert [path.name for path in files] == ['direction.png', 'direction.csv', 'direction.md']
    assert imread(files[0]).std() > 0.05
    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    assert [(row['run'], float(row['beta'])) for row in rows] == [
        (name, beta) for name in ('fixed', 'other') for beta in (0.5, 1, 2)
    ]
    assert max(float(row['relative']) for row in rows) == 1
    chi = [float(row['chi']) for row in rows[:3]]
    assert chi == sorted(chi, reverse=True)  # the narrower, the fewer
    assert '16 training images' in files[2].read_text() and '0.03' in files[2].read_text()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'step': 0.0}, 'step is 0, expected a number between 0 and 1'),
        ({'betas': (0.0,)}, 'expected numbers above 0'),
        ({'images': 0}, 'images is 0, expected at least 1'),
        ({'weights': 'best'}, 'weights is .best., expected start or trained'),
    ],
)
def test_options_outside_their_range_are_refused(config, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        direction.draw([compared(config)], tmp_path, **options)


def test_a_moving_threshold_has_no_gain(config, tmp_path):
    config.neuron.kind = 'ds_atgo'
    with pytest.raises(UserError, match='kind is ds_atgo, expected lif'):
        direction.draw([compared(config)], tmp_path, images=8)
