"""Conversion of ANNs: each step against numpy or against what it promises, and the program from end to end."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given
from hypothesis import strategies as st

from configs import digits
from cpng_jax.convert import convert as conversion
from cpng_jax.convert import thresholds
from cpng_jax.convert.calibration import correct_biases, correct_potentials
from cpng_jax.convert.convert import Options, convert, finished, read
from cpng_jax.convert.means import averaged, make_measure
from cpng_jax.convert.network import activations, folded, parameter, spiking_config, spiking_variables, with_params
from cpng_jax.convert.weight_calibration import Training, calibrate_weights, linear
from cpng_jax.models import registry
from cpng_jax.nn.layers import Conv
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import weights
from cpng_jax.training.evaluate import evaluate_checkpoint
from cpng_jax.training.setup import build
from tests import forked
from tests.runs import run_shared

NETWORKS = {
    'vgg': {'stages': ((4,), (6, 6)), 'head': (12,), 'head_norm': True},
    'resnet20': {'blocks': (1, 1), 'widths': (4, 8), 'stem_width': 4, 'head': (12,)},
}


def ann_config(name='vgg', kind='relu'):
    config = digits.get_config()
    if name != 'vgg':
        del config.model.stages, config.model.head
    config.model.name = name
    with config.unlocked():
        config.model.update(NETWORKS[name])
    config.neuron.kind, config.model.time_steps = kind, 1
    return config


def trained(config, seed=0):
    """A network with parameters and running statistics that are none of the initial ones."""
    model = registry.build(config, 10)
    rng = np.random.default_rng(seed)
    example = jnp.zeros((1, 8, 8, 1))
    variables = jax.jit(model.init)(jax.random.key(seed), example)
    flat = flatten_dict(variables)
    for path, leaf in flat.items():
        if path[-1] in ('scale', 'var'):
            flat[path] = jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        elif path[-1] in ('bias', 'mean'):
            flat[path] = jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32)
    images = jnp.asarray(rng.normal(size=(16, 8, 8, 1)), jnp.float32)
    return model, unflatten_dict(flat), images


@pytest.fixture(scope='module', params=[*NETWORKS])
def pair(request):
    """An ANN and the network that spikes in its place, with thresholds that clip little."""
    config = ann_config(request.param)
    ann, variables, images = trained(config)
    snn = registry.build(spiking_config(config, 8), 10)
    converted = spiking_variables(snn, folded(ann, variables, images[:1]), images[:1])
    layers = activations(snn, images[:1])
    answers = make_measure(ann)(variables, images).answers
    found = {f'{layer.path}/threshold': jnp.max(answers[layer.path]) for layer in layers}
    return ann, variables, snn, with_params(converted, found), layers, images, answers


@pytest.mark.parametrize('name', [*NETWORKS])
def test_folded_norms_give_the_same_answers(name):
    config = ann_config(name)
    model, variables, images = trained(config)
    params = folded(model, variables, images[:1])
    config.norm.kind = 'bias'
    plain = {'params': unflatten_dict({tuple(path.split('/')): leaf for path, leaf in params.items()})}
    without = registry.build(config, 10).apply(plain, images)
    np.testing.assert_allclose(without, model.apply(variables, images), rtol=1e-4, atol=1e-5)


def test_layers_are_those_of_the_ann_with_the_weights_before_them(pair):
    ann, _, _, _, layers, images, answers = pair
    assert activations(ann, images[:1]) == layers
    assert [layer.path for layer in layers] == sorted(answers)  # by their depth
    assert len({layer.weights for layer in layers}) == len(layers)
    assert not any('shortcut' in layer.weights for layer in layers)


def test_long_enough_the_network_that_spikes_answers_as_the_ann(pair):
    ann, variables, _, converted, layers, images, answers = pair
    long = registry.build(spiking_config(ann_config('vgg' if 'conv01/lif' in answers else 'resnet20'), 512), 10)
    found = make_measure(long)(converted, images)
    for layer in layers:
        largest = np.max(answers[layer.path])
        np.testing.assert_allclose(found.answers[layer.path], answers[layer.path], atol=0.03 * largest)
    logits = jnp.mean(long.apply(converted, images), 0)
    np.testing.assert_allclose(logits, ann.apply(variables, images)[0], atol=0.1)


def test_the_first_layer_of_qcfs_is_exact_at_as_many_steps_as_levels():
    config = ann_config(kind='qcfs')
    ann, variables, images = trained(config)
    snn = registry.build(spiking_config(config, config.neuron.levels), 10)
    converted = spiking_variables(snn, folded(ann, variables, images[:1]), images[:1])
    converted = with_params(converted, {'conv01/lif/threshold': 8.0, 'conv01/lif/start': 4.0})
    answers, spiking = (
        make_measure(*of)(*on).answers for of, on in (((ann,), (variables, images)), ((snn,), (converted, images)))
    )
    same = np.isclose(spiking['conv01/lif'], answers['conv01/lif'], atol=1e-5)
    assert same.mean() > 0.999  # a potential within rounding of the threshold may fall on either side
    assert np.unique(answers['conv01/lif']).size > 1


def test_means_over_time_are_those_of_what_each_layer_is_given(pair):
    _, _, snn, converted, layers, images, _ = pair
    found = make_measure(snn)(converted, images)
    first = layers[0]
    kernel = parameter(converted, f'{first.weights}/kernel')
    bias = parameter(converted, f'{first.weights.removesuffix("conv/conv")}norm/bias')
    expected = linear(found.inputs[first.weights], kernel, found.answers[first.path].shape) + bias
    np.testing.assert_allclose(found.currents[first.path], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.inputs[layers[2].weights], found.answers[layers[1].path], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('edge', [1, 3])
@pytest.mark.parametrize('size', [7, 8])
def test_linear_is_the_convolution_of_the_layer(stride, edge, size):
    x = jax.random.normal(jax.random.key(0), (1, 2, size, size, 3))
    layer = Conv(4, edge, stride)
    variables = layer.init(jax.random.key(1), x)
    expected = layer.apply(variables, x)[0]
    got = linear(x[0], variables['params']['conv']['kernel'], expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@given(st.sampled_from([1, 4, 7, 32]), st.integers(0, 100))  # each number of steps compiles
def test_the_threshold_of_least_square_error_is_that_of_brute_force(steps, seed):
    x = np.maximum(np.random.default_rng(seed).normal(0.2, 1, 200), 0)
    candidates = x.max() * (1 - 0.01 * np.arange(95))
    said = [v / steps * np.clip(np.floor(x * steps / v), 0, steps) for v in candidates]
    errors = np.array([np.mean((x - each) ** 2) for each in said])
    found = float(thresholds.mmse(jnp.asarray(x, jnp.float32), steps))
    index = np.argmin(np.abs(candidates - found))
    assert np.isclose(candidates[index], found, rtol=1e-5)
    # Rounding of float32 at the steps of the floor may decide between candidates that are as good.
    assert errors[index] <= errors.min() + 2e-2 * (x.max() / steps) ** 2 + 1e-6


def test_thresholds_are_averaged_over_batches():
    values = [{'a': 1.0}, {'a': 2.0}, {'a': 4.0}]
    assert averaged(values, 0.9) == {'a': pytest.approx(0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4)}


def test_light_calibration_lowers_what_each_channel_is_off(pair):
    _, _, snn, converted, layers, images, answers = pair
    measure = make_measure(snn)
    changed = correct_biases(measure, converted, answers, images, layers)
    before, after = (measure(each, images).answers for each in (converted, changed))
    for layer in layers:
        off = [
            np.abs(np.mean(answers[layer.path] - each[layer.path], axis=tuple(range(answers[layer.path].ndim - 1))))
            for each in (before, after)
        ]
        assert off[1].mean() < off[0].mean(), layer
    # Of the first layer, before which nothing changes, by hand.
    shift = np.mean(answers[layers[0].path] - before[layers[0].path], axis=(0, 1, 2))
    np.testing.assert_allclose(parameter(changed, f'{layers[0].path}/shift'), shift, rtol=1e-4, atol=1e-6)


def test_potentials_at_the_start_lower_what_each_neuron_is_off(pair):
    _, _, snn, converted, layers, images, answers = pair
    measure = make_measure(snn)
    changed = correct_potentials(measure, converted, answers, images, layers, 8)
    before, after = (measure(each, images).answers for each in (converted, changed))
    for layer in layers:
        off = [np.abs(np.mean(answers[layer.path] - each[layer.path], axis=0)) for each in (before, after)]
        assert off[1].mean() < off[0].mean(), layer
    start = 8 * np.mean(answers[layers[0].path] - before[layers[0].path], axis=0)
    np.testing.assert_allclose(parameter(changed, f'{layers[0].path}/start')[0], start, rtol=1e-3, atol=1e-5)


def test_calibrated_weights_lower_the_error_that_they_are_trained_on(pair):
    ann, variables, snn, converted, layers, images, _ = pair
    lines = []
    changed = calibrate_weights(
        make_measure(ann),
        make_measure(snn),
        variables,
        converted,
        [images[:8], images[8:]],
        layers,
        8,
        training=Training(iterations=60, batch_size=8, learning_rate=1e-4),
        key=jax.random.key(0),
        say=lines.append,
    )
    errors = [[float(number) for number in line.partition('square error ')[2].split(', then ')] for line in lines]
    assert len(errors) == len(layers)
    assert all(after <= before for before, after in errors)
    assert np.mean([after < before for before, after in errors]) > 0.5
    moved = [
        np.abs(parameter(changed, f'{each.weights}/kernel') - parameter(converted, f'{each.weights}/kernel')).max()
        for each in layers
    ]
    assert [by > 0 for by in moved] == [after < before for before, after in errors]


def test_what_spikes_already_or_takes_maxima_is_refused():
    with pytest.raises(
        UserError, match='kind of the run is lif, a network that spikes already: expected an ANN, relu or qcfs'
    ):
        spiking_config(digits.get_config(), 8)
    config = digits.get_config()
    config.neuron.kind, config.model.time_steps, config.model.name = 'relu', 1, 'sew_resnet18'
    with pytest.raises(UserError, match='takes the maximum over windows'):
        spiking_config(config, 8)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The run of a small ANN."""
    config = ann_config(kind='qcfs')
    config.model.stages, config.model.head, config.model.head_norm = ((4,), (6,)), (), False
    config.epochs, config.data.per_class, config.batch_size = 2, 32, 64
    workdir = tmp_path_factory.mktemp('ann')
    run_shared(config, workdir)
    return workdir


