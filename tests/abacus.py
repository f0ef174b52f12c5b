"""A side of the benchmarks whose steps do nothing, and which computes what ours does: it stands in for a peer."""

from benchmarks.cases import Arrays, Case
from benchmarks.worker import Work

VERSIONS = {'beads': '10'}
DIFFERS = ''


def build(case: Case) -> Work:
    """Builds nothing."""
    del case
    return Work(lambda: None, 'abacus', lambda: None)


def check(case: Case, given: Arrays) -> Arrays:
    """Computes what `benchmarks.ours` does."""
    from benchmarks import ours  # which takes long to import

    return ours.check(case, given)
