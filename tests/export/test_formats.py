"""Trained networks as files: what is exported, what other programs make of it, and what cannot be."""

import hashlib
import json
import re
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from configs import digits
from cpng_jax.export import nir_read, source
from cpng_jax.export.formats import FORMATS, export
from cpng_jax.models import registry
from cpng_jax.models.inputs import network_input
from cpng_jax.runtime import npz, safetensors, workdir
from cpng_jax.runtime.checkpoint import Checkpoints
from cpng_jax.runtime.config import flatten
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import weights
from cpng_jax.training.setup import build
from tests import forked

CLASSES = [f'{digit}' for digit in range(10)]


def make_entry(folder, config):
    """An entry of a zoo whose network has not been trained."""
    module = registry.build(config, len(CLASSES))
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    npz.write(folder / 'weights.npz', {name: np.asarray(leaf) for name, leaf in weights.flat(variables).items()})
    card = {
        'format': 1,
        'name': folder.name,
        'config': flatten(config),
        'classes': CLASSES,
        'image_shape': [8, 8, 1],
        'mean': [0.3],
        'std': [0.4],
        'sha256': hashlib.sha256((folder / 'weights.npz').read_bytes()).hexdigest(),
    }
    (folder / 'card.json').write_text(json.dumps(card))
    return folder


@pytest.fixture(scope='module')
def entry(shrink, tmp_path_factory):
    return make_entry(tmp_path_factory.mktemp('zoo') / 'tiny', shrink(digits.get_config()))


@pytest.fixture(scope='module')
def logits(entry):
    """Images, and what the network makes of them."""
    found = source.read(entry)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    module, variables = found.network()
    return images, np.mean(jax.jit(module.apply)(variables, network_input(images, found.mean, found.std)), axis=0)


# In a process that imports what the file beside the program says, and nothing of ours.
ONLY_JAX = """
import json, sys
import numpy
beside = json.load(open('tiny.stablehlo.json'))
exec('\\n'.join(beside['run']))
assert logits.shape == (1, 10) and str(logits.dtype) == 'float32'
numpy.save('logits.npy', network.call(numpy.load('images.npy')))
rooms = {name.partition('.')[0] for name in sys.modules}
assert not rooms & {'flax', 'optax', 'cpng_jax', 'orbax'}, rooms
"""


@pytest.mark.processes
def test_a_program_of_stablehlo_runs_where_there_is_only_jax_for_any_number_of_images(entry, logits, tmp_path):
    images, expected = logits
    _, beside = export(entry, 'stablehlo', out=tmp_path / 'tiny.stablehlo')
    np.save(tmp_path / 'images.npy', images)
    done = subprocess.run([sys.executable, '-c', ONLY_JAX], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / 'logits.npy'), expected, atol=1e-5)
    words = json.loads(beside.read_text())
    assert words['classes'] == CLASSES and words['platforms'] == ['cpu', 'cuda', 'tpu']
    assert words['takes'] == {'dtype': 'uint8', 'shape': ['b', 8, 8, 1]}
    assert words['returns'] == {'dtype': 'float32', 'shape': ['b', 10]}