def test_a_conversion_is_saved_as_a_run_and_made_once(run, tmp_path, monkeypatch):
    options = Options('qcfs')
    ann = read(run, options)
    folder = tmp_path / 'T8'
    row = convert(ann, options, 8, folder, lambda line: None)
    assert row['time_steps'] == 8 and 0 < row['firing_rate'] < 1 and row['operations'] > 0
    config = spiking_config(ann.config, 8)
    assert evaluate_checkpoint(build(config), folder)['test_accuracy'] == row['test_accuracy']
    monkeypatch.setattr(conversion, '_converted', None)  # nothing is made again
    assert convert(ann, options, 8, folder, lambda line: None) == row == finished(folder)
    with pytest.raises(UserError, match='converted with method qcfs, not none: choose another --out'):
        convert(ann, Options('none'), 8, folder, lambda line: None)
    (folder / 'conversion.json').write_text('{')
    with pytest.raises(UserError, match=r'conversion\.json is damaged'):
        finished(folder)


@pytest.mark.parametrize('method', ['calibration_light', 'calibration_advanced'])
def test_each_method_is_about_as_good_as_the_ann_at_many_steps(run, tmp_path, method):
    options = Options(method, images=64, training=Training(iterations=2))
    ann = read(run, options)
    row = convert(ann, options, 64, tmp_path / 'T64', lambda line: None)
    assert row['test_accuracy'] > ann.accuracy - 0.05


