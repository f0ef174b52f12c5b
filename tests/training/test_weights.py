"""What a run starts from: weights of another run or of a file, checked against its network; and that file."""

import hashlib
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cpng_jax.control.cpng import CPNGState
from cpng_jax.models.vgg import VGG
from cpng_jax.runtime import arrays, metrics, npz
from cpng_jax.runtime.checkpoint import Checkpoints
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.signals import Stopped
from cpng_jax.training import loop, older_states, setup, weights
from cpng_jax.training.setup import build
from tests.runs import assert_bitwise_equal, epoch_rows, final_state, stopped_at

NAMES = [
    'params/conv01/conv/conv/kernel',
    'params/conv01/norm/bias',
    'params/conv01/norm/scale',
    'params/conv02/conv/conv/kernel',
    'params/conv02/norm/bias',
    'params/conv02/norm/scale',
    'params/output/dense/bias',
    'params/output/dense/kernel',
    'batch_stats/conv01/norm/norm/mean',
    'batch_stats/conv01/norm/norm/var',
    'batch_stats/conv02/norm/norm/mean',
    'batch_stats/conv02/norm/norm/var',
    'surrogate/conv01/lif/beta',
    'surrogate/conv02/lif/beta',
    'scale/conv01/lif/scale',
    'scale/conv02/lif/scale',
]


def state_of(config, step):
    """A state as after training: no array has the value that it starts with."""
    state = build(config).initial_state()
    return state.replace(step=jnp.int32(step), **jax.tree.map(lambda leaf: leaf + step / 100, state.variables))


def save(config, workdir, accuracies, layout=lambda state: state):
    """A run that was not trained, but has checkpoints: accuracy by step."""
    checkpoints = Checkpoints(workdir, keep=3)
    for step, accuracy in accuracies.items():
        checkpoints.save(step, layout(state_of(config, step)), {'test_accuracy': accuracy}, {'test_accuracy': accuracy})
    checkpoints.close()
    return workdir


def content(folder):
    """Each file in a folder, with when it was written and what is in it."""
    return {
        str(path): (path.stat().st_mtime_ns, path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest())
        for path in pathlib.Path(folder).rglob('*')
    }


def damage(folder):
    for path in folder.rglob('*'):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def assert_same_arrays(found, variables):
    expected = weights.flat(variables)
    assert list(found) == list(expected)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_a_start_has_the_weights_of_the_latest_or_the_best_checkpoint(tmp_path, tiny_config):
    source = save(tiny_config, tmp_path / 'source', {1: 0.3, 2: 0.5, 3: 0.5, 4: 0.2})
    (source / 'checkpoints' / '5.orbax-checkpoint-tmp-7').mkdir()  # as of a run that is writing it at the moment
    before = content(source)
    expected = {step: state_of(tiny_config, step).variables for step in (3, 4)}
    tiny_config.init_from, tiny_config.seed = str(source), 8
    built = build(tiny_config)
    for which, step in (('latest', 4), ('best', 3)):
        tiny_config.init_checkpoint = which
        start = weights.start(tiny_config, built.state_shapes.variables, tmp_path / 'new')
        assert start is not None
        assert start.message() == f'starts from {source}, checkpoint of step {step}: 16 arrays, with beta'
        assert start.row()['source_step'] == step
        state = built.initial_state(start.given)
        assert_same_arrays(start.given, expected[step])
        assert_same_arrays(start.given, state.variables)
        assert int(state.step) == 0
        assert isinstance(state.control, CPNGState)
        assert all(np.isinf(leaf) for leaf in jax.tree.leaves(state.control))
    assert content(source) == before, 'reading must not write: the run may be trained at the moment'


