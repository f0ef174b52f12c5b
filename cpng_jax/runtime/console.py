"""What a run says to the person who watches it."""

import pathlib
from typing import Any

import jax
import numpy as np

from cpng_jax.training.setup import Setup
from cpng_jax.training.state import TrainState


def _spread(values: dict[str, float], digits: int) -> str:
    """Minimum, median and maximum."""
    numbers = list(values.values())
    return ' '.join(f'{value:.{digits}f}' for value in (np.min(numbers), np.median(numbers), np.max(numbers)))


def epoch_line(row: dict[str, Any], results: dict[str, Any], epochs: int) -> str:
    """Writes an epoch's row as a line: accuracies, losses, beta and chi over the layers, firing rate, speed.

    Args:
      row: of the epoch, as in metrics.jsonl.
      results: the last and best accuracy so far.
      epochs: of the whole training.

    Returns:
      The line, and a second one when CPNG left layers out.
    """
    line = (
        f'epoch {row["epoch"]:>3}/{epochs}  train {row["train_accuracy"]:.1%} loss {row["train_loss"]:.3f}  '
        f'test {row["test_accuracy"]:.1%} loss {row["test_loss"]:.3f} (best {results["best_accuracy"]:.1%})  '
        f'beta {_spread(row["beta"], 2)}  chi {_spread(row["chi"], 3)}  '
        f'firing {np.mean(list(row["firing_rate"].values())):.1%}  {row["images_per_second"]:.0f} images/s, '
        f'{row["data_wait"]:.0%} waiting for data'
    )
    if row['skipped']:
        line += f'\n  CPNG kept the beta of {", ".join(row["skipped"])}: potentials constant or not finite'
    return line


def greeting(setup: Setup, workdir: pathlib.Path, state: TrainState) -> str:
    """Writes what is about to be trained, on what, and from which step.

    Args:
      setup: from `build`.
      workdir: folder of the run.
      state: what training starts from.

    Returns:
      Two lines.
    """
    config, step = setup.config, int(state.step)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    layers = len(jax.tree.leaves(state.surrogate))
    device = jax.devices()[0]
    start = f'goes on from step {step}' if step else 'starts'
    if step == setup.steps:
        start = 'is finished: step'
    return (
        f'{config.model.name} on {config.data.name}: {layers} spiking layers, {parameters:,} parameters, '
        f'{jax.device_count()} x {device.device_kind}\n{workdir} {start} of {setup.steps} steps '
        f'in {config.epochs} epochs; beta and chi: min median max over the layers'
    )


def memory_of(step: jax.stages.Compiled) -> dict[str, int]:
    """Reads what a compiled step needs on each device, as XLA plans it.

    Args:
      step: compiled.

    Returns:
      Bytes: `state_and_batch` come in, `temporary` is what the step works with, `peak` of all at once; empty where the
      platform does not tell.
    """
    analysis: Any = step.memory_analysis()
    if analysis is None:
        return {}
    return {
        'state_and_batch': analysis.argument_size_in_bytes,
        'temporary': analysis.temp_size_in_bytes,
        'peak': analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes,
    }


def memory_line(memory: dict[str, int]) -> str:
    """Writes the memory of a training step as a line.

    Args:
      memory: from `memory_of`.

    Returns:
      The line.
    """
    if not memory:
        return 'memory of a training step: not told by this platform'
    sizes = {name: f'{size / 2**20:,.1f} MiB' for name, size in memory.items()}
    return (
        f'memory of a training step on each device: {sizes["peak"]}, of which {sizes["state_and_batch"]} for state and '
        f'batch, {sizes["temporary"]} to work with'
    )


def farewell(results: dict[str, Any], workdir: pathlib.Path, plots: list[pathlib.Path]) -> str:
    """Writes how a training ended and what it left.

    Args:
      results: the last and best accuracy.
      workdir: folder of the run.
      plots: the pictures that were drawn.

    Returns:
      Two lines.
    """
    return (
        f'test accuracy: last {results["test_accuracy"]:.2%}, best {results["best_accuracy"]:.2%} '
        f'(epoch {results["best_epoch"]})\n{workdir}: metrics.jsonl, tensorboard, checkpoints'
        + ''.join(f', plots/{plot.name}' for plot in plots)
    )
