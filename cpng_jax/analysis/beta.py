"""Beta of each layer after the last epoch, beside that of a second run (Fig. 4, 7 to 10)."""

import pathlib

from cpng_jax.analysis.run import Run, labels
from cpng_jax.runtime import plots, tables
from cpng_jax.runtime.errors import UserError


def analyse(run: Run) -> list[pathlib.Path]:
    """Draws the final beta of each layer and writes it as a table.

    Args:
      run: the run; `run.versus` adds a second bar for each layer.

    Returns:
      `beta.png`, `beta.csv` and `beta.md`.

    Raises:
      UserError: a run has not finished an epoch, the two have other layers, or matplotlib is missing.
    """
    runs, names = [run], ['β']
    if run.versus is not None:
        runs, names = [run, run.versus], [f'β {name}' for name in labels(run, run.versus)]
    betas = [each.epochs[-1]['beta'] for each in runs]
    if any(list(beta) != list(betas[0]) for beta in betas):
        raise UserError(
            f'The run in {runs[1].workdir} has {len(betas[1])} layers with a beta and that in {run.workdir} '
            f'{len(betas[0])}, or they have other names: --versus takes a run of the same network.'
        )
    figure = plots.final_beta(*(each.epochs for each in runs), names=names if len(runs) > 1 else ())
    rows = [
        {'layer': layer, **{name: beta[layer] for name, beta in zip(names, betas, strict=True)}} for layer in betas[0]
    ]
    note = f'Width parameter of each layer after epoch {run.epochs[-1]["epoch"]}.'
    return [
        plots.save(figure, run.folder / 'beta.png'),
        *tables.write(run.folder / 'beta', rows, title='Final β', note=note),
    ]