def test_what_is_skipped_starts_as_the_network_has_it(tmp_path, tiny_config):
    source = save(tiny_config, tmp_path / 'source', {1: 0.3})
    tiny_config.init_from, tiny_config.init_skip, tiny_config.seed = str(source), 'output, surrogate', 8
    built = build(tiny_config)
    start = weights.start(tiny_config, built.state_shapes.variables)
    assert start is not None
    skipped = [*NAMES[6:8], *NAMES[12:14]]
    assert start.left == skipped
    assert start.message().endswith(f'12 arrays, without beta\nleft at their own initial values: {", ".join(skipped)}')
    own, state = (weights.flat(built.initial_state(given).variables) for given in (None, start.given))
    for name, leaf in state.items():
        np.testing.assert_array_equal(leaf, own[name] if name in skipped else start.given[name], err_msg=name)


@pytest.mark.parametrize('changes', [{'enabled': False}, {'rule': 'fixed'}])
def test_beta_is_that_of_the_configuration_where_no_rule_sets_it(tmp_path, tiny_config, changes):
    tiny_config.init_from = str(save(tiny_config, tmp_path / 'source', {1: 0.3}))
    tiny_config.cpng.update(changes)
    tiny_config.cpng.beta_init, tiny_config.cpng.scale_init = 3.0, 0.25
    built = build(tiny_config)
    start = weights.start(tiny_config, built.state_shapes.variables)
    assert start is not None
    state = built.initial_state(start.given)
    assert set(map(float, jax.tree.leaves(state.surrogate))) == {3.0}
    assert set(map(float, jax.tree.leaves(state.scale))) == {0.25}
    assert 'without beta' in start.message()


def test_the_weights_of_version_0_1_are_read(tmp_path, tiny_config):
    source = save(tiny_config, tmp_path / 'old', {2: 0.3}, layout=older_states.before)
    saved = arrays.read_checkpoint(source, weights.COLLECTIONS)
    assert saved.step == 2
    expected = state_of(tiny_config, 2).variables
    del expected['scale']
    assert_same_arrays(saved.arrays, expected)


@pytest.mark.parametrize('heights', [True, False])
def test_heights_are_taken_where_there_are_some(tmp_path, tiny_config, heights):
    """Weights from before there were any, an entry of the zoo say, leave them as the configuration has them."""
    file, state = tmp_path / 'weights.npz', state_of(tiny_config, 1)
    weights.write(file, {name: tree for name, tree in state.variables.items() if heights or name != 'scale'})
    tiny_config.init_from, tiny_config.cpng.rule, tiny_config.cpng.scale_init = str(file), 'gain', 0.5
    built = build(tiny_config)
    start = weights.start(tiny_config, built.state_shapes.variables)
    assert start is not None
    assert start.message() == f'starts from {file}: {16 if heights else 14} arrays, with beta'
    after = built.initial_state(start.given)
    assert set(map(float, jax.tree.leaves(after.scale))) == {np.float32(1.01).item() if heights else 0.5}
    assert set(map(float, jax.tree.leaves(after.surrogate))) == {np.float32(1.01).item()}


def test_a_damaged_checkpoint_is_passed_over_and_stays(tmp_path, tiny_config):
    source = save(tiny_config, tmp_path / 'source', {1: 0.3, 2: 0.4})
    damage(source / 'checkpoints' / '2' / 'state')
    before = content(source)
    with pytest.warns(
        UserWarning, match=r'Step 1 of .* is taken, since the checkpoint of step 2 cannot be read \(.+\)'
    ):
        assert arrays.read_checkpoint(source, weights.COLLECTIONS).step == 1
    damage(source / 'checkpoints' / '1' / 'state')
    with pytest.raises(UserError, match=r'No checkpoint in .*: the checkpoint of step 2 .*; the checkpoint of step 1 '):
        arrays.read_checkpoint(source, weights.COLLECTIONS)
    assert content(source).keys() == before.keys()
    with pytest.raises(UserError, match=r'There is no checkpoint in .*nowhere: train at least one epoch first'):
        arrays.read_checkpoint(tmp_path / 'nowhere', weights.COLLECTIONS)


