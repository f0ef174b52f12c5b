import asyncio
import gc
import pathlib
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from cpng_jax.runtime import checkpoint_reader, orbax
from cpng_jax.runtime.checkpoint import Checkpoints
from cpng_jax.runtime.checkpoint_reader import Reader
from cpng_jax.runtime.errors import UserError
from tests.runs import contents


def state(step):
    return {f'layer{index:02}': jnp.full((8, 8), step / 7 + index) for index in range(2)}


def save_all(workdir, accuracies, keep=2):
    checkpoints = Checkpoints(workdir, keep=keep)
    for step, accuracy in enumerate(accuracies, start=1):
        checkpoints.save(step, state(step), {'step': step}, None if accuracy is None else {'test_accuracy': accuracy})
    checkpoints.close()


def damage(folder):
    for path in folder.rglob('*'):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def assert_read(restored, step):
    assert restored is not None
    assert restored[1] == {'step': step}
    for name, value in state(step).items():
        assert np.array_equal(restored[0][name], value)


def test_reading_changes_nothing(tmp_path):
    save_all(tmp_path, [0.5, 0.6])
    folder = tmp_path / 'checkpoints'
    shutil.copytree(folder / '2', folder / '3.orbax-checkpoint-tmp')  # being written
    damage(folder / '2')
    before = contents(tmp_path)
    with pytest.warns(UserWarning, match=r'of step 2 cannot be read \(.*\); that of step 1 is taken instead\.'):
        assert_read(checkpoint_reader.restore(tmp_path, state(0)), 1)
    assert contents(tmp_path) == before


def test_where_there_is_nothing_to_read_nothing_is_made(tmp_path):
    assert checkpoint_reader.restore(tmp_path / 'run', state(0)) is None
    (tmp_path / 'checkpoints').mkdir()
    assert checkpoint_reader.restore(tmp_path, state(0)) is None
    assert checkpoint_reader.restore(tmp_path, state(0), 'best') is None
    assert [path.name for path in tmp_path.rglob('*')] == ['checkpoints']


def test_a_folder_that_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / 'checkpoints').write_text('in the way')
    with pytest.raises(UserError, match=r'^Cannot read .*/checkpoints: Not a directory\.$'):
        checkpoint_reader.restore(tmp_path, state(0))


@pytest.mark.parametrize('read', [False, True])
def test_a_checkpoint_superseded_while_it_is_read_gives_way_to_the_newest(tmp_path, monkeypatch, read):
    """It is removed before its arrays are read, or as soon as they are, some of them perhaps as zeros."""
    save_all(tmp_path, [None])
    writer, reader = Checkpoints(tmp_path, keep=1), Reader(tmp_path)
    original, times = reader._checkpointer.restore, 0

    def restore(*args, **kwargs):
        nonlocal times
        times += 1
        result = original(*args, **kwargs) if read else None
        if times <= 3:
            writer.save(1 + times, state(1 + times), {'step': 1 + times})
            writer.wait()
        return result if read else original(*args, **kwargs)

    monkeypatch.setattr(reader._checkpointer, 'restore', restore)
    found = reader.find(state(0), 'latest', ())
    assert found is not None
    assert_read((found.state, found.progress), 4)
    assert (found.step, found.unreadable, times) == (4, {}, 4)
    reader.close()
    writer.close()


def test_one_superseded_for_ever_is_one_sentence(tmp_path, monkeypatch):
    save_all(tmp_path, [0.5])
    reader = Reader(tmp_path)
    numbers = iter(range(1000))
    monkeypatch.setattr(checkpoint_reader, 'files_of', lambda checkpoint: {str(next(numbers))})
    with pytest.raises(UserError, match=r'superseded faster than they can be read: .* config\.checkpoint\.keep\.$'):
        reader.find(state(0), 'latest', ())
    reader.close()


def test_the_best_is_looked_for_among_the_ratings_that_can_be_read(tmp_path):
    save_all(tmp_path, [0.9, 0.5, 0.5, 0.3], keep=4)
    assert_read(checkpoint_reader.restore(tmp_path, state(0), 'best'), 1)
    damage(tmp_path / 'checkpoints' / '1' / 'metrics')
    assert_read(checkpoint_reader.restore(tmp_path, state(0), 'best'), 3)
    assert_read(checkpoint_reader.restore(tmp_path, state(0)), 4)


def test_a_folder_without_files_is_damaged(tmp_path):
    save_all(tmp_path, [0.5])
    (tmp_path / 'checkpoints' / '2').mkdir()
    with pytest.warns(UserWarning, match=r'of step 2 cannot be read'):
        assert_read(checkpoint_reader.restore(tmp_path, state(0)), 1)


@pytest.mark.parametrize('name', ['lr[0.1]', '[!a]*?{}{0} %25#\'"\n größe-脉冲', '-', '~'])
def test_whatever_its_folder_is_called_a_checkpoint_is_read_back(tmp_path, name):
    save_all(tmp_path / name, [0.5, 0.6])
    assert_read(checkpoint_reader.restore(tmp_path / name, state(0)), 2)


def test_what_a_failed_read_or_write_leaves_behind_is_not_heard_of(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, 'unraisablehook', heard.append)
    orbax.hush()
    promise, future = tensorstore.Promise.new()

    async def fail():
        await asyncio.wait([asyncio.ensure_future(future)], timeout=0.01)  # one of several that are read at once
        raise OSError('no space')

    loop = asyncio.new_event_loop()
    with pytest.raises(OSError, match='no space'):
        loop.run_until_complete(fail())
    loop.close()
    promise.set_result(None)
    assert heard == []


def test_a_read_that_is_given_up_is_not_heard_of(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, 'unraisablehook', heard.append)
    orbax.hush()

    async def read():
        try:
            await asyncio.get_running_loop().create_future()
        except BaseException as error:
            raise Exception('Encountered error while reading array index') from error  # as Orbax has it

    coroutine = read()
    loop = asyncio.new_event_loop()
    asyncio._set_running_loop(loop)
    coroutine.send(None)
    asyncio._set_running_loop(None)
    loop.close()
    del coroutine
    gc.collect()
    assert heard == []


def test_anything_else_that_ends_in_a_thread_or_a_destructor_is_heard_of(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, 'unraisablehook', lambda unraisable: heard.append(str(unraisable.exc_value)))
    orbax.hush()
    orbax.hush()

    class Loud:
        def __del__(self):
            raise RuntimeError('loud')

    Loud()
    gc.collect()
    assert heard == ['loud']


def test_the_reason_of_a_failure_is_a_line_without_settings():
    text = 'Failed to write to "/a b": No space left on device [os_error_code=\'28\'] [spec=\'{"a": 1}\']\nmore'
    assert orbax.reason(ValueError(text)) == 'Failed to write to "/a b": No space left on device'
    assert orbax.reason(KeyError()) == 'KeyError'
    assert pathlib.Path(orbax.path(pathlib.Path('/a[b]'))) == pathlib.Path('/a[b]')
