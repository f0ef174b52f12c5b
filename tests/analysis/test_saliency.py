import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread
from scipy.stats import foldnorm

from configs import digits_events
from cpng_jax.analysis import saliency
from cpng_jax.analysis.compared import Compared, spread_examples
from cpng_jax.analysis.saliency import smooth_grad
from cpng_jax.data.dataset import ArraySource
from cpng_jax.models.inputs import network_input
from cpng_jax.runtime.errors import UserError
from cpng_jax.training.setup import build

pytestmark = pytest.mark.trains

KEY = jax.random.key(0)
IMAGE = np.random.default_rng(1).uniform(0, 255, (5, 4, 3)).astype(np.float32)


@pytest.mark.parametrize('signed', [False, True])
def test_of_a_linear_score_it_is_the_magnitude_of_the_weights(signed):
    w = np.random.default_rng(2).normal(size=IMAGE.shape).astype(np.float32)
    result = smooth_grad(lambda x: jnp.sum(w * x), IMAGE, KEY, samples=7, noise=0.5, signed=signed, batch_size=3)
    np.testing.assert_allclose(result, np.abs(w), rtol=1e-6)


@pytest.mark.parametrize('signed', [False, True])
def test_without_noise_it_is_the_gradient(signed):
    score = lambda x: jnp.sum(jnp.sin(x) * jnp.roll(x, 1))
    result = smooth_grad(score, IMAGE, KEY, samples=3, noise=0, signed=signed)
    np.testing.assert_allclose(result, np.abs(jax.grad(score)(jnp.asarray(IMAGE))), rtol=1e-5)


def test_of_a_quadratic_score_it_is_the_mean_of_a_folded_normal():
    # The gradient of x'Ax / 2 at x + noise is normal about Ax, with the standard deviation sigma |row of A|.
    rng = np.random.default_rng(3)
    a = rng.normal(size=(6, 6))
    a, x = (a + a.T) / 2, rng.uniform(size=6)
    sigma = 0.4 * (x.max() - x.min())
    spread = sigma * np.linalg.norm(a, axis=1)
    expected = foldnorm.mean(np.abs(a @ x) / spread, scale=spread)
    score = lambda x: x @ a.astype(np.float32) @ x / 2
    run = lambda **options: smooth_grad(score, x, KEY, samples=40_000, noise=0.4, batch_size=40_000, **options)
    tolerance = 5 * spread.max() / np.sqrt(40_000)
    np.testing.assert_allclose(run(), expected, atol=tolerance)
    np.testing.assert_allclose(run(signed=True), np.abs(a @ x), atol=tolerance)


def test_the_key_decides_and_not_the_batch():
    score = lambda x: jnp.sum(x**3)
    result = smooth_grad(score, IMAGE, KEY, samples=10, batch_size=10)
    np.testing.assert_allclose(smooth_grad(score, IMAGE, KEY, samples=10, batch_size=4), result, rtol=1e-5)
    np.testing.assert_array_equal(smooth_grad(score, IMAGE, KEY, samples=10, batch_size=10), result)
    assert np.any(smooth_grad(score, IMAGE, jax.random.key(1), samples=10) != result)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'samples': 0}, 'samples must be at least 1, got 0'),
        ({'batch_size': 0}, 'batch_size must be at least 1, got 0'),
        ({'noise': -0.1}, 'noise must be at least 0, got -0.1'),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        smooth_grad(jnp.sum, IMAGE, KEY, **options)


def make_run(config, label='fixed'):
    setup = build(config)
    return Compared(label, setup, setup.initial_state())


def test_maps_of_a_run_are_gradients_of_its_output_for_the_class(tiny_config):
    run = make_run(tiny_config)
    examples = spread_examples(run.setup.dataset, 'test', 3)
    maps = saliency.saliency_maps(run, examples.images, examples.labels, beta=0.5, noise=0.0, samples=1)

    dataset = run.setup.dataset
    surrogate = jax.tree.map(lambda beta: jnp.full_like(beta, 0.5), run.state.surrogate)
    variables = {'params': run.state.params, 'batch_stats': run.state.batch_stats, 'surrogate': surrogate}

    @jax.jit
    def outputs(images):
        return run.setup.model.apply(variables, network_input(images, dataset.mean, dataset.std)).mean(axis=0)

    images = examples.images.astype(np.float32)
    scores = lambda images: jnp.sum(outputs(images)[jnp.arange(3), examples.labels])
    gradients = np.abs(jax.jit(jax.grad(scores))(images)).sum(axis=-1)
    assert np.any(gradients > 0)
    np.testing.assert_allclose(maps.saliency, gradients, rtol=1e-4, atol=1e-6 * gradients.max())
    np.testing.assert_array_equal(maps.predicted, np.argmax(outputs(images), axis=-1))


