"""Analyses a run.

    cpng-analysis membrane --workdir=runs/digits
    cpng-analysis chi beta cost --workdir=runs/digits --versus=runs/fixed
    cpng-analysis report --workdir=runs/digits

The configuration is the run's own. Pictures and tables are written to `analysis` in the workdir; `report` makes one
HTML page of all that the workdir holds, of a run or of `cpng-experiments`. `python -m cpng_jax.analysis` is the same
program.
"""

import ast
import functools
import inspect
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from cpng_jax.runtime import programs

try:
    from absl import flags

    from cpng_jax.analysis import (
        beta,
        chi,
        cost,
        direction,
        energy,
        gain,
        gradients,
        landscape,
        membrane,
        raster,
        report,
        saliency,
    )
    from cpng_jax.analysis.compared import compared_with_versus
    from cpng_jax.analysis.run import Run, check_spikes
    from cpng_jax.runtime import command, paths
    from cpng_jax.runtime.errors import UserError, files_named, if_alike, nearest
except ModuleNotFoundError as missing:
    sys.exit(programs.missing(missing))

Analysis = Callable[[Run], list[pathlib.Path]]


def _compares(draw: Callable[..., list[pathlib.Path]]) -> Analysis:
    """Makes an analysis of a function that draws runs side by side, and sets its options from `--option`."""

    def analyse(run: Run) -> list[pathlib.Path]:
        return draw(compared_with_versus(run), run.folder, **_options_of(draw))

    return functools.wraps(draw)(analyse)


def _takes_options(draw: Callable[..., list[pathlib.Path]]) -> Analysis:
    """Makes an analysis of a function that draws one run, and sets its options from `--option`."""

    def analyse(run: Run) -> list[pathlib.Path]:
        return draw(run, **_options_of(draw))

    return functools.wraps(draw)(analyse)


def _settable(draw: Callable[..., Any]) -> dict[str, Any]:
    """Default values by name of the options of a drawing, its keyword-only parameters."""
    parameters = inspect.signature(draw).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


# Each takes a run and returns the files that it wrote.
ANALYSES: dict[str, Analysis] = {
    'membrane': membrane.analyse,
    'chi': chi.analyse,
    'beta': beta.analyse,
    'cost': cost.analyse,
    'gradients': _compares(gradients.draw),
    'gain': _compares(gain.draw),
    'direction': _compares(direction.draw),
    'saliency': _compares(saliency.draw),
    'landscape': _compares(landscape.draw),
    'raster': _takes_options(raster.analyse),
    'energy': _takes_options(energy.analyse),
    'report': report.analyse,
}

# Those of an ANN, too.
_WITHOUT_SPIKES = ('saliency', 'landscape', 'report')

_TAKERS = ' and'.join(', '.join(name for name in ANALYSES if _settable(ANALYSES[name])).rsplit(',', 1))

_WORKDIR = command.define_workdir('Folder of the run; of a run or of experiments for report.')
_VERSUS = flags.DEFINE_string(
    'versus',
    None,
    'Folder of a second run, such as one without CPNG; membrane, raster, energy and report look at one run alone.',
)
_CHECKPOINT = command.define_choice('checkpoint', ('latest', 'best'), 'Which checkpoint to look at.')
_OPTIONS = flags.DEFINE_multi_string('option', [], f'Of {_TAKERS}, such as --option=images=16.')


@files_named()
def main(argv: list[str]) -> None:
    """Runs the analyses that the command line names, and prints what they wrote."""
    names = _names(argv[1:])
    _check_options(names)
    if _WORKDIR.value is None:
        raise UserError('expected --workdir, the folder of a run.')
    workdir, versus = paths.local(_WORKDIR.value, '--workdir'), None
    if _VERSUS.value is not None:
        versus = Run(paths.local(_VERSUS.value, '--versus'), _CHECKPOINT.value)
        if versus.workdir.resolve() == workdir.resolve():
            raise UserError(f'--versus is {_VERSUS.value!r}, the run of --workdir itself: expected another.')
        _ = versus.epochs  # Read first, so that a wrong folder is an error before any work is done.
    run = Run(workdir, _CHECKPOINT.value, versus)
    check_spikes(run, [name for name in names if name not in _WITHOUT_SPIKES], _WITHOUT_SPIKES)
    for name in names:
        for path in ANALYSES[name](run):
            print(path, flush=True)


def _check_options(names: list[str]) -> None:
    known = {key: name for name in names for key in _settable(ANALYSES[name])}
    for option in _OPTIONS.value:
        key, equals, _ = option.partition('=')
        if not equals or key not in known:
            expected = f'one of {", ".join(known)}' if known else f'none, which only {_TAKERS} take'
            expected += if_alike(key, known)
            raise UserError(f'--option is {option!r}, expected KEY=VALUE with a key of {", ".join(names)}: {expected}.')


def _options_of(draw: Callable[..., Any]) -> dict[str, Any]:
    """Values that `--option` sets for a drawing: of the type of the default; where that is a word, a number, too."""
    options, defaults = {}, _settable(draw)
    for key, _, text in (option.partition('=') for option in _OPTIONS.value):
        if key not in defaults:
            continue  # of another analysis
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text
        default = defaults[key]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = number if isinstance(default, str | float) else type(value) is type(default)
        if not fits and not (isinstance(default, str) and isinstance(value, str)):
            raise UserError(f'--option is {key}={text!r}, expected a value like that without it, {default!r}.')
        options[key] = value
    return options


def _names(arguments: list[str]) -> list[str]:
    known = ', '.join(ANALYSES)
    if not arguments:
        raise UserError(f'expected the name of an analysis, one of {known}.')
    for name in arguments:
        if name not in ANALYSES:
            raise UserError(f'there is no analysis {name!r}; the nearest is {nearest(name, ANALYSES)!r} of {known}.')
    return arguments


def program() -> None:
    """Runs the program with the flags of the command line."""
    command.run(main)


if __name__ == '__main__':
    program()
