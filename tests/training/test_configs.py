"""Every configuration: it is valid, fits together, lowers at full size, and makes steps at a reduced one."""

import importlib
import math
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpng_jax import data
from cpng_jax.models import registry
from cpng_jax.runtime import metrics, sharding
from cpng_jax.runtime.config import refuse_idle, validate
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import keys, loop
from cpng_jax.training.objective import make_loss, make_mix
from cpng_jax.training.setup import build

FILES = sorted(path.stem for path in (pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))
NAMES = [name for name in FILES if name not in ('base', '__init__')]
# Recipes of others in Table 4, and that of the paper whose network each has; then as in `PAPER`.
OTHERS = {
    'cifar10_stbp_tdbn': ('cifar10_resnet19', ('cifar10', 'resnet19', 6, 256, 200, 'sgd', 0.1, 1e-4, True)),
    'cifar10_dvs_tet': ('cifar10_dvs_vgg11_tet', ('cifar10_dvs', 'vgg11', 10, 128, 300, 'adam', 0.001, 0, False)),
    'imagenet_sew': ('imagenet_sew_resnet34', ('imagenet2012', 'sew_resnet34', 4, 256, 320, 'sgd', 0.1, 0, False)),
}
# ANNs that Table 4 converts: as in `PAPER`, then neurons, levels, channels before the last layer.
ANNS = {
    'cifar10_resnet20_ann': (('cifar10', 'resnet20', 1, 128, 300, 'sgd', 0.1, 5e-4, False), 'relu', 256),
    'cifar10_resnet20_qcfs': (('cifar10', 'resnet20', 1, 300, 300, 'sgd', 0.1, 5e-4, False), 'qcfs', 64),
    'cifar100_vgg16_ann': (('cifar100', 'vgg16', 1, 128, 300, 'sgd', 0.1, 5e-4, False), 'relu', 512),
    'cifar100_vgg16_qcfs': (('cifar100', 'vgg16', 1, 300, 300, 'sgd', 0.05, 5e-4, False), 'qcfs', 4096),
    'imagenet_resnet34_ann': (('imagenet2012', 'resnet34', 1, 256, 120, 'sgd', 0.1, 1e-4, True), 'relu', 512),
    'imagenet_resnet34_qcfs': (('imagenet2012', 'resnet34', 1, 256, 120, 'sgd', 0.1, 1e-4, True), 'qcfs', 512),
}
# Without those whose network is that of another.
ALIKE = {*OTHERS, *ANNS, 'cifar100_diet_ann'} - {'imagenet_resnet34_ann'}
OF_A_KIND = [name for name in NAMES if not name.startswith('digits_few') and name not in ALIKE]

# Tables 3 to 6 and Sec. 5.3: data set, network, T, batch, epochs, optimiser, learning rate, weight decay, warm-up.
PAPER = {
    'cifar100_vgg16': ('cifar100', 'vgg16', 5, 256, 300, 'sgd', 0.1, 1e-4, True),
    'cifar10_resnet19': ('cifar10', 'resnet19', 6, 256, 200, 'sgd', 0.1, 1e-4, True),
    'cifar100_resnet20': ('cifar100', 'resnet20', 6, 256, 300, 'sgd', 0.1, 1e-4, True),
    'cifar10_dvs_resnet18': ('cifar10_dvs', 'resnet18', 10, 72, 200, 'sgd', 0.01, 4e-5, False),
    'cifar10_dvs_vgg11_tet': ('cifar10_dvs', 'vgg11', 10, 72, 200, 'adam', 0.001, 4e-5, False),
    'imagenet_sew_resnet34': ('imagenet2012', 'sew_resnet34', 4, 544, 160, 'sgd', 0.01, 4e-5, False),
}
DIET = {'cifar100_diet_ann', 'cifar100_diet_snn'}
FASHION = {'fashion_mnist_mlp', 'fashion_mnist_cnn', 'fashion_mnist_deep'}
CLASSES = {'cifar10': 10, 'cifar100': 100, 'cifar10_dvs': 10, 'imagenet2012': 1000}


