import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cpng_jax.training import optim

SETTINGS = ConfigDict(
    {
        'name': 'sgd',
        'learning_rate': 0.1,
        'momentum': 0.9,
        'weight_decay': 1e-2,
        'decay_norm_and_bias': True,
        'warmup_fraction': 0.05,
        'schedule': 'cosine',
        'cosine_epochs': 0,
        'step_at': (0.45, 0.7, 0.9),
        'step_factor': 0.2,
    }
)


def reference_rate(step: int, steps: int, peak: float, fraction: float) -> float:
    """A.2 in words: linear from a tenth of the peak over the first part, then half a cosine down to 0."""
    warmup = round(fraction * steps)
    if step < warmup:
        return peak * (0.1 + 0.9 * step / warmup)
    return peak * 0.5 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))


@pytest.mark.parametrize('fraction', [0.0, 0.05, 0.5])
def test_learning_rate_follows_the_appendix(fraction):
    settings = SETTINGS.copy_and_resolve_references()
    settings.warmup_fraction = fraction
    schedule = optim.learning_rate(settings, 200)
    rates = [float(schedule(step)) for step in range(201)]
    expected = [reference_rate(step, 200, 0.1, fraction) for step in range(201)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-8)
    assert rates[200] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize('warmup', [0, 20])
def test_a_cosine_of_some_epochs_goes_up_and_down_again(warmup):
    settings = SETTINGS.copy_and_resolve_references()
    settings.warmup_fraction, settings.cosine_epochs = warmup / 300, 4
    schedule = optim.learning_rate(settings, 300, 10)
    rates = np.array([float(schedule(step)) for step in range(warmup, 300)])
    # Half a period is 40 steps: at each multiple it is at the peak, or at 0, by turns.
    after = np.arange(len(rates))
    np.testing.assert_allclose(rates, 0.1 * (1 + np.cos(np.pi * after / 40)) / 2, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(rates[40::80], 0, atol=1e-7)
    np.testing.assert_allclose(rates[::80], 0.1, rtol=1e-5)


@pytest.mark.parametrize('warmup', [0, 20])
def test_steps_multiply_the_rate_at_shares_of_the_training(warmup):
    settings = SETTINGS.copy_and_resolve_references()
    settings.warmup_fraction, settings.schedule = warmup / 200, 'steps'
    schedule = optim.learning_rate(settings, 200)
    rates = [float(schedule(step)) for step in range(200)]
    expected = [0.1 * 0.2 ** sum(step >= at for at in (90, 140, 180)) for step in range(200)]
    np.testing.assert_allclose(rates[warmup:], expected[warmup:], rtol=1e-5)
    # Two that fall on one step of a short run are two all the same, and one within the warm-up counts at its end.
    settings.step_at, settings.warmup_fraction = (0.1, 0.7, 0.75), 0.3
    schedule = optim.learning_rate(settings, 10)
    np.testing.assert_allclose([float(schedule(step)) for step in (3, 6, 7, 8)], [0.02, 0.02, 0.004, 0.0008], rtol=1e-5)


@pytest.mark.parametrize('steps', [1, 2, 3])
def test_very_short_runs_have_a_finite_rate(steps):
    settings = SETTINGS.copy_and_resolve_references()
    settings.warmup_fraction = 0.9
    schedule = optim.learning_rate(settings, steps)
    rates = np.array([float(schedule(step)) for step in range(steps)])
    assert np.isfinite(rates).all()
    assert (rates > 0).all()


@pytest.mark.parametrize('decay_all', [True, False])
def test_optimizer_is_sgd_with_momentum_and_l2(decay_all):
    settings = SETTINGS.copy_and_resolve_references()
    settings.decay_norm_and_bias = decay_all
    optimizer = optim.make_optimizer(settings, 100)
    rng = np.random.default_rng(0)
    params = {'kernel': rng.normal(size=(3, 2)), 'bias': rng.normal(size=2)}
    weights = {key: value.copy() for key, value in params.items()}
    velocity = {key: np.zeros_like(value) for key, value in params.items()}
    tree = jax.tree.map(jnp.float32, params)
    state = optimizer.init(tree)
    for step in range(20):
        gradients = {key: rng.normal(size=value.shape) for key, value in params.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.float32, gradients), state, tree)
        tree = jax.tree.map(jnp.add, tree, updates)
        for key in weights:
            decay = 1e-2 if decay_all or key == 'kernel' else 0.0
            velocity[key] = 0.9 * velocity[key] + gradients[key] + decay * weights[key]
            weights[key] -= reference_rate(step, 100, 0.1, 0.05) * velocity[key]
    for key in weights:
        np.testing.assert_allclose(tree[key], weights[key], rtol=1e-4, atol=1e-5)


