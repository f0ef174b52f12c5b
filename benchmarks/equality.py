"""Whether both sides of a race compute the same: outputs and gradients of the same inputs and weights."""

import dataclasses
import pathlib
import tempfile

import numpy as np

from benchmarks.cases import Arrays, Case, lif_inputs
from benchmarks.process import Worker

# Results of two libraries count as equal up to this share of an array's largest value.
_TOLERANCE = 1e-4
_NEXT_TO_NOTHING = 1e-3


def compare(ours: Arrays, theirs: Arrays) -> str:
    """Puts into words whether two sides compute the same.

    Args:
      ours: arrays by name.
      theirs: likewise; of ours, those that it lacks are left out.

    Returns:
      'equal: ...' or 'NOT EQUAL: ...', with the largest differences as a share of an array's largest value; 'NOT
      COMPARED: ...' for a network that does not spike up to its last layer.
    """
    kinds: dict[str, float] = {}
    largest: dict[str, float] = {}
    for name, array in ours.items():
        kind = name.split('/')[0]
        largest[kind] = max(largest.get(kind, 0.0), float(np.max(np.abs(array))))
    for name, their in theirs.items():
        kind, mine = name.split('/')[0], ours[name].astype(np.float64)
        # A gradient that is next to nothing among the others has nothing but rounding in it.
        scale = max(float(np.max(np.abs(mine))), _NEXT_TO_NOTHING * largest[kind]) or 1.0
        difference = float(np.max(np.abs(mine - their))) / scale
        kinds[kind.replace('_', ' ')] = max(kinds.get(kind.replace('_', ' '), 0.0), difference)
    if 'logits' in ours and np.ptp(ours['logits'], axis=0).max() == 0:
        return 'NOT COMPARED: the outputs are the same at each time step, so nothing spikes'
    exact = ('spikes', 'first spikes')
    equal = all(value <= (0 if kind in exact else _TOLERANCE) for kind, value in kinds.items())
    words = [f'{kind} exactly' if value == 0 else f'{kind} within {value:.0e}' for kind, value in kinds.items()]
    return ('equal: ' if equal else 'NOT EQUAL: ') + ', '.join(words)


def equality(case: Case, ours: Worker, theirs: Worker) -> str:
    """Has both sides compute the same small thing and compares the results.

    Args:
      case: the work; it is reduced.
      ours: our process.
      theirs: the peer's.

    Returns:
      What `compare` says.
    """
    small = case.reduced()
    with tempfile.TemporaryDirectory() as folder:
        given, mine, other = (str(pathlib.Path(folder, name)) for name in ('given.npz', 'ours.npz', 'theirs.npz'))
        if case.name == 'lif':
            np.savez(given, allow_pickle=False, **lif_inputs(small))
        else:
            ours.ask('weights', case=dataclasses.asdict(small), out=given)
        for worker, out in ((ours, mine), (theirs, other)):
            worker.ask('check', case=dataclasses.asdict(small), given=given, out=out)
        with np.load(mine) as mine_arrays, np.load(other) as other_arrays:
            return compare(dict(mine_arrays), dict(other_arrays))
