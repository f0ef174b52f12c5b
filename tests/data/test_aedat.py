import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpng_jax.data.aedat import read_aedat
from cpng_jax.data.events import Events
from cpng_jax.runtime.errors import UserError

HEADER = b'#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Timestamps tick is 1 us\r\n'
RECORDINGS = st.lists(
    st.tuples(st.integers(0, 127), st.integers(0, 127), st.integers(0, 1), st.integers(0, 10_000)),
    min_size=1,
    max_size=60,
)


def words(addresses, times) -> bytes:
    """Pairs of big-endian 32-bit words, one after the other, without numpy."""
    pairs = zip(addresses, times, strict=True)
    return b''.join(int(a).to_bytes(4, 'big') + int(t).to_bytes(4, 'big') for a, t in pairs)


def write(events: Events) -> bytes:
    addresses = [
        (127 - int(x)) << 8 | (127 - int(y)) << 1 | (1 - int(polarity))
        for x, y, polarity in zip(events.x, events.y, events.polarity, strict=True)
    ]
    return HEADER + words(addresses, [int(t) % 2**32 for t in events.t])


def recording(rows, start=0) -> Events:
    x, y, polarity, steps = (np.array(column) for column in zip(*rows, strict=True))
    return Events(x, y, polarity, start + np.cumsum(steps))


def refuses(data: bytes, match: str):
    with pytest.raises(UserError, match=match) as caught:
        read_aedat(data, 'cat_7.aedat')
    assert 'cat_7.aedat' in str(caught.value)


@given(rows=RECORDINGS, start=st.sampled_from([0, 1, 2**31 - 9_000, 2**32 - 20_000]))
def test_what_was_written_is_read_even_where_the_clock_wraps(rows, start):
    events = recording(rows, start)
    read = read_aedat(write(events), 'a')
    for field, expected in zip(read, events, strict=True):
        np.testing.assert_array_equal(field, expected)
    assert read.t.dtype == np.int64
    assert read.polarity.dtype == np.uint8


def test_one_event_by_hand():
    # Column bits 8 to 14, row bits 1 to 7, bit 0 is 0 for ON.
    read = read_aedat(HEADER + bytes([0, 0, 0b0000_0011, 0b0000_1010, 0, 0, 1, 2]), 'a')
    assert [field.tolist() for field in read] == [[127 - 3], [127 - 5], [1], [258]]


def test_events_a_little_late_are_sorted():
    data = HEADER + words([0x100, 0x200, 0x300], [5000, 4500, 4500])
    read = read_aedat(data, 'a')
    assert read.t.tolist() == [4500, 4500, 5000]
    assert read.x.tolist() == [125, 124, 126]


def test_synchronisation_pulses_are_left_out():
    read = read_aedat(HEADER + words([0x100, 0x8000, 0x300], [1, 2, 3]), 'a')
    assert read.t.tolist() == [1, 3]


def test_an_event_that_starts_like_a_header_line_is_no_header():
    # 0x23 is '#': here it is the second byte of the first event.
    assert read_aedat(HEADER + words([0x2300], [0]), 'a').x.tolist() == [127 - 0x23]


@pytest.mark.parametrize('version', [b'1.0', b'3.1', b'4', b''])
def test_other_versions_are_refused(version):
    refuses(b'#!AER-DAT' + version + b'\r\n' + words([0], [0]), 'AEDAT version .*expected 2.0')


@pytest.mark.parametrize('data', [b'', b'PK\x03\x04', words([1, 2], [3, 4]), b'# a comment\n' + words([1], [2])])
def test_files_of_another_kind_are_refused(data):
    refuses(data, 'is not an AEDAT file')


def test_damaged_files_are_refused():
    refuses(HEADER, 'holds no events')
    refuses(HEADER + words([1], [2])[:-1], 'is cut off: after its header come 7 bytes')
    refuses(HEADER + b'# no end of line', 'header without an end in its first 65536 bytes')
    refuses(HEADER + b'# long\n' * 10**6, 'header without an end in its first 65536 bytes')
    refuses(HEADER + words([1, 0x10000, 0xFFFFFFFF], [1, 2, 3]), 'most of its addresses lie outside the sensor')


def test_impossible_times_are_refused():
    refuses(HEADER + words([0, 0, 0], [9_000, 9_500, 7_000]), 'event 2 of 3 lies 2500 microseconds before an earlier')
    refuses(HEADER + words([0, 0], [0, 2**32 - 5_000]), 'event 1 of 2 lies 5000 microseconds before')
    refuses(HEADER + words([0, 0], [0, 2**31 - 1]), 'its times span 2147 seconds, expected at most 600')


@given(data=st.binary(max_size=200), keep_header=st.booleans())
def test_whatever_the_bytes_are_there_is_a_recording_or_a_message(data, keep_header):
    try:
        events = read_aedat(HEADER + data if keep_header else data, 'a')
    except UserError:
        return
    assert len({len(field) for field in events}) == 1
    assert np.all((events.x >= 0) & (events.x < 128) & (events.y >= 0) & (events.y < 128) & (events.polarity < 2))
    assert np.all(np.diff(events.t) >= 0)
