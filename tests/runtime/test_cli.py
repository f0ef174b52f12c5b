"""train.py as a user meets it: wrong flags, wrong files, wrong workdirs, each answered by one sentence."""

import os
import pathlib
import subprocess
import sys

import pytest

from configs import digits
from cpng_jax.runtime.config import flatten
from cpng_jax.training import loop
from tests import forked
from tests.runs import epoch_rows

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['--config.cpng.enabld=False'], "config has no key 'cpng.enabld'; the nearest is 'cpng.enabled'."),
        (['--config.epoch=3'], "config has no key 'epoch'; the nearest is 'epochs'."),
        (['--config.model.stags=((4,),)'], "config has no key 'model.stags'; the nearest is 'model.stages'."),
        (['--config.cpng.chi_limit=1.5'], 'config.cpng.chi_limit is 1.5, expected a number of at least 0 and below 1.'),
        (['--config.epochs=many'], "flag --config.epochs=many: invalid literal for int() with base 10: 'many'"),
        (['--config.data.name=minst'], "package.module:function; the nearest is 'mnist'."),
        (['--config.data.name=examples.own_data:image'], "own_data.py has no function 'image'; the nearest is 'images"),
        (['--config.model.name=resnet'], "sew_resnet152; the nearest is 'resnet34'."),
        (['--config.batch_size=2000'], 'config.batch_size is 2000, but there are only 1437 training examples'),
        (['--config.optim.accumulate=3'], 'which cannot be worked off evenly in config.optim.accumulate = 3 parts'),
        (['--config.model.stages=((4,),(4,),(4,),(4,),(4,))'], 'a map of 1 x 1 is smaller than its window of 2'),
        (['--config=configs/nowhere.py'], 'nowhere.py'),
        (['--mode=sumary'], "value should be one of <train|eval|summary|keys>; the nearest is 'summary'"),
        (['--config=digts'], "mnist5k, or a path such as ./mine.py; the nearest is 'digits'."),
        (
            ['--mode=keys', '--match=cpgn.rule'],
            "--match is 'cpgn.rule', which no key contains; the nearest is 'cpng.rule'.",
        ),
        (['--match=cpng'], "--match is 'cpng', which is for --mode=keys."),
        (['--config.neuron.ds_atgo=True'], "neuron.ds_atgo has become config.neuron.kind: write 'ds_atgo' for True, "),
        (['--noconfig.neuron.ds_atgo'], "neuron.ds_atgo has become config.neuron.kind: write 'ds_atgo' for True, "),
        (['--mode=eval', '--workdir=nowhere/at/all'], 'There is no checkpoint in nowhere/at/all: train first'),
        (['--workdir=gs://bucket/run'], "--workdir is 'gs://bucket/run', an address; expected a path on this machine"),
        (['configs/digits.py'], "unexpected argument 'configs/digits.py': a configuration is given as --config=NAME, "),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else '',
)
def test_what_a_user_can_get_wrong_is_one_sentence(arguments, sentence, tmp_path):
    if not any(argument.startswith('--workdir') for argument in arguments):
        arguments = [*arguments, f'--workdir={tmp_path / "run"}']
    process = forked.run('train.py', *arguments)
    assert process.returncode != 0
    assert sentence in process.stderr
    assert 'Traceback' not in process.stderr
    assert not (tmp_path / 'run').exists(), 'nothing is written before the configuration is right'


def test_a_file_with_a_retired_key_is_one_sentence(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'from configs import base\ndef get_config():\n    config = base.get_config()\n'
        '    config.neuron.ds_atgo = True\n    return config\n'
    )
    process = forked.run('train.py', f'--config={path}', f'--workdir={tmp_path / "run"}')
    assert process.returncode == 2
    sentence = "config.neuron.ds_atgo has become config.neuron.kind: write 'ds_atgo' for True, 'lif' for False."
    assert process.stderr == f'train.py: {sentence}\n'
    assert not (tmp_path / 'run').exists()


def test_a_run_as_a_user_has_it_is_that_of_the_tests(tmp_path, tiny_config):
    """In an interpreter of its own, compiled with XLA's own settings instead of the quick ones of conftest.py."""
    tiny_config.epochs = 2
    loop.run(tiny_config, tmp_path / 'here')
    base = flatten(digits.get_config())
    changes = {key: value for key, value in flatten(tiny_config).items() if value != base[key]}
    changes['model.stages'] = tuple(map(tuple, changes['model.stages']))
    flags = [f'--config.{key}={value}' for key, value in changes.items()]
    command = [sys.executable, ROOT / 'train.py', f'--workdir={tmp_path / "there"}', *flags]
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert process.returncode == 0, process.stderr
    for here, there in zip(epoch_rows(tmp_path / 'here'), epoch_rows(tmp_path / 'there'), strict=True):
        # Rounding differs, and a spike may flip for it.
        assert there['train_loss'] == pytest.approx(here['train_loss'], rel=0.02)
        assert there['test_loss'] == pytest.approx(here['test_loss'], rel=0.05)
        assert there['chi'] == pytest.approx(here['chi'], abs=0.02)
        assert there['skipped'] == here['skipped'] == []
    pictures = list((tmp_path / 'there' / 'plots').iterdir())
    assert len(pictures) == 4
    assert all(picture.stat().st_size > 10_000 for picture in pictures)


def test_help_is_that_of_the_program_with_all_of_its_flags():
    process = forked.run('train.py', '--help')
    assert process.stdout.startswith('Trains a spiking network with CPNG.\n')
    for flag in ('--config: ', '--match: ', '--mode: <train|eval|summary|keys>: ', '--workdir: '):
        assert f'\n  {flag}' in process.stdout


def test_keys_are_listed_without_data_or_a_workdir(tmp_path):
    command = [sys.executable, ROOT / 'train.py', '--mode=keys', '--match=beta_from', '--config.epochs=0']
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ''
    head, _, *lines = process.stdout.splitlines()
    assert head.split()[0] == 'key'
    assert [line.split()[0] for line in lines if line.startswith(' cpng')] == ['cpng.beta_from', 'cpng.beta_from_epoch']
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('program', ['train', 'cpng_jax.experiments', 'cpng_jax.analysis'])
def test_a_missing_package_is_named_with_the_command(program):
    code = (
        "import runpy, sys; sys.modules['ml_collections'] = None; "
        f"runpy.run_module('{program}', run_name='__main__', alter_sys=True)"
    )
    process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 1
    name = 'train.py' if program == 'train' else program
    assert process.stderr == f'{name}: the package ml_collections is not installed: pip install -r requirements.txt\n'
