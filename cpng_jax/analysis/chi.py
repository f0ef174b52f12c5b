"""Chi of each layer over the epochs, with a second run side by side (Fig. 3, 5 and 6)."""

import pathlib

from cpng_jax.analysis.run import Run, labels
from cpng_jax.runtime import files, plots, tables


def analyse(run: Run) -> list[pathlib.Path]:
    """Draws chi over the epochs and writes it as CSV, a line for each run, epoch and layer.

    Args:
      run: the run; `run.versus` is drawn to its left with the same axis.

    Returns:
      `chi.png` and `chi.csv`.

    Raises:
      UserError: a run has not finished an epoch, or matplotlib is missing.
    """
    runs, names = [run], [plots.CHI_TITLE]
    if run.versus is not None:
        runs, names = [run.versus, run], list(reversed(labels(run, run.versus)))
    figure = plots.chi_per_layer(*(each.epochs for each in runs), titles=names)
    rows = [
        {'run': str(each.workdir), 'epoch': row['epoch'], 'layer': layer, 'chi': chi, 'beta_after': row['beta'][layer]}
        for each in runs
        for row in each.epochs
        for layer, chi in row['chi'].items()
    ]
    return [
        plots.save(figure, run.folder / 'chi.png'),
        files.replace(run.folder / 'chi.csv', tables.to_csv(rows)),
    ]
