"""Gradients by layer against those that JAX gives for one kernel after the other."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.image import imread

from cpng_jax.analysis import gradients
from cpng_jax.analysis.compared import Compared, spread_examples
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import weights
from cpng_jax.training.setup import build


@pytest.fixture
def run(tiny_config):
    setup = build(tiny_config)
    return Compared('fixed', setup, setup.initial_state())


@pytest.mark.trains
def test_a_norm_is_that_of_the_gradient_of_one_kernel(run):
    relative = gradients.relative_gradients(run, run.state, [0.5, 2.0], images=40)
    assert relative.shape == (2, 3)
    dataset, state = run.setup.dataset, run.state
    examples = spread_examples(dataset, 'train', 40)
    images = (examples.images / 255.0 - dataset.mean) / dataset.std
    block = state.params['conv02']
    kernel = block['conv']['conv']['kernel']

    @jax.jit
    @jax.grad
    def gradient_of(kernel, beta):
        params = {**state.params, 'conv02': {**block, 'conv': {'conv': {'kernel': kernel}}}}
        variables = {'params': params, 'batch_stats': state.batch_stats}
        variables['surrogate'] = jax.tree.map(lambda _: jnp.float32(beta), state.surrogate)
        logits, _ = run.setup.model.apply(variables, jnp.float32(images), train=True, mutable=['batch_stats'])
        return optax.softmax_cross_entropy_with_integer_labels(logits.mean(0), examples.labels).mean()

    for beta, row in zip((0.5, 2.0), relative, strict=True):
        gradient = np.asarray(gradient_of(kernel, beta), np.float64)
        expected = np.sqrt((gradient**2).sum() / (np.float64(kernel) ** 2).sum())
        assert row[1] == pytest.approx(expected, rel=1e-3)
    # Behind the last kernel there are no neurons: its gradient knows no beta.
    assert relative[0, 2] == pytest.approx(relative[1, 2], rel=1e-5)
    assert (relative[0, :2] < relative[1, :2]).all()


def test_growth_is_a_factor_for_each_kernel_on_the_way_down():
    assert gradients.growth(np.array([8.0, 4.0, 2.0, 1.0, 77.0])) == pytest.approx(2)
    assert gradients.growth(np.array([1.0, 5.0, 9.0, 0.3])) == pytest.approx(1 / 3)
    assert np.isnan(gradients.growth(np.array([1.0, 2.0])))


@pytest.mark.trains
def test_a_picture_and_tables(run, tmp_path):
    runs = [run, run._replace(label='CPNG')]
    paths = gradients.draw(runs, tmp_path / 'new', betas=(0.5, 1, 2.0), weights='trained', images=30)
    assert [path.name for path in paths] == ['gradients.png', 'gradients.csv', 'gradients.md']
    assert np.std(imread(paths[0])) > 0.02, 'an empty picture'
    rows = list(csv.DictReader(paths[1].read_text().splitlines()))
    assert [(row['run'], float(row['beta'])) for row in rows] == [
        (n, b) for n in ('fixed', 'CPNG') for b in (0.5, 1, 2)
    ]
    for row in rows:
        ratio = float(row['conv01/conv/conv']) / float(row['conv02/conv/conv'])
        assert float(row['growth']) == pytest.approx(ratio)
    assert '# Gradients by layer, trained weights\n' in paths[2].read_text()
    alone = gradients.draw([run], tmp_path, betas=(1.0,), images=10_000)
    assert 'on 360 training images' in alone[2].read_text()
    assert '| run |' not in alone[2].read_text()


@pytest.mark.trains
def test_the_start_of_a_run_from_weights_is_where_it_started(run, tmp_path, tiny_config):
    moved = run.state.replace(params=jax.tree.map(lambda leaf: leaf + 0.1, run.state.params))
    tiny_config.init_from = str(tmp_path / 'weights.npz')
    weights.write(tmp_path / 'weights.npz', moved.variables)
    started = run._replace(setup=build(tiny_config))
    paths = gradients.draw([started], tmp_path, betas=(1.0,), weights='start', images=30)
    (row,) = csv.DictReader(paths[1].read_text().splitlines())
    expected = gradients.relative_gradients(run, moved, [1.0], 30)[0]
    assert float(row['conv01/conv/conv']) == pytest.approx(expected[0], rel=1e-4)


@pytest.mark.trains
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'weights': 'best'}, "weights is 'best', expected start or trained"),
        ({'betas': ()}, r'betas is \(\), expected numbers above 0'),
        ({'betas': (1, 'two')}, r"betas is \(1, 'two'\), expected numbers"),
        ({'betas': (1.0, -2.0)}, r'betas is \(1.0, -2.0\), expected numbers'),
        ({'images': 0}, 'images is 0, expected at least 1'),
    ],
)
def test_options_out_of_range_are_named(options, message, run, tmp_path):
    with pytest.raises(UserError, match=message):
        gradients.draw([run], tmp_path / 'no', **options)
    assert not (tmp_path / 'no').exists()