def get(name):
    return importlib.import_module(f'configs.{name}').get_config()


def reduce(config):
    """The same experiment on random images, narrow, shallow and short."""
    config.data.fake = True
    config.data.fake_examples = 8
    config.data.validation = 0.0
    config.batch_size = 4
    config.epochs = 1
    config.model.width = 1 / 16
    fields = registry.fields_of(config)
    if 'blocks' in fields:
        config.model.update({'blocks': (1,) * len(fields['blocks'])})
    if 'stages' in fields:
        config.model.update({'stages': tuple(stage[:1] for stage in fields['stages'])})
    config.model.time_steps = min(2, config.model.time_steps)
    if config.data.name == 'imagenet2012':
        config.data.image_size = 32
    if config.data.name in ('digits_events', 'cifar10_dvs'):
        config.data.event_size = 16
    config.eval.batch_size = 2
    config.data.threads = 0
    return config


def numbers(config):
    optim = config.optim
    return (
        config.data.name, config.model.name, config.model.time_steps, config.batch_size, config.epochs,
        optim.name, optim.learning_rate, optim.weight_decay, optim.warmup_fraction > 0,
    )  # fmt: skip


@pytest.mark.parametrize('name', list(OTHERS))
def test_the_numbers_are_those_of_other_papers(name):
    config, (paper, expected) = get(name), OTHERS[name]
    validate(config, keys.table())
    refuse_idle([config], keys.table())
    assert numbers(config) == expected
    assert not config.cpng.enabled
    assert config.cpng.beta_init == 1
    shape, *neurons = (config.neuron[key] for key in ('surrogate', 'tau', 'v_th', 'detach_reset'))
    if name == 'cifar10_stbp_tdbn':
        assert (shape, neurons) == ('rectangular', [0.25, 0.5, False])
    elif name == 'cifar10_dvs_tet':
        assert (shape, neurons) == ('triangular', [0.5, 1.0, False])
        assert (config.data.frame_scale, config.data.event_size, config.data.split) == ('max', 48, 'fixed')
        assert (config.loss.name, config.loss.tet_weight, config.loss.tet_target) == ('tet', 1e-3, 1.0)
    else:
        assert (shape, neurons) == ('arctan', [1.0, 1.0, True])
        assert (config.dtype, config.optim.accumulate) == ('bfloat16', 8)
        assert config.norm.momentum**8 == pytest.approx(0.9)
    assert registry.fields_of(config) == registry.fields_of(get(paper))


@pytest.mark.parametrize('name', list(ANNS))
def test_the_numbers_are_those_of_the_anns(name):
    config, (expected, kind, features) = get(name), ANNS[name]
    validate(config, keys.table())
    refuse_idle([config], keys.table())
    assert numbers(config) == expected
    assert (config.neuron.kind, config.norm.kind) == (kind, 'tdbn')
    fields = registry.fields_of(config)
    stages = fields.get('widths') or fields['stages'][-1]
    assert features == (*stages, *fields.get('head', ()))[-1]
    if kind == 'qcfs':
        assert config.neuron.levels == (8 if 'imagenet' in name else 4)
    if 'resnet' in name:
        assert config.norm.alpha_residual == 1
    if 'cifar' in name:
        data = config.data
        assert (data.crop_padding, data.flip, data.policy, data.cutout) == (4, True, 'autoaugment', 16)