def test_adam_takes_the_decay_into_its_moments():
    settings = SETTINGS.copy_and_resolve_references()
    settings.name = 'adam'
    optimizer = optim.make_optimizer(settings, 100)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 2))
    tree, first, second = jnp.float32(weights), np.zeros_like(weights), np.zeros_like(weights)
    state = optimizer.init(tree)
    for step in range(20):
        gradient = rng.normal(size=weights.shape)
        updates, state = optimizer.update(jnp.float32(gradient), state, tree)
        tree = tree + updates
        # Kingma and Ba (2015), Algorithm 1.
        total = gradient + 1e-2 * weights
        first = 0.9 * first + 0.1 * total
        second = 0.999 * second + 0.001 * total**2
        corrected = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        weights = weights - reference_rate(step, 100, 0.1, 0.05) * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    np.testing.assert_allclose(tree, weights, rtol=1e-4, atol=1e-5)


def test_amsgrad_is_that_of_pytorch():
    """The greatest raw second moment, corrected for its bias afterwards (`torch.optim.Adam`, `amsgrad=True`)."""
    settings = SETTINGS.copy_and_resolve_references()
    settings.name = 'amsgrad'
    optimizer = optim.make_optimizer(settings, 100)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 2))
    tree, first, second = jnp.float32(weights), np.zeros_like(weights), np.zeros_like(weights)
    state, greatest = optimizer.init(tree), 0.0
    for step in range(30):
        gradient = rng.normal(size=weights.shape) * (10 if step == 10 else 1)
        updates, state = optimizer.update(jnp.float32(gradient), state, tree)
        tree = tree + updates
        total = gradient + 1e-2 * weights
        first = 0.9 * first + 0.1 * total
        second = 0.999 * second + 0.001 * total**2
        greatest = np.maximum(greatest, second)
        divisor = np.sqrt(greatest) / np.sqrt(1 - 0.999 ** (step + 1)) + 1e-8
        weights = weights - reference_rate(step, 100, 0.1, 0.05) * first / (1 - 0.9 ** (step + 1)) / divisor
    assert (greatest > second).any()
    np.testing.assert_allclose(tree, weights, rtol=1e-4, atol=1e-5)


def test_a_leak_is_kept_at_1_or_below_and_nothing_else_is():
    settings = SETTINGS.copy_and_resolve_references()
    settings.weight_decay, settings.warmup_fraction = 0.0, 0.0
    optimizer = optim.make_optimizer(settings, 100)
    params = {'lif': {'leak': jnp.float32(0.95), 'threshold': jnp.float32(0.95)}}
    state = optimizer.init(params)
    for gradient, expected in ((-1.0, 1.0), (-1.0, 1.0), (20.0, 1.0 - 0.1 * (20 - 0.9 * 1.9))):
        changes, state = optimizer.update(jax.tree.map(lambda _: jnp.float32(gradient), params), state, params)  # noqa: B023
        params = jax.tree.map(jnp.add, params, changes)
        assert float(params['lif']['leak']) == pytest.approx(expected, abs=2e-3)
        assert float(params['lif']['leak']) <= 1
        assert gradient > 0 or float(params['lif']['threshold']) > 1