def test_beta_as_trained_and_the_predicted_class_make_other_maps(tiny_config):
    run = make_run(tiny_config)
    trained = jax.tree.map(lambda beta: 0.4 * beta, run.state.surrogate)
    run = run._replace(state=run.state.replace(surrogate=trained))
    examples = spread_examples(run.setup.dataset, 'test', 4)
    make = lambda **options: saliency.saliency_maps(run, examples.images, examples.labels, samples=4, **options)
    plain = make(beta=1.0)
    wrong = plain.predicted != examples.labels
    assert wrong.any(), 'an untrained network errs'
    predicted = make(beta=1.0, of='predicted')
    np.testing.assert_array_equal(predicted.saliency[~wrong], plain.saliency[~wrong])
    assert np.any(predicted.saliency[wrong] != plain.saliency[wrong])
    np.testing.assert_array_equal(make().saliency, make(beta=0.4).saliency)
    assert np.any(make().saliency != plain.saliency)


def test_a_picture_has_a_row_for_the_images_and_one_for_each_run(tiny_config, tmp_path):
    run = make_run(tiny_config)
    paths = saliency.draw([run, run._replace(label='CPNG')], tmp_path / 'new', images=3, samples=2)
    assert paths == [tmp_path / 'new' / 'saliency.png']
    height, width, _ = imread(paths[0]).shape
    assert 500 < height < 900
    assert 500 < width < 900
    again = saliency.draw([run, run._replace(label='CPNG')], tmp_path / 'again', images=3, samples=2)
    np.testing.assert_array_equal(imread(again[0]), imread(paths[0]))


def test_a_run_that_passes_no_gradient_down_is_drawn_too(tiny_config, tmp_path):
    run = make_run(tiny_config)
    examples = spread_examples(run.setup.dataset, 'test', 2)
    assert not np.any(saliency.saliency_maps(run, examples.images, examples.labels, beta=1e8, samples=1).saliency)
    assert saliency.draw([run], tmp_path, images=2, samples=1, beta=1e8)[0].exists()


def test_images_of_different_classes_come_first():
    labels = np.array([7, 1, 1, 1, 7, 4])
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    chosen = saliency.varied(ArraySource(images, labels), 4)
    assert chosen.images.ravel().tolist() == [0, 1, 5, 2]
    assert chosen.labels.tolist() == [7, 1, 4, 1]
    assert len(saliency.varied(ArraySource(images, labels), 9)) == 6


def test_events_are_drawn_as_sums_of_their_frames(shrink, tmp_path):
    config = shrink(digits_events.get_config())
    config.data.fake = True
    run = make_run(config)
    examples = spread_examples(run.setup.dataset, 'test', 2)
    maps = saliency.saliency_maps(run, examples.images, examples.labels, samples=2)
    assert examples.images.ndim == 5
    assert maps.saliency.shape == (2, *examples.images.shape[2:4])
    assert saliency.draw([run], tmp_path, images=2, samples=2)[0].exists()


def test_options_out_of_range_are_errors_of_the_user(tiny_config, tmp_path):
    run = make_run(tiny_config)
    for beta in ('wide', 0.0, -1.0, float('inf'), float('nan')):
        with pytest.raises(UserError, match=r'beta is .*, expected init, trained or a number above 0'):
            saliency.draw([run], tmp_path, beta=beta)
    for name, value, least in (('images', 0, 1), ('samples', 0, 1), ('noise', -0.5, 0), ('noise', float('nan'), 0)):
        with pytest.raises(UserError, match=f'{name} is {value:g}, expected at least {least}'):
            saliency.draw([run], tmp_path, **{name: value})


def test_runs_on_different_data_are_not_compared(tiny_config, shrink, tmp_path):
    config = shrink(digits_events.get_config())
    config.data.fake = True
    with pytest.raises(UserError, match='fixed has digits of 8 x 8 x 1 in 10 classes; events has digits_events of'):
        saliency.draw([make_run(tiny_config), make_run(config, 'events')], tmp_path)