@pytest.mark.parametrize('name', list(PAPER))
def test_the_numbers_are_the_paper_s(name):
    config = get(name)
    optim = config.optim
    assert numbers(config) == PAPER[name]
    assert optim.momentum == 0.9
    assert (config.cpng.enabled, config.cpng.chi_limit, config.cpng.every, config.cpng.statistics) == (
        True, 0.2, 'epoch', 'last_batch',
    )  # fmt: skip
    assert optim.warmup_fraction in (0, 0.05)
    assert (config.neuron.tau, config.neuron.detach_reset) == ((1.0, True) if 'sew' in name else (0.5, False))
    assert (config.neuron.v_th, config.neuron.surrogate) == (1.0, 'triangular')
    assert config.loss.name == ('tet' if 'tet' in name else 'mean_output')
    if config.data.name.startswith('cifar1') and not config.data.name.endswith('dvs'):
        assert (config.data.crop_padding, config.data.flip) == (4, True)
    if config.data.name == 'cifar10_dvs':
        assert (config.data.event_size, config.data.roll, config.data.flip) == (48, 5, True)
    assert (config.data.policy, config.data.cutout, config.data.mixup_alpha, config.data.cutmix_alpha) == (
        'none', 0, 0, 0,
    )  # fmt: skip


def test_every_row_has_its_file():
    own = {'digits', 'digits_events', 'digits_few', 'digits_few_residual', 'mnist5k'} | FASHION
    assert set(NAMES) == {*PAPER, *OTHERS, *ANNS, *DIET, *own}


@pytest.mark.parametrize('name', NAMES)
def test_the_paper_s_data_are_chosen_on_as_in_the_paper_and_fashion_mnist_by_validation(name):
    assert get(name).data.validation == (0.1 if name in FASHION else 0.0)
    assert ('chosen on the test split' in (importlib.import_module(f'configs.{name}').__doc__ or '')) == (
        name in {*PAPER, *OTHERS, *ANNS}
    )


@pytest.mark.parametrize('name', NAMES)
def test_the_docstring_states_row_and_accuracy(name):
    text = importlib.import_module(f'configs.{name}').__doc__
    assert text
    if name in {*PAPER, *OTHERS, *ANNS}:
        assert 'Table' in text
        assert '%' in text
        assert f'python -m cpng_jax.data.prepare {get(name).data.name}' in text


@pytest.mark.deep
@pytest.mark.parametrize('name', OF_A_KIND)
def test_it_initialises_and_traces_at_full_size(name):
    config = get(name)
    validate(config, keys.table())
    config.data.fake = True
    built = build(config)
    shape = (config.batch_size, *built.dataset.image_shape)
    assert len(built.dataset.class_names) == CLASSES.get(config.data.name, 10)
    if len(shape) == 5:
        assert shape[1] == config.model.time_steps
    state = jax.eval_shape(built.initial_state)
    batch = {'image': jax.ShapeDtypeStruct(shape, np.uint8), 'label': jax.ShapeDtypeStruct(shape[:1], np.int32)}
    after = built.train_step.trace(state, batch).out_info
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)


# Of VGGs, which many other tests train, one on recordings and one with a head are enough.
@pytest.mark.deep
@pytest.mark.parametrize('name', [*PAPER, 'digits_events', 'fashion_mnist_mlp'])
def test_two_steps_at_reduced_size(name):
    config = reduce(get(name))
    built = build(config)
    state = built.initial_state()
    before = jax.tree.map(np.array, state.params)
    step = built.train_step
    rng = np.random.default_rng(0)
    for _ in range(2):
        images = rng.integers(0, 256, (4, *built.dataset.image_shape)).astype(np.uint8)
        batch = {'image': images, 'label': np.arange(4, dtype=np.int32)}
        state = step(state, sharding.put_batch(batch, built.mesh))
    assert int(state.step) == 2
    assert np.isfinite(float(state.epoch.loss))
    changed = jax.tree.map(lambda old, new: bool(np.any(old != np.asarray(new))), before, state.params)
    leaves = jax.tree.leaves(changed)
    assert sum(leaves) > 0.9 * len(leaves)
    assert all(math.isfinite(value) and value > 0 for value in map(float, jax.tree.leaves(state.surrogate)))


