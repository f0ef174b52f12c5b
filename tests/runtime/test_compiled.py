"""Where compiled programs are kept, and that a second start finds them."""

import gc
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from cpng_jax.runtime import compiled
from cpng_jax.runtime.errors import UserError
from tests import forked

NAMES = ('jax_compilation_cache_dir', *compiled._SETTINGS)


@pytest.fixture(autouse=True)
def not_told(monkeypatch, tmp_path):
    """JAX as it is where nobody has told it a folder, and caches of a user who has none yet."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'caches'))
    jax.config.update('jax_compilation_cache_dir', None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def kept_in():
    folder = jax.config.jax_compilation_cache_dir
    return folder and pathlib.Path(folder)


def test_by_default_in_the_folder_of_the_user(tmp_path, monkeypatch):
    compiled.keep('auto')
    assert kept_in().parent == tmp_path / 'caches' / 'cpng_jax' / 'compiled'
    assert kept_in().is_dir()
    assert jax.config.jax_compilation_cache_max_size == 2 * 2**30
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    jax.config.update('jax_compilation_cache_dir', None)
    compiled.keep('auto')
    assert kept_in().parent == tmp_path / 'home' / '.cache' / 'cpng_jax' / 'compiled'


def test_in_a_folder_of_choice_or_not_at_all(tmp_path):
    compiled.keep('')
    assert kept_in() is None
    compiled.keep(str(tmp_path / 'mine'))
    assert kept_in().parent == tmp_path / 'mine'
    compiled.keep('auto')  # and who has told JAX a folder, keeps it
    assert kept_in().parent == tmp_path / 'mine'


def test_what_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(
        UserError, match=r'config.compilation_cache is .*file/in.* which cannot be made: Not a directory'
    ):
        compiled.keep(str(tmp_path / 'file' / 'in'))
    with pytest.raises(UserError, match=r'config.compilation_cache is .* an address'):
        compiled.keep('gs://bucket/programs')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    compiled.keep('auto')  # nobody has asked for it: it costs time alone
    assert kept_in() is None


def test_another_processor_has_a_folder_of_its_own(tmp_path, monkeypatch):
    mine = compiled._machine()
    assert mine == compiled._machine()
    monkeypatch.setattr(pathlib.Path, 'read_text', lambda _: 'model name : another\nflags : fpu\n')
    assert compiled._machine() != mine


def test_what_a_killed_process_was_writing_is_removed():
    compiled.keep('auto')
    whole = [kept_in() / f'jit_step-1{end}' for end in ('-cache', '-atime')]
    torn = kept_in() / 'jit_step-2-cache'
    for file in (*whole, torn):
        file.write_bytes(b'')
    jax.config.update('jax_compilation_cache_dir', None)
    compiled.keep('auto')
    assert all(file.exists() for file in whole)
    assert not torn.exists()


@pytest.mark.processes
def test_a_second_start_compiles_no_step_again(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
    small = ['epochs=1', 'data.fake=True', 'data.fake_examples=64', 'model.stages=((4,),)', 'log.tensorboard=False']
    kept = []
    for run in ('first', 'second'):
        command = ['train.py', f'--workdir={tmp_path / run}', '--config=digits', *(f'--config.{key}' for key in small)]
        subprocess.run([sys.executable, *command], cwd=forked.ROOT, env=environment, check=True, capture_output=True)
        kept.append({file.name: file.read_bytes() for file in (tmp_path / 'caches').rglob('jit_*')})
    # The first start keeps the step of training, and others where they take the 0.05 s to compile that they need to be
    # kept: so the second may keep one more. What it has read has another time of last use.
    steps = [name for name in kept[0] if name.startswith('jit_step') and name.endswith('-atime')]
    assert steps
    assert all(kept[1][step] != kept[0][step] for step in steps)


def test_what_is_traced_runs_without_the_garbage_collector():
    seen = []

    @compiled.traced
    def step(x, *, times=1):
        seen.append(gc.isenabled())
        if x is None:
            raise ValueError('nothing')
        return x * times

    assert jax.jit(step)(jnp.float32(2)) == 2
    assert step.__name__ == 'step'
    with pytest.raises(ValueError, match='nothing'):
        step(None)
    assert gc.isenabled()
    # Whoever has turned it off, or is inside another one, finds it off afterwards too.
    gc.disable()
    try:
        assert step(3, times=2) == 6
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert seen == [False] * 3
