import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from cpng_jax.control import rules
from cpng_jax.control.controller import Settings
from cpng_jax.control.layer_tree import like_beta
from cpng_jax.models.inputs import network_input
from cpng_jax.models.vgg import VGG
from cpng_jax.nn import scheduling
from cpng_jax.nn.layers import RunningMoments, TdBN
from cpng_jax.nn.losses import mean_output_cross_entropy
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import MembraneStats
from cpng_jax.runtime import sharding
from cpng_jax.training import objective, optim, set_beta
from cpng_jax.training import step as steps
from cpng_jax.training.state import all_finite, create
from cpng_jax.training.step import make_eval_step, make_train_step, micro_batches
from tests import forked

pytestmark = pytest.mark.trains

MEAN, STD = np.float32([0.3]), np.float32([0.4])
PREPARE = functools.partial(network_input, mean=MEAN, std=STD)
BATCH = 16


def controller_of(name='cpng', **settings):
    """The controller of a rule, as a configuration makes it."""
    return rules.make(name, Settings(**settings))


def make(
    beta=1.0,
    neuron=LIF,
    controller=None,
    every_batch=False,
    counted=False,
    dtype='float32',
    rule='cpng',
    dropout=0.0,
    seed=0,
    **options,
):
    """A two-layer network with its state, step and mesh."""
    controller = controller or controller_of(rule, counted=counted, time_steps=2)
    observe = set_beta.collections(controller, 'distances' if counted else 'membrane')
    update_beta = (lambda state: set_beta.update(controller, state, state.step)[0]) if every_batch else None
    neuron = functools.partial(neuron, beta_init=beta)
    model = VGG(10, ((4,), (6,)), time_steps=2, neuron=neuron, dropout=dropout)
    options['noise'] = objective.make_noise(model, seed)
    optimizer = optim.make_optimizer(digits.get_config().optim, 50)
    mesh = sharding.make_mesh(BATCH)
    state = create(model, optimizer, controller, jnp.zeros((1, 8, 8, 1)), seed=0, observe=observe)
    state = jax.device_put(state, sharding.replicated(mesh))
    prepare = functools.partial(PREPARE, dtype=dtype)
    step = make_train_step(model, optimizer, mesh, prepare, observe=observe, update_beta=update_beta, **options)
    return model, optimizer, mesh, state, step


def batch(seed):
    rng = np.random.default_rng(seed)
    return {
        'image': rng.integers(0, 256, (BATCH, 8, 8, 1)).astype(np.uint8),
        'label': rng.integers(0, 10, BATCH).astype(np.int32),
    }


def numpy_tree(tree):
    return jax.tree.map(np.array, tree)