def test_diet_snn_starts_from_its_thresholds(shrink, tmp_path):
    config = shrink(digits.get_config())
    config.neuron.kind, config.model.time_steps, config.norm.kind = 'relu', 1, 'none'
    config.optim.learning_rate, config.epochs = 0.01, 1
    run_shared(config, tmp_path / 'ann')
    options = Options('diet', scaling=0.5)
    lines = []
    row = convert(read(tmp_path / 'ann', options), options, 4, tmp_path / 'T4', lines.append)
    assert (row['percentile'], row['scaling']) == (99.7, 0.5) and len(lines) == 2
    config.neuron.kind, config.model.time_steps, config.cpng.enabled = 'diet', 4, False
    config.init_from = str(tmp_path / 'T4')
    state = build(config).initial_state(weights.start(config, build(config).state_shapes.variables).given)
    for line, name in zip(lines, ('conv01', 'conv02'), strict=True):
        found = float(line.partition(': ')[2].split()[0])
        assert float(state.params[name]['lif']['threshold']) == pytest.approx(0.5 * found, rel=1e-3)
        assert float(state.params[name]['lif']['leak']) == 1


def test_the_program_writes_a_table_and_says_what_is_wrong(run, tmp_path):
    out = tmp_path / 'out'
    done = forked.run(
        '-m', 'cpng_jax.convert', f'--workdir={run}', '--method=qcfs', '--time_steps=16,4', f'--out={out}'
    )
    assert done.returncode == 0, done.stderr
    assert {'convert.csv', 'convert.md', 'convert.png', 'T4', 'T16'} <= {path.name for path in out.iterdir()}
    assert [line.split(',')[0] for line in (out / 'convert.csv').read_text().splitlines()] == ['T', 'ANN', '4', '16']
    assert json.loads((out / 'T4' / 'conversion.json').read_text())['method'] == 'qcfs'
    assert f'--config={out / "T16"}/config.json' in done.stdout
    wrong = {
        ('--time_steps=8,0',): "--time_steps is '8,0', expected numbers of steps",
        ('--workdir=nowhere',): 'There is no run in nowhere',
        ('here',): "unexpected argument 'here'",
    }
    for arguments, words in wrong.items():
        done = forked.run('-m', 'cpng_jax.convert', f'--workdir={run}', *arguments)
        assert done.returncode == 2 and words in done.stderr and 'Traceback' not in done.stderr