def test_a_checkpoint_that_is_removed_while_it_is_read_is_passed_over(tmp_path, tiny_config, monkeypatch):
    """As by a run under way: TensorStore makes zeros of what has gone."""
    source = save(tiny_config, tmp_path / 'source', {1: 0.3, 2: 0.4})
    read = arrays._read_state

    def read_too_late(folder, parts):
        found = read(folder, parts)
        if folder.parent.name == '2':
            shutil.rmtree(folder.parent)
        return found

    monkeypatch.setattr(arrays, '_read_state', read_too_late)
    with pytest.warns(
        UserWarning, match=r'Step 1 .* since the checkpoint of step 2 cannot be read \(it was removed mean'
    ):
        assert arrays.read_checkpoint(source, weights.COLLECTIONS).step == 1


def test_the_command_writes_a_file_that_the_network_runs_on(tmp_path, tiny_config, capsys):
    source, file = save(tiny_config, tmp_path / 'source', {1: 0.5, 2: 0.4}), tmp_path / 'new' / 'weights.npz'
    assert weights.main([f'--workdir={source}', f'--out={file}', '--checkpoint=best']) == 0
    assert capsys.readouterr().out == f'{file}: 16 arrays of {source}, checkpoint of step 1\n'
    with np.load(file, allow_pickle=False) as plain:
        assert sorted(plain.files) == sorted(NAMES)
    built, state = build(tiny_config), state_of(tiny_config, 1)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 1)), jnp.float32)
    variables = weights.read(file)
    np.testing.assert_array_equal(built.model.apply(variables, images), built.model.apply(state.variables, images))
    again = tmp_path / 'again.npz'
    weights.write(again, state.variables)
    assert npz.read(again).keys() == npz.read(file).keys()
    tiny_config.init_from = str(again)
    start = weights.start(tiny_config, built.state_shapes.variables)
    assert start is not None
    assert_same_arrays(start.given, state.variables)
    assert start.message() == f'starts from {again}: 16 arrays, with beta'
    for arguments, sentence in (
        ([f'--workdir={source}', f'--out={file}'], f'weights: {file} is there already and stays as it is'),
        (
            [f'--workdir={source}', '--out=weights'],
            "The weights file is 'weights', expected a name that ends with .npz.",
        ),
        ([f'--workdir={tmp_path}', f'--out={tmp_path / "b.npz"}'], f'There is no checkpoint in {tmp_path}: train'),
        ([f'--workdir={source}', f'--out={again / "b.npz"}'], 'Cannot write'),
    ):
        assert weights.main(arguments) == 2
        assert sentence in capsys.readouterr().err
    assert not list(tmp_path.rglob('*.tmp'))


@pytest.mark.parametrize(
    'content',
    [b'', b'no zip', b'PK\x05\x06' + bytes(18), np.array([{}], dtype=object)],
    ids=['empty', 'text', 'an empty archive', 'objects'],
)
def test_a_file_of_something_else_is_refused_in_a_sentence(tmp_path, tiny_config, content):
    file = tmp_path / 'weights.npz'
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.savez(file, a=content)
    tiny_config.init_from = str(file)
    with pytest.raises(
        UserError, match=r'weights.npz cannot be read \(.+\); expected a .npz file|is missing, expected'
    ):
        weights.start(tiny_config, build(tiny_config).state_shapes.variables)


