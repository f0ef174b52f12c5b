import errno
import os
import re
import signal
import socket
import time

import pytest

from cpng_jax.runtime import lock
from cpng_jax.runtime.errors import BusyError
from tests import forked
from tests.runs import contents

OWNER = """
import os, pathlib, signal, sys, time
from cpng_jax.runtime import lock
folder, talk = map(pathlib.Path, sys.argv[1:])
with lock.held(folder, 'The run'):
    worker = os.fork()
    if not worker:
        signal.pause()
    (talk / 'new').write_text(str(worker))
    (talk / 'new').rename(talk / 'worker')
    while not (talk / 'end').exists():
        time.sleep(0.01)
(talk / 'released').touch()
signal.pause()
"""


pytestmark = pytest.mark.processes


class Owner:
    """A process that holds the lock of a folder, and has a worker of its own that outlives it."""

    def __init__(self, folder, talk):
        self._talk = talk
        self.process = forked.start('-c', OWNER, folder, talk)
        self._wait_for('worker')
        self._worker = int((talk / 'worker').read_text())

    def _wait_for(self, name):
        deadline = time.monotonic() + 60
        while not (self._talk / name).exists():
            assert time.monotonic() < deadline and self.process.poll() is None, name
            time.sleep(0.01)

    def end(self):
        (self._talk / 'end').touch()

    def release(self):
        self.end()
        self._wait_for('released')

    def close(self):
        os.kill(self._worker, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def owner(tmp_path, tmp_path_factory):
    owner = Owner(tmp_path, tmp_path_factory.mktemp('talk'))
    yield owner
    owner.close()


def test_another_process_is_kept_out_and_told_of_the_owner(tmp_path, owner):
    before = contents(tmp_path)
    now = time.strftime('%Y-%m-%d', time.gmtime())
    sentence = re.escape(
        f'The run in {tmp_path} is under way, by process {owner.process.pid} on {socket.gethostname()}, '
    )
    for _ in range(2):  # the first attempt has not taken the lock from its owner
        with pytest.raises(BusyError, match=rf'^{sentence}since {now} \d\d:\d\d:\d\d UTC: wait for its end, or take'):
            lock.held(tmp_path, 'The run').__enter__()
        assert contents(tmp_path) == before


def test_the_lock_ends_with_its_owner_though_a_worker_of_it_lives_on(tmp_path, owner):
    owner.process.kill()
    with lock.held(tmp_path, 'The run', patience=5):
        assert f'process {os.getpid()} on' in (tmp_path / '.lock').read_text()


def test_the_lock_is_given_back_and_names_nobody(tmp_path, owner):
    owner.release()
    assert (tmp_path / '.lock').read_text() == ''
    with lock.held(tmp_path, 'The run'):
        pass
    assert owner.process.poll() is None


def test_who_has_patience_gets_it(tmp_path, owner):
    start = time.monotonic()
    with pytest.raises(BusyError):
        lock.held(tmp_path, 'The run', patience=0.5).__enter__()
    assert time.monotonic() - start >= 0.5
    owner.end()
    with lock.held(tmp_path, 'The run', patience=5):
        pass


def test_once_in_a_process(tmp_path):
    with lock.held(tmp_path, 'The run'):
        with pytest.raises(BusyError, match=r'^The run in .* is under way in this process'):
            lock.held(tmp_path / '..' / tmp_path.name, 'The run').__enter__()
        # That attempt has not dropped it.
        code = "import pathlib; from cpng_jax.runtime import lock; lock.held(pathlib.Path.cwd(), 'x').__enter__()"
        code = f'import os; os.chdir({str(tmp_path)!r}); {code}'
        assert 'is under way, by process' in forked.run('-c', code).stderr
    with lock.held(tmp_path, 'The run'):
        pass


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
