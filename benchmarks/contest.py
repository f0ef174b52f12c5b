"""Two processes that do the same work in turns: what `benchmarks.race` and `benchmarks.bench` are made of."""

import dataclasses
import functools
import itertools
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.cases import NETWORKS, Case
from benchmarks.equality import equality
from benchmarks.process import Worker

OURS = 'benchmarks.ours'
PEERS = {
    'SpikingJelly': 'benchmarks.peers.spikingjelly',
    'snnTorch': 'benchmarks.peers.snntorch',
    'Norse': 'benchmarks.peers.norse',
    'spyx': 'benchmarks.peers.spyx',
}

_MAX_STEPS = 200


class Spread(NamedTuple):
    """A number that was measured several times."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> 'Spread':
        """Summarises at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def of_median(cls, values: Sequence[float]) -> 'Spread':
        """The median of at least six values that differ from each other by chance, and where it lies by 95 %.

        Between the k-th least and the k-th greatest, k as the binomial distribution says: no shape is supposed.
        """
        ordered, count = sorted(values), len(values)
        outside = itertools.accumulate(math.comb(count, i) / 2**count for i in range(count))
        k = sum(1 for share in outside if share <= 0.025)
        if k == 0:
            raise ValueError(f'of {count} values nothing can be said by 95 %: take six or more')
        return cls(statistics.median(ordered), ordered[k - 1], ordered[-k])

    @classmethod
    def of_ratios(cls, ours: Sequence[float], theirs: Sequence[float]) -> 'Spread':
        """Summarises ours over theirs, round by round."""
        return cls.of([mine / other for mine, other in zip(ours, theirs, strict=True)])


@dataclasses.dataclass(frozen=True)
class Contender:
    """What was measured of one side of a contest.

    Attributes:
      seconds: of a step, the median of each round.
      build_s: seconds to build the work.
      first_step_s: seconds of the first step, which compiles.
      peak_bytes: most memory during the steps, as `measured` says; None where it cannot be told.
      measured: 'on the device' or 'of the process, above what it held before'.
      device: what it ran on.
      versions: of its libraries.
      differs: in words, how its dynamics differ from ours.
      first_start_s: seconds to the end of the first step where no compiled program was kept by then; None for who keeps
        none.
    """

    seconds: tuple[float, ...]
    build_s: float
    first_step_s: float
    peak_bytes: int | None
    measured: str
    device: str
    versions: dict[str, str]
    differs: str
    first_start_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """A contest.

    Attributes:
      case: the work.
      peer: name of the other side.
      ours: what was measured of us.
      theirs: the same of the peer.
      equality: in words, whether both compute the same.
    """

    case: Case
    peer: str
    ours: Contender
    theirs: Contender
    equality: str

    @property
    def ratio(self) -> Spread:
        """Seconds of ours over theirs, round by round: below 1 where ours is faster."""
        return Spread.of_ratios(self.ours.seconds, self.theirs.seconds)


def contest(case: Case, peer: str, python: str, *, rounds: int, round_seconds: float) -> Result:
    """Runs a case on both sides in turns, ours first in each round.

    Each side is a fresh process. Before the rounds, each builds the work, takes its first step, and works for the
    length of a round, which is not counted. A network of ours has been started once before, in another process, with an
    empty folder of compiled programs.

    Args:
      case: the work.
      peer: a key of `PEERS`.
      python: the interpreter of the peers.
      rounds: number of rounds.
      round_seconds: how long, about, a side works in a round; at least a step.

    Returns:
      The `Result`.

    Raises:
      UserError: a side cannot do the work.
    """
    request = {'case': dataclasses.asdict(case)}
    with tempfile.TemporaryDirectory() as caches:
        mine = functools.partial(Worker, sys.executable, OURS, 'cpng_jax', {'XDG_CACHE_HOME': caches})
        start = None
        if case.name in NETWORKS:
            with mine() as ours:
                first = ours.ask('build', **request)
                start = first['build_s'] + first['first_step_s']
        with mine() as ours, Worker(python, PEERS[peer], peer) as theirs:
            workers = (ours, theirs)
            built = [worker.ask('build', **request) for worker in workers]
            built[0]['first_start_s'] = start
            contenders = take_turns(workers, built, rounds=rounds, round_seconds=round_seconds)
            return Result(case, peer, *contenders, equality=equality(case, ours, theirs))


def take_turns(
    workers: Sequence[Worker], built: Sequence[Mapping[str, Any]], *, rounds: int, round_seconds: float
) -> list[Contender]:
    """Has processes that have built their work do it in turns, in the order given in each round.

    Args:
      workers: the processes.
      built: what each has answered when it was told to build.
      rounds: number of rounds; one more, of which nothing counts, comes first.
      round_seconds: how long, about, each works in a round; at least a step.

    Returns:
      What was measured of each.

    Raises:
      UserError: one cannot do its work.
    """
    steps = []
    for worker in workers:
        step = worker.ask('run', steps=1)['seconds'][0]
        steps.append(min(_MAX_STEPS, max(1, math.ceil(round_seconds / step))))
        worker.ask('run', steps=steps[-1])
        worker.ask('settle')
    seconds: list[list[float]] = [[] for _ in workers]
    for _ in range(rounds):
        for worker, count, mine in zip(workers, steps, seconds, strict=True):
            mine.append(statistics.median(worker.ask('run', steps=count)['seconds']))
    # Before any check of equality, which needs memory too.
    memory = [worker.ask('memory') for worker in workers]
    return [
        Contender(seconds=tuple(mine), **facts, **peak)
        for mine, facts, peak in zip(seconds, built, memory, strict=True)
    ]
