import errno
import multiprocessing
import os
import re
import signal
import socket
import time

import pytest

from cpng_jax.runtime import lock
from cpng_jax.runtime.errors import BusyError
from tests.runs import contents

_context = multiprocessing.get_context('fork')


@pytest.fixture
def owner(tmp_path):
    """A process that holds the lock of a folder, and has a worker of its own that outlives it."""
    ours, theirs = _context.Pipe()
    process = _context.Process(target=_hold, args=(tmp_path, theirs))
    process.start()
    worker = ours.recv()
    yield process, ours
    process.kill()
    process.join()
    os.kill(worker, signal.SIGKILL)


def _hold(folder, pipe):
    with lock.held(folder, 'The run'):
        worker = os.fork()
        if not worker:
            signal.pause()
        pipe.send(worker)
        pipe.recv()
    pipe.send('released')
    signal.pause()


def test_another_process_is_kept_out_and_told_of_the_owner(tmp_path, owner):
    process, _ = owner
    before = contents(tmp_path)
    now = time.strftime('%Y-%m-%d', time.gmtime())
    sentence = re.escape(f'The run in {tmp_path} is under way, by process {process.pid} on {socket.gethostname()}, ')
    for _ in range(2):  # the first attempt has not taken the lock from its owner
        with pytest.raises(BusyError, match=rf'^{sentence}since {now} \d\d:\d\d:\d\d UTC: wait for its end, or take'):
            lock.held(tmp_path, 'The run').__enter__()
        assert contents(tmp_path) == before


def test_the_lock_ends_with_its_owner_though_a_worker_of_it_lives_on(tmp_path, owner):
    process, _ = owner
    process.kill()
    with lock.held(tmp_path, 'The run', patience=5):
        assert f'process {os.getpid()} on' in (tmp_path / '.lock').read_text()


def test_the_lock_is_given_back_and_names_nobody(tmp_path, owner):
    process, pipe = owner
    pipe.send('end')
    assert pipe.recv() == 'released'
    assert (tmp_path / '.lock').read_text() == ''
    with lock.held(tmp_path, 'The run'):
        pass
    assert process.is_alive()


def test_who_has_patience_gets_it(tmp_path, owner):
    _, pipe = owner
    start = time.monotonic()
    with pytest.raises(BusyError):
        lock.held(tmp_path, 'The run', patience=0.5).__enter__()
    assert time.monotonic() - start >= 0.5
    pipe.send('end')
    with lock.held(tmp_path, 'The run', patience=5):
        pass


def test_once_in_a_process(tmp_path):
    with lock.held(tmp_path, 'The run'):
        with pytest.raises(BusyError, match=r'^The run in .* is under way in this process'):
            lock.held(tmp_path / 'x' / '..', 'The run').__enter__()
        reader = _context.Process(target=_is_locked, args=(tmp_path,))  # the attempt has not dropped it
        reader.start()
        reader.join()
        assert reader.exitcode == 3
    with lock.held(tmp_path, 'The run'):
        pass


def _is_locked(folder):
    lock._held.clear()
    try:
        lock.held(folder, 'The run').__enter__()
    except BusyError:
        os._exit(3)


def test_without_locks_one_sentence_says_so_and_the_work_goes_on(tmp_path, monkeypatch, capfd):
    def lockf(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr('fcntl.lockf', lockf)
    with lock.held(tmp_path, 'The run'):
        pass
    out, error = capfd.readouterr()
    assert out == ''
    assert error == (
        f'The file system of {tmp_path} has no locks (No locks available): see to it yourself that nothing else '
        'writes there.\n'
    )
