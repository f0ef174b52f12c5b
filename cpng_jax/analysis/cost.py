"""What CPNG costs, in operations and in seconds (Sec. 4.3 and Table 1)."""

import pathlib
import time

import jax
import numpy as np

from cpng_jax.analysis.run import Run, labels
from cpng_jax.control import cpng
from cpng_jax.models.summary import summarise
from cpng_jax.runtime import tables
from cpng_jax.training.summary import measured_density

_CALLS = 20

PAPER = 'paper, VGG16'
_NOTE = (
    'Counts are for one image over all its time steps: multiply-adds of convolutions and dense layers, spiking '
    'operations (an addition for each input that is not zero, on test images) and four operations a potential for mean '
    'and variance. The time of an epoch, evaluation left out, is the median over the epochs but the first. Algorithm 1 '
    'was timed now, on {device}. Every training step takes the statistics, with CPNG or without, so the times of two '
    'runs differ by Algorithm 1, where it runs in each step, and by chance. The paper: VGG16 on CIFAR100, batch 256, '
    'once an epoch (Sec. 4.3, Table 1).'
)


def analyse(run: Run) -> list[pathlib.Path]:
    """Counts the operations of a forward pass and of the statistics, and measures the time of Algorithm 1.

    Args:
      run: with a checkpoint, and its data at hand; `run.versus` adds a column of its times.

    Returns:
      `cost.csv` and `cost.md`.

    Raises:
      UserError: there is no run or no checkpoint, or the data are missing.
    """
    density = measured_density(run.setup, run.state)
    summary = summarise(run.setup.model, run.setup.example, density)
    statistics, multiply_adds = summary.statistics_operations, summary.multiply_adds
    seconds, once, calls = epoch_seconds(run), algorithm_seconds(run), _calls(run)
    ours: dict[str, float | None] = {
        'multiply-adds of a forward pass, G': multiply_adds / 1e9,
        'spiking operations of a forward pass, G': summary.operations / 1e9,
        'operations for the statistics, G': statistics / 1e9,
        'statistics to multiply-adds, %': 100 * statistics / multiply_adds,
        'training of an epoch, s': seconds,
        'Algorithm 1, once, s': once,
        'Algorithm 1 in an epoch, times': calls,
        'Algorithm 1 to training of an epoch, %': 100 * once * calls / seconds,
    }
    paper = dict(zip(ours, (1.7, None, 5.59e-3, 100 * 5.59e-3 / 1.7, None, 3.3, 1, 1.57), strict=True))
    theirs: dict[str, float | None] = {}
    if run.versus is not None:
        other = epoch_seconds(run.versus)
        theirs = {'training of an epoch, s': other, 'Algorithm 1 in an epoch, times': _calls(run.versus)}
        ours['training of an epoch to that of the other run'] = seconds / other
        paper['training of an epoch to that of the other run'] = 716.67 / 705.59
    this, that = labels(run, run.versus) if run.versus is not None else ('this run', '')
    rows = [
        {'quantity': name, this: value, **({that: theirs.get(name)} if that else {}), PAPER: paper[name]}
        for name, value in ours.items()
    ]
    device = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    note = f'{run.title()}. {_NOTE.format(device=device)}'
    return tables.write(run.folder / 'cost', rows, title='Cost', note=note)


def epoch_seconds(run: Run) -> float:
    """Seconds that the steps of an epoch took: the median over the epochs but the first, which warms up."""
    return float(np.median([row['seconds'] for row in run.epochs[1:] or run.epochs]))


def algorithm_seconds(run: Run) -> float:
    """Seconds that Algorithm 1 takes for all layers of a run, on this device: the median of several calls."""
    setup, state = run.setup, run.state
    stats, beta, config = (
        state.epoch.observed[setup.settings.statistics],
        state.surrogate,
        cpng.config_of(setup.settings),
    )
    algorithm_1 = lambda: cpng.update(stats, beta, cpng.init(beta), config)
    jax.block_until_ready(algorithm_1())  # compiles
    times = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        jax.block_until_ready(algorithm_1())
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def _calls(run: Run) -> int:
    """How often Algorithm 1 sets beta in an epoch."""
    if not run.sets_beta:
        return 0
    return run.setup.steps_per_epoch if run.config.cpng.every == 'batch' else 1