def test_a_file_of_nir_has_what_its_reader_needs(entry, logits, tmp_path):
    images, expected = logits
    network = nir_read.read(export(entry, 'nir', out=tmp_path / 'tiny.nir')[0])
    found = network.metadata
    assert json.loads(found['classes']) == CLASSES and found['weights'] == 'tiny of the zoo'
    mean, std = (json.loads(found[name]) for name in ('mean', 'std'))
    frames = nir_read.frames_of(network_input(images, mean, std), int(found['time_steps']))
    np.testing.assert_allclose(jnp.mean(network(frames).outputs, axis=0), expected, atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_a_run_starts_from_safetensors(entry, tiny_config, tmp_path, dtype):
    (path,) = export(entry, 'safetensors', out=tmp_path / 'tiny.safetensors', dtype=dtype)
    expected = npz.read(entry / 'weights.npz')
    with safe_open(path, 'np') as file:
        assert {*file.keys()} == {*expected} and file.get_tensor('surrogate/conv01/lif/beta').shape == ()
        assert file.get_tensor('params/conv01/conv/conv/kernel').dtype == dtype
        assert json.loads(file.metadata()['config']) == flatten(source.read(entry).config)
        assert json.loads(file.metadata()['time_steps']) == 2
    tiny_config.init_from = str(path)
    shapes = jax.eval_shape(registry.build(tiny_config, 10).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    start = weights.start(tiny_config, shapes)
    assert start.source == str(path) and start.given.keys() == expected.keys()
    for name, array in start.given.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[name].astype(dtype), err_msg=name)


def test_damaged_safetensors_are_named(tmp_path):
    (tmp_path / 'a.safetensors').write_bytes(b'nothing of the kind')
    with pytest.raises(UserError, match=r'a\.safetensors cannot be read \(.+\); expected a \.safetensors file of arr'):
        safetensors.read(tmp_path / 'a.safetensors')


def test_a_run_is_exported_from_its_latest_or_its_best_checkpoint_into_its_folder(tiny_config, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    workdir.write_json(folder / 'config.json', flatten(tiny_config))
    state = build(tiny_config).initial_state()
    checkpoints = Checkpoints(folder, keep=2)
    for step, accuracy in ((1, 0.5), (2, 0.3)):
        moved = state.replace(step=jnp.int32(step), **jax.tree.map(lambda leaf, by=step: leaf + by, state.variables))
        checkpoints.save(step, moved, {'test_accuracy': accuracy}, {'test_accuracy': accuracy})
    checkpoints.close()
    before = weights.flat(state.variables)
    for which, step in (('latest', 2), ('best', 1)):
        (path,) = export(folder, 'safetensors', which=which)
        assert path == folder / 'export' / f'run-{step}.safetensors'
        for name, array in safetensors.read(path).items():
            np.testing.assert_array_equal(array, np.asarray(before[name]) + step, err_msg=name)
    with pytest.raises(UserError, match=r'run-2\.safetensors is there already and stays as it is: remove it, or'):
        export(folder, 'safetensors')


@pytest.mark.parametrize(
    ('changes', 'arguments', 'sentence'),
    [
        ({'dtype': 'bfloat16'}, {'to': 'nir'}, 'config.dtype is bfloat16, expected float32 for --to=nir: readers comp'),
        ({'neuron.kind': 'ds_atgo'}, {'to': 'nir'}, 'conv01/lif has neurons of the kind ds_atgo, which other programs'),
        ({}, {'to': 'nir', 'dtype': 'float16'}, '--dtype is float16, which is for --to=safetensors; --to=nir keeps'),
        ({}, {'to': 'nir', 'which': 'best'}, "--checkpoint is 'best' and --workdir "),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_sentence_and_nothing_is_written(
    entry, tiny_config, tmp_path, monkeypatch, changes, arguments, sentence
):
    tiny_config.update_from_flattened_dict(changes)
    folder = make_entry(tmp_path / 'zoo' / 'tiny', tiny_config) if changes else entry
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    with pytest.raises(UserError, match=f'^{re.escape(sentence)}'):
        export(folder, **arguments)
    assert not list((tmp_path / 'here').iterdir())


@pytest.mark.parametrize(('to', 'package'), [('nir', 'nir'), ('stablehlo', 'flatbuffers'), ('safetensors',) * 2])
def test_a_missing_package_is_named_with_what_installs_it(entry, tmp_path, to, package):
    assert to in FORMATS
    expected = f'--to={to} needs the package {package}, which is not installed: pip install {package}, or cpng_jax with'
    with mock.patch.dict(sys.modules, {package: None}), pytest.raises(UserError, match=f'^{expected}'):
        export(entry, to, out=tmp_path / 'file')


@pytest.mark.processes
@pytest.mark.parametrize(
    ('arguments', 'code', 'words'),
    [
        (['--to=safetensors', '--workdir={entry}', '--out={out}'], 0, '{out}\n'),
        (['--to=onnx', '--workdir={entry}'], 2, 'flag --to=onnx: value should be one of <nir|stablehlo|safetensors>'),
        (['--workdir={none}'], 2, 'There is no run in {none}: it has no config.json, nor a card.json as entries of th'),
    ],
)
def test_the_program_writes_or_says_what_is_wrong(entry, tmp_path, arguments, code, words):
    names = {'entry': entry, 'none': tmp_path / 'none', 'out': tmp_path / 'tiny.safetensors'}
    process = forked.run('-m', 'cpng_jax.export', *(each.format(**names) for each in arguments))
    assert process.returncode == code, process.stderr
    assert words.format(**names) in (process.stderr if code else process.stdout)
    assert 'Traceback' not in process.stderr
