"""Runs the grid of an experiment, arms by seeds; finished cells are kept."""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cpng_jax.convert import convert
from cpng_jax.experiments.plan import Arm, Plan, folder_of
from cpng_jax.experiments.systems import CONVERSION
from cpng_jax.runtime import distributed, metrics
from cpng_jax.runtime.config import Config, Keys, flatten, refuse_idle, without_idle
from cpng_jax.runtime.console import duration
from cpng_jax.runtime.errors import BusyError, DivergedError, UserError
from cpng_jax.runtime.lock import held
from cpng_jax.runtime.workdir import write_json
from cpng_jax.training import keys, loop, setup

_RESULT = 'result.json'
_LONGEST = 255  # bytes of a folder's name, in most file systems
_PAUSE = 2  # seconds between two looks at a cell of another job

Row = dict[str, Any]


class Cell(NamedTuple):
    """A run of the grid: an arm with a seed.

    Attributes:
      arm: its column of the grid.
      seed: its row.
      folder: its workdir.
      config: its configuration.
      needed: folder of the run that it takes something of; None for none.
    """

    arm: Arm
    seed: int
    folder: pathlib.Path
    config: Config
    needed: pathlib.Path | None = None

    def result(self) -> Row | None:
        """The result of the finished run; None before it is finished."""
        path = self.folder / _RESULT
        if not path.exists():
            return None
        try:
            # Results of older versions were all chosen on the test split, at height 1; gain was not measured.
            older = {'validation_accuracy': None, 'scale_mean': 1.0, 'gain_mean': float('nan')}
            return {**older, **json.loads(path.read_text())}
        except ValueError as error:
            raise UserError(
                f'{path} is damaged ({error}): remove it, and the cell is read from its run again.'
            ) from error


def cells_of(plan: Plan, config: Config, seeds: Sequence[int], workdir: pathlib.Path) -> list[Cell]:
    """Makes the cells of an experiment, seed by seed, so that the first of them already have every arm.

    Args:
      plan: the experiment.
      config: the configuration that the arms change.
      seeds: of the runs.
      workdir: of the experiment.

    Returns:
      The cells in the order of running.

    Raises:
      UserError: two arms are the same at this configuration, or a key that it sets has no effect in any arm.
    """
    folders = {arm.label: folder_of(arm, plan, config) for arm in plan.arms}
    for folder in folders.values():
        same = [arm.label for arm in plan.arms if folders[arm.label] == folder]
        if len(same) > 1:
            raise UserError(f'The arms {" and ".join(same)} are the same at this configuration: leave one out.')
    names = {arm.label: (folders[arm.label], folder_of(arm, plan, config, keys.RETIRED)) for arm in plan.arms}
    cells, known = [], keys.table()
    for seed in seeds:
        for arm in plan.arms:
            changed = config.copy_and_resolve_references()
            with changed.unlocked():  # of a network's fields a configuration has those that it sets
                changed.update_from_flattened_dict({**_with_followers(arm.changes, config, known), 'seed': seed})
            needed = None
            if arm.source is not None:
                # Absolute, so that the configuration is the same from whatever folder the workdir is named.
                needed = _folder(workdir, names[arm.source], seed).resolve()
            if arm.beta_of is not None:
                changed.cpng.beta_from = str(needed)
            if needed is not None and arm.converted_from is not None:
                changed.init_from = str(conversion_of(needed, CONVERSION, changed.model.time_steps))
            cells.append(Cell(arm, seed, _folder(workdir, names[arm.label], seed), changed, needed))
    refuse_idle([cell.config for cell in cells], known)
    # What the configuration sets for some arms may have no effect in others, such as momentum where an arm has Adam.
    return [cell._replace(config=without_idle(cell.config, known)) for cell in cells]


def _with_followers(changes: Mapping[str, Any], config: Config, known: Keys) -> dict[str, Any]:
    """Changes, and those of the keys that follow a key which changes."""
    flat = flatten(config)
    follow = lambda name, key: key.follows in changes and name not in changes and flat[name] == flat[key.follows]
    more = {name: changes[key.follows] for name, key in known.known.items() if follow(name, key)}
    return {**changes, **more}


def _folder(workdir: pathlib.Path, names: Sequence[str], seed: int) -> pathlib.Path:
    """The folder of a cell: by the first name, today's, unless there is one by a former name alone."""
    # Former names may be longer than any folder's.
    folders = [workdir / 'cells' / name / f'seed_{seed}' for name in names if len(name.encode()) <= _LONGEST]
    return next((folder for folder in folders if folder.exists()), folders[0])


def conversion_of(folder: pathlib.Path, method: str, time_steps: int) -> pathlib.Path:
    """The folder of what the ANN of a cell is converted to.

    Args:
      folder: of the cell.
      method: of `cpng_jax.convert`.
      time_steps: T.

    Returns:
      The workdir, which need not be there.
    """
    return folder / 'convert' / method / f'T{time_steps}'


def run_cells(cells: Sequence[Cell], done: Callable[[Cell, Row], None]) -> None:
    """Runs the cells that are not finished; one that was stopped goes on from its checkpoint.

    One that another job is running is waited for.

    Args:
      cells: to run.
      done: called with each cell after its run, and with its result.

    Raises:
      UserError: a cell cannot run. A training that diverges is a result, not an error.
      Stopped: a signal asked for it; the running cell has saved a checkpoint.
    """
    build = setup.build_for_seeds()
    for cell in cells:
        if distributed.from_primary(cell.result() is None):
            done(cell, _run_or_wait(cell, build))


def _run_or_wait(cell: Cell, build: setup.Build) -> Row:
    """Trains a cell, or waits for the job that does; returns its result."""
    row = None
    while row is None:
        try:
            row = _run(cell, build)
        except BusyError as busy:
            if distributed.is_primary():
                print(f'{busy} This job waits.', flush=True)
            _wait_for_end(cell.folder)
            row = distributed.from_primary(cell.result())
    return row


