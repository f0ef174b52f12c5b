"""Runs an experiment of the paper over several seeds.

    cpng-experiments beta_sweep --config=digits --seeds=5 --workdir=runs/experiments

Finished cells, an arm with a seed each, are kept: the same command goes on, and experiments that share a workdir share
equal runs. `NAME.csv`, `NAME.md` and `NAME.png` are written into the workdir. On a cluster, each job of an array may
take its own part of the cells, `--shard=3/8`; the tables are those of all cells that are finished.
`python -m cpng_jax.experiments` is the same program.
"""

import pathlib
import re
import sys

from cpng_jax.runtime import programs

try:
    from absl import flags

    from cpng_jax.experiments import catalogue, figures, grid, plan, table4, tables
    from cpng_jax.runtime import command, config_file, distributed, files, lock, paths, workdir
    from cpng_jax.runtime.config import validate
    from cpng_jax.runtime.errors import UserError, files_named, nearest
    from cpng_jax.training import keys
except ModuleNotFoundError as missing:
    sys.exit(programs.missing(missing))

_CONFIG = command.define_config(
    f'What the experiment changes, by its name or file, {config_file.DEFAULT} if not given; --config.KEY=VALUE.'
)
_WORKDIR = command.define_workdir('Folder of runs and results; runs/NAME-experiments if not given.')
_SEEDS = flags.DEFINE_integer('seeds', 5, 'Seeds of each arm, from config.seed on.', lower_bound=1)
_SHARD = flags.DEFINE_string('shard', '1/1', 'Part of the cells to run, such as 3/8.')
_RUN = flags.DEFINE_boolean('run', True, '--norun writes the results of the cells that are finished, and runs none.')
_ARMS = flags.DEFINE_multi_string('arm', [], 'An arm to keep, by its name in the table; again for others; all if none.')
_BASELINE = flags.DEFINE_string('baseline', None, 'The arm that all are compared with, instead of their own.')
_VALUES = flags.DEFINE_list(
    'values', None, f'Values of the factor of {", ".join(catalogue.WITH_VALUES)}, instead of their own.'
)


@files_named()
def main(argv: list[str]) -> None:
    """Runs the experiment that the command line names, and writes its results."""
    name, config, known = _name(argv[1:]), _CONFIG.value, keys.table()
    validate(config, known)
    default = f'runs/{command.config_name()}-experiments'
    folder = paths.local(default if _WORKDIR.value is None else _WORKDIR.value, '--workdir')
    chosen = catalogue.EXPERIMENTS[name](config, _values(name))
    if _BASELINE.value is not None:
        chosen = plan.compared_with(chosen, _BASELINE.value)
    chosen = plan.keep_arms(chosen, _ARMS.value)
    seeds = range(config.seed, config.seed + _SEEDS.value)
    cells = grid.cells_of(chosen, config, seeds, folder)
    part = _shard(cells)
    for cell in cells:
        validate(cell.config, known)
        workdir.check(cell.folder, cell.config, known)
    distributed.start(config)
    progress = grid.Progress(cells)
    if distributed.is_primary():
        print(f'{name}, {chosen.source}: {progress.opening()}; {folder}', flush=True)

    def done(cell: grid.Cell, row: grid.Row) -> None:
        if distributed.is_primary():
            print(progress.line(cell, row), flush=True)
            _measure(chosen, [cell])
            write_tables(name, chosen, cells, folder)

    if _RUN.value:
        grid.run_cells(part, done)
        if distributed.is_primary():
            _measure(chosen, part)
    elif not _finished(cells):
        raise UserError(f'No cell in {folder} is finished: leave --norun out to run them.')
    if distributed.is_primary():
        written = write_tables(name, chosen, cells, folder)
        picture = folder / f'{name}.png'
        if chosen.conversion_steps:
            written.append(table4.draw(chosen, table4.rows_of(cells), picture))
        else:
            written.append(figures.draw(chosen, _finished(cells), picture))
        print((folder / f'{name}.md').read_text(), flush=True)
        print(f'{folder}: {", ".join(path.name for path in written)}', flush=True)


def _measure(chosen: plan.Plan, cells: list[grid.Cell]) -> None:
    """Measures what an experiment with conversions asks of its finished cells."""
    if chosen.conversion_steps:
        for cell in cells:
            table4.measure(chosen, cell, lambda line: print(line, flush=True))


def write_tables(name: str, chosen: plan.Plan, cells: list[grid.Cell], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the finished cells of an experiment as CSV and Markdown.

    Jobs that share the folder do so one after the other, so that the last has the cells of all.

    Args:
      name: of the experiment.
      chosen: the experiment.
      cells: all of its cells.
      folder: of the two files.

    Returns:
      The two files.

    Raises:
      UserError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock.held(folder, f'The writing of {name}.md', patience=60):
            finished = _finished(cells)
            if chosen.conversion_steps:
                return table4.write(name, chosen, finished, folder)
            return [
                files.replace(folder / f'{name}.csv', tables.results_csv(finished, folder)),
                files.replace(folder / f'{name}.md', tables.results_markdown(chosen, finished)),
            ]
    except OSError as error:
        raise UserError(f'Cannot write to {folder}: {error.strerror}.') from error


def _finished(cells: list[grid.Cell]) -> tables.Finished:
    return [(cell, row) for cell in cells if (row := cell.result()) is not None]


def _name(arguments: list[str]) -> str:
    known = ', '.join(catalogue.EXPERIMENTS)
    if len(arguments) != 1:
        raise UserError(f'expected the name of one experiment, one of {known}; got {" ".join(arguments) or "none"}.')
    if arguments[0] not in catalogue.EXPERIMENTS:
        close = nearest(arguments[0], catalogue.EXPERIMENTS)
        raise UserError(f'there is no experiment {arguments[0]!r}; the nearest is {close!r} of {known}.')
    return arguments[0]


def _values(name: str) -> list[float] | None:
    if _VALUES.value is None:
        return None
    if name not in catalogue.WITH_VALUES:
        raise UserError(f'--values is for {", ".join(catalogue.WITH_VALUES)}; {name} has fixed arms.')
    try:
        values = [float(value) for value in _VALUES.value]
    except ValueError:
        values = []
    if not values:
        raise UserError(f'--values is {",".join(_VALUES.value)!r}, expected numbers, such as 0.5,1,2.')
    return values


def _shard(cells: list[grid.Cell]) -> list[grid.Cell]:
    """The cells of this job: every n-th, or whole seeds where an arm needs the run of another with the same seed."""
    match = re.fullmatch(r'(\d+)/(\d+)', _SHARD.value)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f'--shard is {_SHARD.value!r}, expected a part of a whole, such as 3/8.')
    index, count = int(match[1]) - 1, int(match[2])
    if any(cell.arm.source for cell in cells):
        seeds = sorted({cell.seed for cell in cells})
        return [cell for cell in cells if seeds.index(cell.seed) % count == index]
    return cells[index::count]


def program() -> None:
    """Runs the program with the flags of the command line."""
    command.run(main, keys.RETIRED)


if __name__ == '__main__':
    program()
