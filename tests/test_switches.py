"""The library and the program under JAX's switches: 64 bits, no promotion of dtypes or ranks, no NaN, no jit."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits, digits_events
from cpng_jax import (
    LIF,
    MembraneDistances,
    MembraneStats,
    beta_for_chi,
    chi,
    cpng,
    lif,
    mean_output_cross_entropy,
    spike,
)
from cpng_jax.nn.adaptive_neuron import adapted_lif
from cpng_jax.nn.deviation_neuron import deviation_lif
from cpng_jax.nn.losses import temporal_efficient_training
from cpng_jax.nn.neuron import lif_reference
from cpng_jax.nn.statistics import DISTANCES
from cpng_jax.training import loop
from cpng_jax.training.setup import build

SWITCHES = {
    'x64': ('jax_enable_x64', True),
    'strict': ('jax_numpy_dtype_promotion', 'strict'),
    'ranks': ('jax_numpy_rank_promotion', 'raise'),
    'nans': ('jax_debug_nans', True),
    'no jit': ('jax_disable_jit', True),
}


# All but the last go together; that one takes long.
TOGETHER, NO_JIT = ('x64', 'strict', 'ranks', 'nans'), ('no jit',)


@contextlib.contextmanager
def switched(*names):
    """With switches as their environment variables set them: for all threads."""
    before = {name: getattr(jax.config, SWITCHES[name][0]) for name in names}
    try:
        for name in names:
            jax.config.update(*SWITCHES[name])
        yield
    finally:
        for name in names:
            jax.config.update(SWITCHES[name][0], before[name])


CURRENTS = np.float32(np.random.default_rng(0).normal(0.5, 1, (3, 4, 6)))
SHARES = np.float32(np.linspace(0, 0.9, len(DISTANCES)))


@functools.cache
def without_switches(dtype):
    return of_all_functions(dtype)


def of_all_functions(dtype):
    """What the library computes, and its gradients, of arrays of a dtype."""
    currents = jnp.asarray(CURRENTS, dtype)
    logits, labels = jnp.asarray(CURRENTS, dtype), jnp.asarray([0, 1, 2, 5], jnp.int32)
    mixed = jax.nn.one_hot(labels, 6, dtype=dtype)
    each = jnp.asarray(np.linspace(0.5, 1.5, 6), jnp.float32)
    stats = MembraneStats(jnp.asarray([0.5, 1], jnp.float32), jnp.asarray([1, 2], jnp.float32))
    counted = MembraneDistances(jnp.asarray([SHARES, SHARES / 2]))
    layers = {'a': {'beta': jnp.float32(1)}, 'b': {'beta': jnp.float32(2)}}
    seen = {'a': MembraneStats(jnp.float32(0), jnp.float32(1)), 'b': MembraneStats(jnp.float32(1), jnp.float32(2))}
    tet = functools.partial(temporal_efficient_training, weight=0.1, target=1.0)
    collections = ['membrane', 'distances', 'firing_rate', 'potentials']
    total = lambda tree: sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(tree))
    functions = {
        'lif': lambda: jax.value_and_grad(lambda c: total(lif(c, 1.0)))(currents),
        'of each neuron': lambda: jax.grad(lambda v: total(lif(currents, each, tau=v / 2, v_th=v)))(each),
        'lif_reference': lambda: jax.grad(lambda c: total(lif_reference(c, 1.0)))(currents),
        'spike': lambda: jax.grad(lambda c: total(spike(c, each, each)))(currents),
        'by deviation': lambda: jax.grad(lambda c: total(deviation_lif(c, 1.0, 0.7)))(currents),
        'adaptive': lambda: jax.grad(lambda c: total(adapted_lif(c, 1.0)))(currents),
        'modules': lambda: [
            LIF(per_channel=each).apply(
                {'surrogate': {'beta': jnp.ones((6,) if each else (), jnp.float32)}}, currents, mutable=collections
            )
            for each in (False, True)
        ],
        'chi': lambda: [jax.grad(lambda b, s=s: total(chi(s, b)))(jnp.float32(1)) for s in (stats, counted)],
        'inverse': lambda: [
            jax.grad(lambda t, s=s: total(beta_for_chi(t, s)))(jnp.float32(0.3)) for s in (stats, counted)
        ],
        'cpng': lambda: cpng.update({name: {'membrane': s} for name, s in seen.items()}, layers, cpng.init(layers)),
        'losses': lambda: [
            jax.grad(lambda x, t=t, loss=loss: total(loss(x, t)))(logits)
            for t in (labels, mixed)
            for loss in (mean_output_cross_entropy, tet)
        ],
    }
    return {name: function() for name, function in functions.items()}


@pytest.mark.parametrize(
    ('switches', 'dtype'), [(TOGETHER, 'float32'), (TOGETHER, 'bfloat16'), (NO_JIT, 'float32')], ids=str
)
def test_the_library_computes_the_same(switches, dtype):
    expected = without_switches(dtype)
    with switched(*switches):
        result = of_all_functions(dtype)
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(result), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype, path
        np.testing.assert_allclose(
            np.float64(one), np.float64(other), rtol=1e-5 if dtype == 'float32' else 0.02, atol=1e-5, err_msg=str(path)
        )


def test_64_bits_are_kept():
    with switched('x64', 'strict'):
        currents = jnp.asarray(CURRENTS, jnp.float64)
        spikes, stats, state = lif(currents, 1.0, return_state=True)
        assert spikes.dtype == stats.mean.dtype == state.dtype == jnp.float64
        assert beta_for_chi(jnp.float64(0.4), stats).dtype == chi(stats, jnp.float64(1)).dtype == jnp.float64


def test_what_is_documented_to_be_0_or_1_is_no_nan():
    constant = MembraneStats(jnp.float32([0.5, 0.5]), jnp.zeros(2, jnp.float32))
    beta = jnp.float32([1, 4])
    with switched('nans'):
        np.testing.assert_array_equal(chi(constant, beta), [1, 0])
        np.testing.assert_array_equal(chi(MembraneStats(jnp.float32(0), jnp.float32(1)), jnp.float32(0)), 1)
        np.testing.assert_array_equal(beta_for_chi(jnp.float32(0.4), constant), [0, 0])
        np.testing.assert_array_equal(beta_for_chi(jnp.float32([0, 1, -1]), MembraneStats(jnp.float32(0), 1.0)), 0)
        np.testing.assert_array_equal(beta_for_chi(jnp.float32([0, 0.95]), MembraneDistances(jnp.asarray(SHARES))), 0)
        gradients = jax.grad(lambda *given: jnp.sum(chi(MembraneStats(*given[:2]), given[2])), (0, 1, 2))(
            *constant, beta
        )
        np.testing.assert_array_equal(gradients, np.zeros((3, 2)))


def configuration(base, shrink, values):
    config = shrink(base.get_config())
    fake = {'data.fake': True, 'data.fake_examples': 64, 'data.per_class': 0}
    config.update_from_flattened_dict({'batch_size': 32, **fake, **values})
    return config


VARIANTS = {
    'digits': {},
    'adam, TET, mixed': {
        'optim.name': 'adam',
        'loss.name': 'tet',
        'loss.label_smoothing': 0.1,
        'data.mixup_alpha': 0.2,
        'data.cutmix_alpha': 1.0,
    },
    'accumulated': {'optim.accumulate': 2, 'remat': 'block', 'cpng.statistics': 'epoch_mean', 'dtype': 'bfloat16'},
    'counted': {'cpng.chi': 'counted', 'cpng.every': 'batch', 'neuron.surrogate': 'rectangular'},
    'by channel': {'cpng.per': 'channel', 'neuron.detach_reset': True},
    'LSG': {'cpng.rule': 'lsg', 'cpng.every': 'batch', 'neuron.learn_tau': True, 'neuron.surrogate': 'rectangular'},
    'MPD-AGL': {'cpng.rule': 'mpd_agl', 'cpng.every': 'batch'},
    'MPD-AGL, at each step': {'neuron.kind': 'mpd_agl', 'neuron.learn_tau': True},
    'DS-ATGO': {'neuron.kind': 'ds_atgo', 'cpng.rule': 'ds_atgo', 'cpng.every': 'batch'},
}


@pytest.mark.parametrize('name', [*VARIANTS, 'events'])
def test_a_training_step_keeps_its_types(name, shrink):
    """Traced under 64 bits without promotion: a step hands on the state that it takes, type by type."""
    config = configuration(digits_events if name == 'events' else digits, shrink, VARIANTS.get(name, {}))
    with switched('x64', 'strict', 'ranks'):
        setup = build(config)
        state = jax.eval_shape(setup.initial_state)
        with setup.train_batches(first_step=0) as batches:
            batch = next(iter(batches))
        after = jax.eval_shape(setup.train_step, state, batch)
    types = lambda tree: [(path, leaf.shape, leaf.dtype) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    assert types(after) == types(state)


@pytest.mark.trains
@pytest.mark.parametrize('switches', [TOGETHER, NO_JIT], ids=' '.join)
def test_the_program_runs(switches, shrink, tmp_path):
    """It trains and evaluates, to what it gives without."""
    config = configuration(digits, shrink, {'epochs': 1, 'model.stages': ((2,),), 'data.fake_examples': 32})
    with switched(*switches):
        trained = loop.run(config, tmp_path / 'switched')
        evaluated = loop.run(config, tmp_path / 'switched', 'eval')
    assert trained['step'] == 1
    assert (tmp_path / 'switched' / 'metrics.jsonl').read_text().count('"event": "epoch"') == 1
    assert evaluated['test_accuracy'] == trained['test_accuracy']
    assert trained == loop.run(config, tmp_path / 'plain')
