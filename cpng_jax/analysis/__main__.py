"""Analyses a run.

    python -m cpng_jax.analysis membrane --workdir=runs/digits
    python -m cpng_jax.analysis chi beta cost --workdir=runs/digits --versus=runs/fixed
    python -m cpng_jax.analysis report --workdir=runs/digits

The configuration is the run's own. Pictures and tables are written to `analysis` in the workdir; `report` makes one
HTML page of all that the workdir holds, of a run or of `python -m cpng_jax.experiments`.
"""

import pathlib
from collections.abc import Callable

from absl import app, flags

from cpng_jax import command
from cpng_jax.analysis import beta, chi, cost, membrane, report_page
from cpng_jax.analysis.run import Run
from cpng_jax.config import nearest
from cpng_jax.errors import UserError

# Each takes a run and returns the files that it wrote.
ANALYSES: dict[str, Callable[[Run], list[pathlib.Path]]] = {
    'membrane': membrane.analyse,
    'chi': chi.analyse,
    'beta': beta.analyse,
    'cost': cost.analyse,
    'report': report_page.analyse,
}

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; of a run or of experiments for report.')
_VERSUS = flags.DEFINE_string(
    'versus', None, 'Folder of a second run, for chi, beta and cost, such as one without CPNG.'
)
_CHECKPOINT = flags.DEFINE_enum('checkpoint', 'latest', ['latest', 'best'], 'Which checkpoint to look at.')


def main(argv: list[str]) -> None:
    """Runs the analyses that the command line names, and prints what they wrote."""
    names = _names(argv[1:])
    if _WORKDIR.value is None:
        raise UserError('expected --workdir, the folder of a run.')
    workdir, versus = pathlib.Path(_WORKDIR.value), None
    if _VERSUS.value is not None:
        versus = Run(pathlib.Path(_VERSUS.value), _CHECKPOINT.value)
        if versus.workdir.resolve() == workdir.resolve():
            raise UserError(f'--versus is {_VERSUS.value!r}, the run of --workdir itself: expected another.')
        _ = versus.epochs  # Asked for first, so that a wrong folder is said before any work is done.
    run = Run(workdir, _CHECKPOINT.value, versus)
    for name in names:
        for path in ANALYSES[name](run):
            print(path, flush=True)


def _names(arguments: list[str]) -> list[str]:
    known = ', '.join(ANALYSES)
    if not arguments:
        raise UserError(f'expected the name of an analysis, one of {known}.')
    for name in arguments:
        if name not in ANALYSES:
            raise UserError(f'there is no analysis {name!r}; the nearest is {nearest(name, ANALYSES)!r} of {known}.')
    return arguments


if __name__ == '__main__':
    command.run(main, app.parse_flags_with_usage)
