"""Recordings of a DVS128 event camera in the file format AEDAT-2.0, as the program jAER writes them."""

import numpy as np

from cpng_jax.data.events import Events
from cpng_jax.runtime.errors import UserError

SENSOR = 128
"""Edge of the sensor in pixels."""

_VERSION = b'#!AER-DAT'
_LARGEST_HEADER = 1 << 16
_EVENT = np.dtype([('address', '>u4'), ('t', '>u4')])
# Addresses from here on are not pixels: jAER marks the pulses of the synchronisation input so.
_FIRST_SPECIAL = 1 << 15
# The bus may hand events over somewhat late. What lies further back than this is damage.
_JITTER = 1_000
_LONGEST = 600_000_000


def read_aedat(data: bytes, name: str) -> Events:
    """Reads a recording.

    The format: text lines that start with '#', then for each event two big-endian 32-bit words, the address and the
    time in microseconds (iniVation, "AEDAT file formats", AEDAT-2.0). The sensor counts columns and rows backwards.
    The 32-bit clock may wrap: a step of more than half its range backwards is one forwards, so that times go on.
    Events out of order by at most a millisecond are sorted.

    Args:
      data: the whole file.
      name: of the file, for messages.

    Returns:
      Its `Events`, sorted by time.

    Raises:
      UserError: the file is not AEDAT-2.0 of this sensor, is cut off, or its times cannot be true.
    """
    payload = data[_header_size(data, name) :]
    if not payload:
        raise UserError(f'{name} holds no events.')
    if len(payload) % _EVENT.itemsize:
        raise UserError(
            f'{name} is cut off: after its header come {len(payload)} bytes, expected a multiple of 8. Fetch it again.'
        )
    raw = np.frombuffer(payload, _EVENT)
    raw = raw[raw['address'] < _FIRST_SPECIAL]
    if 2 * len(raw) < len(payload) // _EVENT.itemsize:
        raise UserError(f'{name} is not a recording of a DVS128: most of its addresses lie outside the sensor.')
    address = raw['address'].astype(np.uint16)
    t = _unwrap(raw['t'], name)
    events = Events(
        x=SENSOR - 1 - (address >> 8 & 0x7F).astype(np.int16),
        y=SENSOR - 1 - (address >> 1 & 0x7F).astype(np.int16),
        polarity=(1 - (address & 1)).astype(np.uint8),
        t=t,
    )
    order = np.argsort(t, kind='stable')
    return Events(*(column[order] for column in events))


def _header_size(data: bytes, name: str) -> int:
    """Returns where the events start."""
    if not data.startswith(_VERSION):
        raise UserError(f'{name} is not an AEDAT file: it does not start with {_VERSION.decode()}.')
    if not data.startswith(_VERSION + b'2'):
        version = data[len(_VERSION) : len(_VERSION) + 8].split()[:1]
        shown = version[0].decode('ascii', 'replace') if version else 'without a number'
        raise UserError(f'{name} is AEDAT version {shown}, expected 2.0.')
    position = 0
    while data[position : position + 1] == b'#':
        end = data.find(b'\n', position, _LARGEST_HEADER)
        if end < 0:
            raise UserError(f'{name} has a header without an end in its first {_LARGEST_HEADER} bytes.')
        position = end + 1
    return position


def _unwrap(stamps: np.ndarray, name: str) -> np.ndarray:
    """Continues the times where the 32-bit clock wraps.

    Args:
      stamps: uint32 `[N]`, in the order of the file.
      name: of the file, for messages.

    Returns:
      int64 `[N]`.

    Raises:
      UserError: time runs backwards, or spans more than ten minutes.
    """
    stamps = stamps.astype(np.uint32)
    # Modulo 2**32, then signed: the shorter way round the clock.
    steps = np.diff(stamps).astype(np.int32).astype(np.int64)
    t = np.concatenate([stamps[:1].astype(np.int64), stamps[0] + np.cumsum(steps)])
    late = np.maximum.accumulate(t) - t
    if late.max() > _JITTER:
        event = int(late.argmax())
        raise UserError(
            f'{name} is damaged: event {event} of {len(t)} lies {late[event]} microseconds before an earlier one, '
            f'expected at most {_JITTER}.'
        )
    if t.max() - t.min() > _LONGEST:
        raise UserError(
            f'{name} is damaged: its times span {(t.max() - t.min()) / 1e6:.0f} seconds, '
            f'expected at most {_LONGEST / 1e6:.0f}.'
        )
    return t