def variables_of(**changes):
    """Shapes of a small network."""
    model = VGG(10, ((4,), (6,)), time_steps=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    return {part: shapes[part] for part in weights.COLLECTIONS} | changes


def ones(variables):
    return {name: np.ones(leaf.shape, leaf.dtype) for name, leaf in weights.flat(variables).items()}


SCALE = 'scale/conv02/lif/scale'
BETA, HEAD, KERNEL = 'surrogate/conv01/lif/beta', 'params/output/dense/bias', 'params/conv01/conv/conv/kernel'


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        (
            {HEAD: np.ones(100, np.float32)},
            f'config.init_from: {HEAD} is 100, expected 10 for this network, in runs/a. config.init_skip=output leaves '
            'that layer at its own initial values.',
        ),
        ({KERNEL: None}, f'{KERNEL} is missing, expected 3 x 3 x 1 x 4, in runs/a. config.init_skip=*/kernel leaves '),
        (
            {'params/fc/dense/bias': np.ones(3, np.float32)},
            'params/fc/dense/bias is 3, but this network has none, in runs/a. config.init_skip=fc leaves that layer',
        ),
        ({KERNEL: np.ones((3, 3, 1, 4), np.int32)}, f'{KERNEL} has the dtype int32, expected float32, in runs/a.'),
        ({KERNEL: np.full((3, 3, 1, 4), np.nan)}, f'{KERNEL} has values that are not finite, in runs/a.'),
        (
            {BETA: np.zeros(())},
            f'{BETA} has values that are not above 0, in runs/a. config.init_skip=surrogate,scale st',
        ),
        (
            {SCALE: None},
            f'{SCALE} is missing, expected a scalar, in runs/a. config.init_skip=surrogate,scale starts from',
        ),
        ({BETA: np.ones(4)}, f'{BETA} is 4, expected a scalar for this network, in runs/a. config.init_skip=surrogate'),
    ],
    ids=['head', 'missing', 'too many', 'integers', 'nan', 'beta', 'a height', 'beta of channels'],
)
def test_the_first_array_that_does_not_fit_is_named(changes, sentence):
    variables = variables_of()
    found = {name: array for name, array in (ones(variables) | changes).items() if array is not None}
    with pytest.raises(UserError) as error:
        weights.fitted(found, variables, source='runs/a')
    assert sentence in str(error.value)


def test_arrays_take_the_dtype_of_the_network_and_channels_the_beta_of_their_layer():
    surrogate = {'conv01': {'lif': {'beta': jax.ShapeDtypeStruct((4,), jnp.float32)}}}
    layers = variables_of(surrogate={'conv01': {'lif': {'beta': jax.ShapeDtypeStruct((), jnp.float32)}}})
    found = {name: 2 * array.astype(np.float64) for name, array in ones(layers).items()}
    start = weights.fitted(found, variables_of(surrogate=surrogate))
    assert {array.dtype for array in start.given.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(start.given[BETA], [2, 2, 2, 2])
    assert start.message().endswith(f'each channel starts from the beta of its layer: {BETA}')
    with pytest.raises(
        UserError, match=r"config\.init_skip is '\*', which leaves nothing of the weights to start from"
    ):
        weights.fitted(found, layers, skip='*')


@pytest.mark.parametrize(
    ('patterns', 'expected'),
    [
        ('', []),
        ('output', NAMES[6:8]),
        ('params/output/', NAMES[6:8]),
        ('output/dense/bias', NAMES[6:7]),
        (' surrogate, output/dense/bias ', [NAMES[6], *NAMES[12:14]]),
        ('conv01', [*NAMES[:3], *NAMES[8:10], NAMES[12], NAMES[14]]),
        ('scale', NAMES[14:]),
        ('*/bias', [NAMES[1], NAMES[4], NAMES[6]]),
        ('conv0?/norm/scale', [NAMES[2], NAMES[5]]),
        ('*', NAMES),
    ],
)
def test_a_pattern_is_a_name_or_the_beginning_of_one(patterns, expected):
    assert weights.matching(patterns, NAMES) == set(expected)


@pytest.mark.parametrize(('pattern', 'near'), [('outptu', 'output'), ('conv', 'conv0'), ('param', 'params')])
def test_a_pattern_that_matches_nothing_is_an_error(pattern, near):
    with pytest.raises(
        UserError, match=rf"config\.init_skip has '{pattern}', which nothing matches; the nearest is '{near}"
    ):
        weights.matching(f'surrogate,{pattern}', NAMES)


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        (
            {'init_skip': 'output'},
            "config.init_skip is 'output', which has no effect with config.init_from '': leave it",
        ),
        ({'init_checkpoint': 'best'}, "config.init_checkpoint is 'best', which has no effect with config.init_from ''"),
        (
            {'init_from': 'nowhere'},
            "config.init_from is 'nowhere', which is neither the folder of a run nor a weights f",
        ),
        (
            {'init_from': 'train.py', 'init_checkpoint': 'best'},
            'a weights file, which has one state alone: leave init_c',
        ),
        (
            {'init_from': 'tests/../configs'},
            "config.init_from is 'tests/../configs', the workdir itself: a run goes on ",
        ),
        (
            {'init_from': 'tests'},
            'There is no checkpoint in tests: train at least one epoch first, or name another run.',
        ),
    ],
    ids=lambda value: ','.join(value) if isinstance(value, dict) else '',
)
def test_what_cannot_be_started_from_is_a_sentence_before_anything_is_written(tmp_path, tiny_config, changes, sentence):
    tiny_config.update(changes)
    workdir = 'configs' if 'configs' in tiny_config.init_from else tmp_path / 'run'
    with pytest.raises(UserError) as error:
        loop.run(tiny_config, workdir)
    assert sentence in str(error.value)
    assert not (tmp_path / 'run').exists()