def _wait_for_end(folder: pathlib.Path) -> None:
    """Waits until no other process writes to the folder of a cell; with others, a moment at a time."""
    while True:
        with contextlib.suppress(BusyError):
            distributed.on_primary(lambda: _look_into(folder))
            return
        time.sleep(_PAUSE)


def _look_into(folder: pathlib.Path) -> None:
    with held(folder, 'The run'):
        pass


def _run(cell: Cell, build: setup.Build) -> Row:
    """Trains a cell, with its output in `train.log`, and writes the result to `result.json`."""
    diverged = ''
    with _printing_to(cell.folder / 'train.log'):
        if cell.arm.converted_from is not None and distributed.is_primary():
            _convert_source(cell)
        try:
            loop.run(cell.config, cell.folder, build=build)
        except DivergedError as error:
            diverged = str(error)
    row = measured(cell.folder) | {'diverged': diverged}
    if distributed.is_primary():
        write_json(cell.folder / _RESULT, row)
    distributed.barrier(f'{cell.folder} is finished')
    return row


def _convert_source(cell: Cell) -> None:
    """Converts the ANN that a cell starts from, once."""
    assert cell.needed is not None
    options, target = convert.Options(CONVERSION), pathlib.Path(cell.config.init_from)
    if convert.finished(target) is None:
        ann = convert.read(cell.needed, options)
        convert.convert(ann, options, cell.config.model.time_steps, target, lambda line: print(line, flush=True))


@contextlib.contextmanager
def _printing_to(path: pathlib.Path) -> Iterator[None]:
    """Appends standard output to a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open('a')
    except OSError as error:
        raise UserError(f'Cannot write to {path}: {error.strerror}.') from error
    with file, contextlib.redirect_stdout(file):
        yield


def measured(folder: pathlib.Path) -> Row:
    """Reads the results of a run from its metrics.

    Args:
      folder: of the run.

    Returns:
      `test_accuracy` of the last epoch and `best_accuracy` of `best_epoch`; `validation_accuracy` of that epoch, None
      where it was chosen on the test split; `train_loss`; the median of `images_per_second` over the epochs but the
      first; `beta_mean`, `scale_mean`, `chi_mean` over the layers of the last epoch, and `gain_mean`, geometric, over
      those that have a gain; NaN, and 0 epochs, where no epoch has ended.
    """
    rows = metrics.read_epochs(folder)
    if not rows:
        nothing = ('train_loss', 'images_per_second', *(f'{what}_mean' for what in ('beta', 'scale', 'chi', 'gain')))
        return {
            'epochs': 0,
            **dict.fromkeys(('test_accuracy', 'best_accuracy'), float('nan')),
            'best_epoch': 0,
            'validation_accuracy': None,
            **dict.fromkeys(nothing, float('nan')),
        }
    # Rows of older versions have neither height, which was 1, nor gain.
    last, best = rows[-1], metrics.best_epoch(rows)
    if 'beta' in last:
        last = {'scale': {'all': 1.0}, 'gain': {}, **last}
    return {
        'epochs': last['epoch'],
        **_tested(folder, last, best),
        'best_epoch': best['epoch'],
        'validation_accuracy': best.get('validation_accuracy'),
        'train_loss': _number(last['train_loss']),
        'images_per_second': metrics.typical_speed(rows),
        **{f'{what}_mean': _mean(last.get(what, {}).values()) for what in ('beta', 'scale', 'chi')},
        'gain_mean': _geometric_mean(last.get('gain', {}).values()),
    }


def _mean(values: Iterable[float | None]) -> float:
    numbers = [*map(_number, values)]
    return float(np.mean(numbers)) if numbers else float('nan')  # an ANN has none


def _geometric_mean(gains: Iterable[float | None]) -> float:
    logarithms = [np.log2(gain) for gain in gains if gain]
    return float(np.exp2(np.mean(logarithms))) if logarithms else float('nan')


def _tested(folder: pathlib.Path, last: Row, best: Row) -> Row:
    """Test accuracies of the last and of the best epoch: NaN where one was chosen by validation and is not measured."""
    if metrics.rated_by(last) == 'test':
        return {'test_accuracy': last['test_accuracy'], 'best_accuracy': best['test_accuracy']}
    test = metrics.read_test(folder) or {}
    nothing = float('nan')
    return {
        'test_accuracy': test.get('test_accuracy', nothing),
        'best_accuracy': test.get('best_test_accuracy', nothing),
    }


def _number(value: float | None) -> float:
    """A value of the metrics, which hold None for NaN and infinity."""
    return float('nan') if value is None else value


class Progress:
    """Makes the lines that report the progress of the grid, one for each cell."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._left = sum(cell.result() is None for cell in cells)
        self._total, self._start, self._run = len(cells), time.monotonic(), 0
        self._last = self._start

    def opening(self) -> str:
        """The first line: how many cells there are, and how many are finished."""
        return f'{self._total} cells, of which {self._total - self._left} are finished'

    def line(self, cell: Cell, row: Row) -> str:
        """The line of a cell that has been run: result, duration, and time left."""
        now = time.monotonic()
        self._run, self._left = self._run + 1, self._left - 1
        took, self._last = now - self._last, now
        rest = (now - self._start) / self._run * self._left
        what = 'diverged' if row['diverged'] else f'test {row["test_accuracy"]:.2%} (best {row["best_accuracy"]:.2%})'
        return (
            f'[{self._total - self._left}/{self._total}] {cell.arm.label}, seed {cell.seed}: {what} '
            f'in {duration(took)}, {duration(rest)} left'
        )
