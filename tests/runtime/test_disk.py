"""A disk that is really full, or really read-only, under a run: one sentence, and nothing that was saved is lost.

The disk is a small one in memory that only this test sees: Linux mounts it for a user in a namespace of its own.
"""

import itertools
import pathlib
import signal
import subprocess

import pytest

from tests.runs import assert_bitwise_equal, epoch_rows, final_state, finish, start, wait_for_checkpoint

pytestmark = pytest.mark.processes


class Disk:
    """A disk of some megabytes in memory; `path` leads to it from outside its namespace."""

    def __init__(self, mount_point, size):
        self._mount_point = mount_point
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._shell = subprocess.Popen(['unshare', '--user', '--map-root-user', '--mount', 'sh'], **pipes)
        self._do(f'mount -t tmpfs -o size={size} disk {mount_point}')
        self.path = pathlib.Path(f'/proc/{self._shell.pid}/root{mount_point}')

    def _do(self, command):
        assert self._shell.stdin and self._shell.stdout
        self._shell.stdin.write(f'{command}; echo $?\n')
        self._shell.stdin.flush()
        assert self._shell.stdout.readline() == '0\n', command

    def fill(self):
        with (self.path / 'filling').open('wb', buffering=0) as file, pytest.raises(OSError, match='No space left'):
            file.writelines(itertools.repeat(bytes(4096)))

    def make_read_only(self, read_only):
        self._do(f'mount -o remount,{"ro" if read_only else "rw"} {self._mount_point}')

    def close(self):
        self._shell.communicate()


@pytest.fixture
def disk(tmp_path):
    (tmp_path / 'disk').mkdir()
    disk = Disk(tmp_path / 'disk', '16m')
    yield disk
    disk.close()


def run(workdir, config):
    (code,), ((out, error),) = finish([start(workdir, config)])
    return code, out, error


@pytest.fixture
def stopped(disk, tiny_config):
    """A run on the disk, stopped after its first checkpoints: its workdir, and the names of these."""
    tiny_config.checkpoint.every_steps = 2
    workdir = disk.path / 'run'
    process = start(workdir, tiny_config)
    wait_for_checkpoint(process, workdir, 4)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == 143, error
    return workdir, kept(workdir)


def kept(workdir):
    return {path.name for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()}


def assert_goes_on(workdir, config, undisturbed):
    """The same command ends with what a run that nothing disturbed gives."""
    code, _, error = run(workdir, config)
    assert code == 0, error
    assert_bitwise_equal(final_state(config, workdir), final_state(config, undisturbed[0]))
    assert epoch_rows(workdir) == epoch_rows(undisturbed[0])


@pytest.mark.parametrize('under_way', [False, True])
def test_a_full_disk_ends_a_run_which_goes_on_once_there_is_room(disk, stopped, tiny_config, undisturbed, under_way):
    workdir, checkpoints = stopped
    if under_way:
        process = start(workdir, tiny_config)
        wait_for_checkpoint(process, workdir, max(map(int, checkpoints)) + 2)
    disk.fill()
    before = kept(workdir)
    if not under_way:
        process = start(workdir, tiny_config)
    (code,), ((_, error),) = finish([process])
    assert code == 2, error
    assert 'No space left on device' in error or 'Cannot save a checkpoint' in error, error
    assert error.count('\n') == 1, error
    assert max(map(int, kept(workdir))) >= max(map(int, before))
    (disk.path / 'filling').unlink()
    assert_goes_on(workdir, tiny_config, undisturbed)


def test_a_read_only_disk_is_told_before_any_work(disk, stopped, tiny_config, undisturbed):
    workdir, checkpoints = stopped
    disk.make_read_only(True)
    code, out, error = run(workdir, tiny_config)
    assert (code, out) == (2, '')
    assert error.count('\n') == 1
    assert 'Read-only file system' in error
    assert kept(workdir) == checkpoints
    (code,), ((out, error),) = finish([start(workdir, tiny_config, mode='eval')])
    assert (code, error) == (0, '')
    assert f'latest checkpoint, step {max(map(int, checkpoints))}: test accuracy' in out
    disk.make_read_only(False)
    assert_goes_on(workdir, tiny_config, undisturbed)