@pytest.mark.trains
def test_a_run_from_weights_goes_on_bit_for_bit_when_they_are_gone(tmp_path, tiny_config, monkeypatch, capsys):
    source = save(tiny_config, tmp_path / 'source', {1: 0.3})
    tiny_config.epochs, tiny_config.init_from, tiny_config.init_skip = 1, str(source), 'output'
    loop.run(tiny_config, tmp_path / 'whole')
    out = capsys.readouterr().out
    assert f'starts from {source}, checkpoint of step 1: 14 arrays, with beta\n' in out
    (row,) = (row for row in metrics.read(tmp_path / 'whole') if row['event'] == 'start')
    assert (row['step'], row['source_step'], row['left']) == (0, 1, NAMES[6:8])
    assert set(epoch_rows(tmp_path / 'whole')[0]['beta'].values()) == {np.float32(1.01).item()}

    with stopped_at(6), pytest.raises(Stopped, match='SIGTERM: saved at step 5'):
        loop.run(tiny_config, tmp_path / 'parts')
    shutil.rmtree(source)
    with monkeypatch.context() as patch:
        patch.setattr(setup.weights, 'replaced', lambda *_: pytest.fail('a run that goes on makes no initial weights'))
        loop.run(tiny_config, tmp_path / 'parts')
        loop.run(tiny_config, tmp_path / 'parts', 'eval')
    assert_bitwise_equal(final_state(tiny_config, tmp_path / 'whole'), final_state(tiny_config, tmp_path / 'parts'))


@pytest.mark.trains
def test_a_run_whose_only_checkpoint_is_damaged_starts_from_the_weights_again(tmp_path, tiny_config, capsys):
    source = save(tiny_config, tmp_path / 'source', {1: 0.3})
    tiny_config.epochs, tiny_config.init_from = 1, str(source)
    save(tiny_config, tmp_path / 'run', {5: 0.3})
    damage(tmp_path / 'run' / 'checkpoints' / '5' / 'metrics')
    with pytest.warns(UserWarning, match=r'The checkpoint of step 5 cannot be read \(.+\); moved to '):
        loop.run(tiny_config, tmp_path / 'run')
    assert f'starts from {source}, checkpoint of step 1: 16 arrays, with beta\n' in capsys.readouterr().out
    assert set(epoch_rows(tmp_path / 'run')[0]['beta'].values()) == {np.float32(1.01).item()}


def test_a_setup_traces_the_network_once(tiny_config, monkeypatch):
    calls, dense = [], nn.Dense.__call__
    monkeypatch.setattr(nn.Dense, '__call__', lambda self, x: calls.append(1) or dense(self, x))
    build(tiny_config)
    assert len(calls) == 1
