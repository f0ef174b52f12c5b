"""Output that cannot be written, and whose reader has gone."""

import errno
import io
import os

import pytest

from cpng_jax.runtime.streams import Stream
from tests import forked


@pytest.fixture
def unread():
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.fixture
def full():
    """A file on a full disk."""
    descriptor = os.open('/dev/full', os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


def test_what_nobody_reads_is_dropped(unread):
    stream = Stream(unread)
    with io.TextIOWrapper(io.BufferedWriter(stream)) as text:
        for line in ('first', 'second'):
            print(line, file=text, flush=True)
        assert stream.lost is None
        assert os.fstat(unread).st_rdev == os.stat(os.devnull).st_rdev


def test_what_a_full_disk_has_no_place_for_is_dropped_and_remembered(full):
    stream = Stream(full)
    with io.TextIOWrapper(stream, write_through=True) as text:  # as python -u has it
        for line in ('first', 'second'):
            print(line, file=text)
        assert stream.lost is not None
        assert stream.lost.errno == errno.ENOSPC


def test_a_stream_with_a_reader_is_written(tmp_path):
    with (tmp_path / 'out').open('wb') as file, io.TextIOWrapper(io.BufferedWriter(Stream(file.fileno()))) as text:
        print('a line', file=text, flush=True)
        assert (tmp_path / 'out').read_text() == 'a line\n'


# train.py with a standard stream changed first.
CHANGED = """
import os, runpy, sys
{change}
sys.argv = ['train.py', '--mode=keys', '--match={match}']
runpy.run_path('train.py', run_name='__main__')
"""
FULL = 'os.dup2(os.open("/dev/full", os.O_WRONLY), {})'
SENTENCE = 'train.py: cannot write to standard output: No space left on device.\n'


@pytest.mark.processes
@pytest.mark.parametrize(
    ('change', 'match', 'code', 'error'),
    [
        ('read, write = os.pipe(); os.close(read); os.dup2(write, 1)', 'cpng', 0, ''),  # | head -1
        ('os.close(1); sys.stdout = sys.__stdout__ = None', 'cpng', 0, ''),  # >&-
        (FULL.format(1), 'cpng', 1, SENTENCE),
        (FULL.format(2), 'no such key', 2, ''),
    ],
    ids=['pipe', 'closed', 'full', 'errors'],
)
def test_a_program_ends_as_it_would_with_a_reader(change, match, code, error):
    process = forked.run('-c', CHANGED.format(change=change, match=match))
    assert (process.returncode, process.stderr) == (code, error)