def test_a_step_is_the_gradient_of_the_loss_through_the_optimiser():
    model, optimizer, _, state, step = make()
    start, examples = numpy_tree(state), batch(0)
    images = (examples['image'] / 255.0 - MEAN) / STD

    def loss(params):
        variables = {'params': params, 'batch_stats': start.batch_stats, 'surrogate': start.surrogate}
        logits, updates = model.apply(variables, images, train=True, mutable=['batch_stats', 'membrane'])
        log_p = jax.nn.log_softmax(logits.mean(0))
        return -log_p[jnp.arange(BATCH), examples['label']].mean(), (logits, updates)

    (value, (logits, updates)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(start.params)
    changes, _ = jax.jit(optimizer.update)(gradient, start.opt_state, start.params)
    after = step(state, examples)
    chex.assert_trees_all_close(after.params, jax.tree.map(np.add, start.params, changes), rtol=2e-5, atol=1e-6)
    chex.assert_trees_all_close(after.batch_stats, updates['batch_stats'], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(
        after.epoch.observed['membrane'], like_beta(updates['membrane'], state.surrogate), rtol=1e-5, atol=1e-6
    )
    chex.assert_trees_all_equal(after.surrogate, start.surrogate)
    assert int(after.step) == 1
    assert float(after.epoch.loss) == pytest.approx(float(value), rel=1e-5)
    assert int(after.epoch.correct) == int((logits.mean(0).argmax(-1) == examples['label']).sum())


def test_frames_of_events_reach_the_network_time_first():
    frames = np.random.default_rng(0).integers(0, 256, (BATCH, 3, 4, 5, 2)).astype(np.uint8)
    mean, std = np.float32([0.1, 0.2]), np.float32([0.5, 0.25])
    moved = network_input(jnp.asarray(frames), mean, std)
    assert moved.shape == (3, BATCH, 4, 5, 2)
    expected = np.stack([(frames[:, t] / 255.0 - mean) / std for t in range(3)])
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-5)


def test_the_step_minimises_the_loss_it_is_given_on_the_batch_as_mixed():
    """A mix that swaps the images and softens the labels by the number of the step, and a loss of its own."""

    def mix(images, labels, step):
        return images[::-1], jax.nn.one_hot(labels[::-1], 10) * (0.5 + 0.25 * step)

    def loss(logits, labels):
        return jnp.sum(jnp.mean(logits, axis=0) * labels, axis=-1)

    model, _, _, state, step = make(loss=loss, mix=mix)
    examples, total = batch(0), 0.0
    images = ((examples['image'] / 255.0 - MEAN) / STD)[::-1]
    for number in range(2):
        before = numpy_tree(state)
        state = step(state, examples)
        variables = {'params': before.params, 'batch_stats': before.batch_stats, 'surrogate': before.surrogate}
        logits, _ = model.apply(variables, images, train=True, mutable=['batch_stats'])
        total += np.mean(
            np.mean(np.asarray(logits), axis=0)[np.arange(BATCH), examples['label'][::-1]] * (0.5 + 0.25 * number)
        )
        assert float(state.epoch.loss) == pytest.approx(float(total), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize('parts', [2, 8])
def test_a_batch_in_parts_has_the_mean_gradient_and_the_statistics_of_all(parts):
    """Against each part by itself: gradients, loss and rates averaged, hits summed, statistics by total variance."""
    model, optimizer, _, state, step = make(accumulate=parts)
    start, examples = numpy_tree(state), batch(0)
    after = step(state, examples)
    images = (examples['image'] / 255.0 - MEAN) / STD
    batch_stats, gradients, losses, hits, means, variances, rates = start.batch_stats, [], [], 0, [], [], []

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def gradient_of(params, batch_stats, images, labels):
        variables = {'params': params, 'batch_stats': batch_stats, 'surrogate': start.surrogate}
        logits, updates = model.apply(variables, images, train=True, mutable=['batch_stats', 'membrane', 'firing_rate'])
        chosen = jax.nn.log_softmax(logits.mean(0))[jnp.arange(len(labels)), labels]
        return -chosen.mean(), (logits, updates)

    for number in range(parts):
        own, labels = images[number::parts], examples['label'][number::parts]
        (value, (logits, updates)), gradient = gradient_of(start.params, batch_stats, own, labels)
        batch_stats = updates['batch_stats']
        gradients.append(gradient)
        losses.append(float(value))
        hits += int((logits.mean(0).argmax(-1) == labels).sum())
        means.append(float(updates['membrane']['conv02']['lif']['membrane'].mean))
        variances.append(float(updates['membrane']['conv02']['lif']['membrane'].variance))
        rates.append(float(updates['firing_rate']['conv01']['lif']['firing_rate']))
    mean_gradient = jax.tree.map(lambda *leaves: sum(leaves) / parts, *gradients)
    changes, _ = jax.jit(optimizer.update)(mean_gradient, start.opt_state, start.params)
    chex.assert_trees_all_close(after.params, jax.tree.map(np.add, start.params, changes), rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(after.batch_stats, batch_stats, rtol=1e-4, atol=1e-5)
    assert float(after.epoch.loss) == pytest.approx(np.mean(losses), rel=1e-5)
    assert int(after.epoch.correct) == hits
    pooled = after.epoch.observed['membrane']['conv02']['lif']['beta']
    assert float(pooled.mean) == pytest.approx(np.mean(means), rel=1e-4)
    assert float(pooled.variance) == pytest.approx(np.mean(variances) + np.var(means), rel=1e-4)
    assert float(after.epoch.firing_rate['conv01']['lif']['beta']) == pytest.approx(np.mean(rates), rel=1e-4)


def test_masks_of_dropout_are_a_function_of_seed_and_step():
    assert make()[0].dropout == 0
    assert objective.make_noise(make()[0], 0) is None

    def trained(seed, first=0):
        *_, state, step = make(dropout=0.4, seed=seed)
        return numpy_tree(step(state.replace(step=state.step + first), batch(0)).params)

    once = trained(0)
    chex.assert_trees_all_equal(once, trained(0))
    for other in (trained(1), trained(0, first=1)):
        assert not np.array_equal(once['output']['dense']['kernel'], other['output']['dense']['kernel'])


def test_each_micro_batch_has_masks_of_its_own():
    """Of two that are alike, the mean of their gradients is that of neither."""
    model, optimizer, _, state, step = make(dropout=0.4, accumulate=2)
    start, examples = numpy_tree(state), batch(0)
    for values in examples.values():
        values[1::2] = values[::2]  # so that both micro-batches are the same
    images, labels = PREPARE(examples['image'][::2]), examples['label'][::2]
    noise = objective.make_noise(model, 0)

    def loss(params, part):
        variables = {'params': params, 'batch_stats': start.batch_stats, 'surrogate': start.surrogate}
        rngs = {'dropout': noise(jnp.int32(0), part)['dropout']}
        logits, _ = model.apply(variables, images, train=True, mutable=['batch_stats'], rngs=rngs)
        return mean_output_cross_entropy(logits, labels).mean()

    gradient = jax.jit(jax.grad(loss))
    first, second = (gradient(start.params, part) for part in (0, 1))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    changes, _ = optimizer.update(mean, start.opt_state, start.params)
    expected = jax.tree.map(np.add, start.params, changes)
    chex.assert_trees_all_close(numpy_tree(step(state, examples).params), expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(first['output']['dense']['kernel'], second['output']['dense']['kernel'])


def test_events_are_split_along_the_batch():
    frames = jnp.arange(2 * 6 * 3).reshape(2, 6, 3)
    split = micro_batches(frames, 3, axis=1)
    assert split.shape == (3, 2, 2, 3)
    for part in range(3):
        np.testing.assert_array_equal(split[part], frames[:, part::3])


def test_bfloat16_computes_in_it_and_keeps_the_rest_in_float32():
    model, *_, state, step = make(dtype='bfloat16')
    # Shapes alone tell the dtypes: of values and spikes within, and of what comes out; norms and their maps aside.
    images = jnp.zeros((2, 8, 8, 1), 'bfloat16')
    variables = {'params': state.params, 'batch_stats': state.batch_stats, 'surrogate': state.surrogate}
    capture = functools.partial(
        model.apply, capture_intermediates=lambda module, _: not isinstance(module, TdBN | RunningMoments), mutable=True
    )
    _, seen = jax.eval_shape(lambda: capture(variables, images, train=True))
    assert {leaf.dtype for leaf in jax.tree.leaves(seen['intermediates'])} == {jnp.dtype('bfloat16')}
    *_, other, plain = make()
    for seed in range(5):
        state, other = step(state, batch(seed)), plain(other, batch(seed))
    floating = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floating} == {jnp.dtype('float32')}
    assert bool(all_finite(state))
    assert float(state.epoch.loss) == pytest.approx(float(other.epoch.loss), rel=0.02)
    chex.assert_trees_all_close(state.epoch.observed['membrane'], other.epoch.observed['membrane'], rtol=0.1, atol=0.02)


def test_epoch_sums_are_those_of_the_steps():
    *_, state, step = make()
    *_, other, last_only = make()
    losses, correct, rates, previous = [], 0, [], 0.0
    for seed in range(4):
        other = last_only(other, batch(seed))
        losses.append(float(other.epoch.loss) - previous)
        previous = float(other.epoch.loss)
        fresh = other.epoch.firing_rate['conv01']['lif']['beta']
        rates.append(float(fresh))
        correct = int(other.epoch.correct)
        state = step(state, batch(seed))
    assert int(state.epoch.steps) == 4
    assert float(state.epoch.loss) == pytest.approx(sum(losses), rel=1e-6)
    assert int(state.epoch.correct) == correct
    assert 0 < rates[-1] < 1


def test_pooled_statistics_are_those_of_all_batches_together():
    """The mean and variance over the epoch against numpy on the concatenated potentials' moments."""
    *_, state, step = make(pool_statistics=True)
    *_, other, last_only = make()
    means, variances = [], []
    for seed in range(5):
        state, other = step(state, batch(seed)), last_only(other, batch(seed))
        stats = other.epoch.observed['membrane']['conv02']['lif']['beta']
        means.append(float(stats.mean))
        variances.append(float(stats.variance))
    pooled = state.epoch.observed['membrane']['conv02']['lif']['beta']
    # Batches of one size: the law of total variance.
    assert float(pooled.mean) == pytest.approx(np.mean(means), rel=1e-5)
    assert float(pooled.variance) == pytest.approx(np.mean(variances) + np.var(means), rel=1e-5)


def test_cpng_every_batch_is_the_host_step_after_each_batch():
    controller = controller_of()
    *_, state, step = make(beta=0.7, controller=controller, every_batch=True)
    *_, other, plain = make(beta=0.7, controller=controller)
    for seed in range(6):
        state = step(state, batch(seed))
        other, _ = set_beta.update(controller, plain(other, batch(seed)), seed + 1)
        chex.assert_trees_all_close(state.surrogate, other.surrogate, rtol=1e-4)
    betas = np.array(jax.tree.leaves(state.surrogate))
    assert (betas != np.float32(0.7)).any()


def compiled_step():
    """A step of a network whose potentials and whose weights are large beside the rest."""
    model = VGG(10, ((16, 16), (64,)), head=(128,), time_steps=4)
    optimizer = optim.make_optimizer(digits.get_config().optim, 50)
    mesh = sharding.make_mesh(BATCH)
    state = create(model, optimizer, controller_of(), jnp.zeros((1, 32, 32, 3)), seed=0)
    images = np.zeros((BATCH, 32, 32, 3), np.uint8)
    step = make_train_step(model, optimizer, mesh, PREPARE)
    return step.lower(state, {'image': images, 'label': np.zeros(BATCH, np.int32)}).compile()


def test_a_step_on_a_cpu_keeps_neither_potentials_nor_copies_of_the_weights(monkeypatch):
    in_order = compiled_step()
    monkeypatch.setattr(scheduling, 'on_one_cpu', lambda _: False)
    monkeypatch.setattr(steps, '_CPU_OPTIONS', {})
    jax.clear_caches()  # of what has been traced in an order
    by_itself = compiled_step()
    jax.clear_caches()
    needs = lambda program: program.memory_analysis().temp_size_in_bytes
    assert needs(in_order) < 0.8 * needs(by_itself)
    assert 'copy(%state_params' not in in_order.as_text()
    assert 'copy(%state_params' in by_itself.as_text()


def test_changing_beta_does_not_recompile():
    chex.clear_trace_counter()
    *_, mesh, state, step = make(loss=chex.assert_max_traces(mean_output_cross_entropy, n=1))
    for seed in range(5):
        state = step(state, sharding.put_batch(batch(seed), mesh))
        state, _ = set_beta.update(controller_of(), state, 1)
    assert (np.array(jax.tree.leaves(state.surrogate)) != 1).any()


def test_evaluation_ignores_the_filling():
    model, _, mesh, state, _ = make()
    evaluate = make_eval_step(model, mesh, PREPARE)
    full = batch(3) | {'weight': np.ones(BATCH, np.float32)}
    sums = evaluate(state, full)
    half = np.arange(BATCH) % 2 == 0
    split = [evaluate(state, full | {'weight': part.astype(np.float32)}) for part in (half, ~half)]
    for whole, parts in zip(sums, zip(*split, strict=True), strict=True):
        assert float(whole) == pytest.approx(sum(float(part) for part in parts), rel=1e-5)
    assert float(sums.examples) == BATCH


def test_all_finite_sees_what_the_loss_does_not():
    *_, state, _ = make()
    assert bool(all_finite(state))
    hidden = jax.tree.map(lambda leaf: leaf, state.params)
    hidden['conv01']['conv']['conv']['kernel'] = hidden['conv01']['conv']['conv']['kernel'].at[0, 0, 0, 0].set(jnp.nan)
    assert not bool(all_finite(state.replace(params=hidden)))


def test_constant_potentials_leave_beta_alone():
    *_, state, step = make()
    dead = jax.tree.map(
        lambda stats: MembraneStats(stats.mean, jnp.zeros_like(stats.variance)),
        step(state, batch(0)).epoch.observed['membrane'],
        is_leaf=lambda node: isinstance(node, MembraneStats),
    )
    *_, state, _ = make()
    state = state.replace(epoch=state.epoch.replace(observed={'membrane': dead}))
    after, report = set_beta.update(controller_of(), state, 1)
    chex.assert_trees_all_equal(after.surrogate, state.surrogate)
    assert report.skipped_layers() == ['conv01/lif', 'conv02/lif']


FOUR_DEVICES = """
import functools, json, sys
import jax, numpy as np
import tests.training.test_step as t
per_channel, options = json.loads(sys.argv[1])
neuron = functools.partial(t.LIF, per_channel=per_channel)
*_, mesh, state, step = t.make(neuron=neuron, every_batch=True, **options)
for seed in range(3):
    state = step(state, t.sharding.put_batch(t.batch(seed), mesh))
print(json.dumps([jax.device_count(), float(state.epoch.loss), *(float(np.sum(leaf)) for leaf in
      jax.tree.leaves((state.epoch.observed, state.surrogate, state.scale, state.params)))]))
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ('devices', 'per_channel', 'options'),
    [
        (1, False, {}),
        (4, False, {}),
        (4, False, {'accumulate': 2, 'rule': 'cpng_gain'}),
        (4, False, {'counted': True, 'accumulate': 2, 'dropout': 0.3}),
        (4, True, {'accumulate': 2}),
    ],
)
def test_several_devices_give_the_same_numbers(devices, per_channel, options):
    environment = {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}', 'JAX_PLATFORMS': 'cpu'}
    process = forked.run('-c', FOUR_DEVICES, json.dumps([per_channel, options]), environment=environment)
    assert process.returncode == 0, process.stderr
    count, *numbers = json.loads(process.stdout.splitlines()[-1])
    assert count == devices
    neuron = functools.partial(LIF, per_channel=per_channel)
    *_, state, step = make(neuron=neuron, every_batch=True, **options)
    for seed in range(3):
        state = step(state, batch(seed))
    leaves = jax.tree.leaves((state.epoch.observed, state.surrogate, state.scale, state.params))
    expected = [float(state.epoch.loss), *(float(np.sum(leaf)) for leaf in leaves)]
    np.testing.assert_allclose(numbers, expected, rtol=1e-4, atol=1e-4)