@pytest.mark.parametrize('name', ['mean_output', 'tet', 'sum_output'])
def test_label_smoothing_moves_a_share_to_all_classes(name):
    config = reduce(get('digits'))
    config.loss.name = name
    config.loss.label_smoothing = 0.2
    smoothed = make_loss(config.loss, classes=10)
    config.loss.label_smoothing = 0.0
    plain = make_loss(config.loss, classes=10)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 10)), jnp.float32)
    labels = jnp.arange(5)
    everywhere = sum(plain(logits, jnp.full(5, label)) for label in range(10)) / 10
    np.testing.assert_allclose(smoothed(logits, labels), 0.8 * plain(logits, labels) + 0.2 * everywhere, rtol=1e-5)


def test_mixing_is_a_function_of_seed_and_step():
    config = reduce(get('digits'))
    assert make_mix(config.data, config.seed, classes=10) is None
    config.data.mixup_alpha = 1.0
    mix, images = make_mix(config.data, config.seed, classes=10), jnp.arange(4.0).reshape(4, 1, 1, 1)
    assert mix is not None
    shares = [float(mix(images, jnp.arange(4), jnp.asarray(step))[1][0, 0]) for step in (0, 0, 1, 2)]
    assert shares[0] == shares[1]
    assert len(set(shares)) == 3
    config.seed = 1
    other = make_mix(config.data, config.seed, classes=10)
    assert other is not None
    assert float(other(images, jnp.arange(4), jnp.asarray(0))[1][0, 0]) != shares[0]


@pytest.mark.trains
@pytest.mark.deep
def test_a_dry_run_with_all_options(tmp_path):
    """Fake data from start to end: TET with label smoothing, mixup and CutMix, Adam, a policy and cutout."""
    config = reduce(get('cifar100_vgg16'))
    config.model.time_steps = 2
    config.loss.name = 'tet'
    config.loss.label_smoothing = 0.1
    config.optim.name = 'adam'
    config.data.mixup_alpha = 0.2
    config.data.cutmix_alpha = 1.0
    config.data.policy = 'randaugment'
    config.data.cutout = 8
    result = loop.run(config, tmp_path / 'run')
    assert result['step'] == 2
    again = loop.run(config, tmp_path / 'run', 'eval')
    assert again['examples'] == 2


@pytest.mark.trains
def test_a_run_with_the_pallas_kernels_is_the_run_with_the_scan(tmp_path, tiny_config):
    """Interpreted here; the same workdir may go on with either."""
    tiny_config.epochs = 1
    tiny_config.model.stages = ((4,), (4,))
    rows = []
    for implementation in ('scan', 'pallas'):
        tiny_config.neuron.implementation = implementation
        loop.run(tiny_config, tmp_path / implementation)
        rows += [row for row in metrics.read(tmp_path / implementation) if row['event'] == 'epoch']
    for name in ('train_loss', 'test_loss', 'test_accuracy'):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-3)
    for name in ('chi', 'firing_rate'):
        np.testing.assert_allclose(list(rows[0][name].values()), list(rows[1][name].values()), rtol=1e-3)
    tiny_config.neuron.implementation = 'scan'
    assert loop.run(tiny_config, tmp_path / 'pallas')['step'] == 11


def test_pallas_kernels_are_for_one_device(monkeypatch, tiny_config):
    tiny_config.neuron.implementation = 'pallas'
    monkeypatch.setattr(sharding, 'make_mesh', lambda *_: types.SimpleNamespace(size=4))
    with pytest.raises(UserError, match=r'implementation is pallas, whose kernels 4 devices cannot share'):
        build(tiny_config)


@pytest.mark.trains
def test_a_summary_needs_neither_data_nor_a_run(tmp_path, capsys):
    config = get('imagenet_sew_resnet34')
    result = loop.run(config, tmp_path / 'run', 'summary')
    assert result['parameters'] == 21_797_672
    assert '36 beta layers' in capsys.readouterr().out
    assert not (tmp_path / 'run').exists()
    assert {get(name).data.name for name in NAMES} <= {name for name, line in data.DATASETS.items() if line.kind}
