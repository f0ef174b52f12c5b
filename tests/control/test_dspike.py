"""Dspike's rule against finite differences and angles in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cpng_jax.control import dspike, rules
from cpng_jax.control.controller import Settings
from cpng_jax.models import registry
from cpng_jax.nn.losses import mean_output_cross_entropy
from cpng_jax.training import loop, set_beta
from tests.runs import epoch_rows
from tests.training.test_step import BATCH, MEAN, PREPARE, STD, batch, make

vectors = arrays(np.float32, 6, elements=st.floats(-2, 2, width=32))


@jax.jit
def differences_of_a_quadratic_form(linear, curvature, weights):
    loss = lambda w: jnp.sum(linear * w + curvature * w**2 / 2)
    return dspike.finite_differences(loss, weights, jnp.float32(0.5))


@given(linear=vectors, curvature=vectors, weights=vectors)
def test_central_differences_of_a_quadratic_form_are_its_gradient(linear, curvature, weights):
    differences = differences_of_a_quadratic_form(*(vector.reshape(2, 3) for vector in (linear, curvature, weights)))
    expected = np.float64(linear) + np.float64(curvature) * weights
    np.testing.assert_allclose(differences, expected.reshape(2, 3), atol=1e-4)


@given(a=vectors, b=vectors)
def test_cosine(a, b):
    value = float(dspike.cosine(a, b))
    a, b = np.float64(a), np.float64(b)
    if (a**2).sum() > 1e-20 and (b**2).sum() > 1e-20:
        assert value == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-5)
    elif not a.any() or not b.any():
        assert np.isnan(value)


def turned(angle_of_loss):
    """A loss that rises along one angle, with a gradient that JAX is made to see along the angle beta."""

    def loss(weights, beta):
        along = lambda angle: weights[0] * jnp.cos(angle) + weights[1] * jnp.sin(angle)
        seen = along(beta['a'])
        return jax.lax.stop_gradient(along(angle_of_loss) - seen) + seen

    return loss


@jax.jit
def best_beta_of_a_turned_loss(angle, beta, step):
    return dspike.best_beta(turned(angle), jnp.ones(2), {'a': jnp.float32(beta)}, epsilon=0.5, step=step)


@given(angle=st.floats(0, 3), beta=st.floats(0.05, 3), step=st.floats(0.01, 1))
def test_beta_goes_where_the_gradient_is_most_like_the_differences(angle, beta, step):
    new = best_beta_of_a_turned_loss(angle, beta, step)
    cosines = {candidate: np.cos(candidate - angle) for candidate in (beta, beta - step, beta + step) if candidate > 0}
    assert new['a'].dtype == np.float32
    assert any(float(new['a']) == pytest.approx(candidate, rel=1e-5, abs=1e-6) for candidate in cosines)
    assert np.cos(float(new['a']) - angle) == pytest.approx(max(cosines.values()), abs=1e-5)


@pytest.mark.parametrize(
    'loss',
    [lambda w, beta: 0.0 * jnp.sum(w), lambda w, beta: jnp.nan * jnp.sum(w), lambda w, beta: jnp.sum(w >= 0.0) * 1.0],
    ids=['flat', 'not finite', 'no gradient'],
)
def test_without_a_cosine_there_is_no_beta(loss):
    new = dspike.best_beta(loss, jnp.zeros(2), {'a': jnp.ones(3)}, epsilon=0.1, step=0.1)
    assert np.isnan(new['a']).all()


@pytest.mark.trains
@pytest.mark.parametrize('accumulate', [1, 2])
def test_the_search_is_that_of_the_equations_on_the_first_convolution(accumulate):
    model, _, mesh, state, _ = make()
    epsilon, step, examples = 0.4, 0.5, batch(1)
    settings = Settings(options={'dspike_epsilon': epsilon, 'dspike_step': step})
    end_of_epoch = set_beta.make_end_of_epoch(
        rules.make('dspike', settings),
        settings,
        model,
        jnp.zeros((1, 8, 8, 1)),
        mesh,
        steps_per_epoch=1,
        prepare=PREPARE,
        loss=mean_output_cross_entropy,
        accumulate=accumulate,
    )
    seen = slice(None, None, accumulate)  # a part has examples of every device
    images, labels = (examples['image'][seen] / 255.0 - MEAN) / STD, examples['label'][seen]

    @jax.jit
    def loss(kernel, beta):
        params = {**state.params, 'conv01': {**state.params['conv01'], 'conv': {'conv': {'kernel': kernel}}}}
        variables = {'params': params, 'batch_stats': state.batch_stats}
        variables['surrogate'] = jax.tree.map(lambda _: beta, state.surrogate)
        logits, _ = model.apply(variables, images, train=True, mutable=['batch_stats'])
        return -jax.nn.log_softmax(logits.mean(0))[jnp.arange(BATCH // accumulate), labels].mean()

    kernel = np.float64(state.params['conv01']['conv']['conv']['kernel'])
    shift = epsilon * np.sqrt((kernel**2).mean())
    differences = np.zeros(kernel.shape)
    for index in np.ndindex(kernel.shape):
        up, down = kernel.copy(), kernel.copy()
        up[index] += shift
        down[index] -= shift
        differences[index] = (float(loss(up, 1.0)) - float(loss(down, 1.0))) / (2 * shift)
    likeness = {}
    for beta in (1.0, 1 - step, 1 + step):
        gradient = np.float64(jax.grad(loss)(jnp.float32(kernel), beta))
        likeness[beta] = (gradient * differences).sum() / np.sqrt((gradient**2).sum() * (differences**2).sum())
    assert sorted(likeness.values())[-1] - sorted(likeness.values())[-2] > 1e-3  # no tie
    best = max(likeness, key=lambda beta: likeness[beta])
    after, row = end_of_epoch(state, examples)
    wanted = after.surrogate
    assert row['skipped'] == []
    np.testing.assert_allclose(jax.tree.leaves(wanted), best, rtol=1e-6)
    assert jax.tree.structure(wanted) == jax.tree.structure(state.surrogate)


@pytest.mark.trains
def test_a_run_moves_beta_by_steps(tmp_path, tiny_config):
    tiny_config.update_from_flattened_dict(
        {'cpng.rule': 'dspike', 'cpng.dspike_step': 0.25, 'cpng.dspike_epsilon': 0.5, 'cpng.chi': 'counted'}
    )
    loop.run(tiny_config, tmp_path)
    rows, before = epoch_rows(tmp_path), 1.0
    for row in rows:
        (beta,) = {*row['beta'].values()}
        assert beta - before in (0, -0.25, 0.25)
        assert set(row['chi_min'].values()) == {None}
        assert row['skipped'] == []
        before = beta
    assert len({row['beta']['conv01/lif'] for row in rows}) > 1


@pytest.mark.parametrize('name', ['vgg11', 'resnet18', 'resnet19', 'sew_resnet18'])
def test_the_first_kernel_is_the_one_that_sees_the_images(name, tiny_config):
    tiny_config.model = {'name': name, 'width': 0.1, 'time_steps': 2}
    model, example = registry.build(tiny_config, classes=10), jnp.zeros((1, 32, 32, 5))
    params = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), example)['params'])
    seeing = [path for path, leaf in params.items() if path[-1] == 'kernel' and leaf.shape[-2] == 5]
    assert set_beta.first_kernel(model, example) in seeing
    assert len(seeing) == 1
