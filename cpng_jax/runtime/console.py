"""What a run prints: messages at its start and end, a line for each epoch, and progress in between."""

import pathlib
import time
from collections import deque
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from cpng_jax.runtime.metrics import rated_by

# Updates that the speed shown is averaged over.
_WINDOW = 20
# How far the gain may be from 1, as a factor, in the geometric mean of the layers and in one, before a run warns.
_MEAN_GAIN_OFF, _GAIN_OFF = 2.0, 8.0


def _spread(values: dict[str, float], digits: int) -> str:
    """Minimum, median and maximum as text."""
    numbers = list(values.values())
    return ' '.join(f'{value:.{digits}f}' for value in (np.min(numbers), np.median(numbers), np.max(numbers)))


def epoch_line(row: dict[str, Any], results: dict[str, Any], epochs: int) -> str:
    """Writes an epoch's row as a line: accuracies, losses, what the layers have, firing rate, speed.

    Args:
      row: of the epoch, as in metrics.jsonl.
      results: the last and best accuracy so far.
      epochs: of the whole training.

    Returns:
      The line, and a second one where layers were left out.
    """
    split = rated_by(row)
    line = (
        f'epoch {row["epoch"]:>3}/{epochs}  train {row["train_accuracy"]:.1%} loss {row["train_loss"]:.3f}  '
        f'{split} {row[f"{split}_accuracy"]:.1%} loss {row[f"{split}_loss"]:.3f} '
        f'(best {results["best_accuracy"]:.1%})  {_of_layers(row) if "beta" in row else ""}'
        f'{row["images_per_second"]:.0f} images/s, {row["data_wait"]:.0%} waiting for data'
    )
    if row.get('skipped'):
        line += f'\n  left as they were: {", ".join(row["skipped"])}: silent, saturated, constant or not finite'
    return line


def _of_layers(row: dict[str, Any]) -> str:
    """What the spiking layers have, as a part of the epoch's line."""
    heights = f'scale {_spread(row["scale"], 2)}  ' if set(row['scale'].values()) != {1.0} else ''
    gains = f'gain {_spread(known, 2)}  ' if (known := _known(row['gain'])) else ''
    firing = np.mean(list(row['firing_rate'].values()))
    return f'beta {_spread(row["beta"], 2)}  {heights}chi {_spread(row["chi"], 3)}  {gains}firing {firing:.1%}  '


def gain_warning(row: dict[str, Any], cure: str) -> str | None:
    """Says where the gain of layers lets gradients explode or vanish, and what cures it.

    Args:
      row: of an epoch, as in metrics.jsonl.
      cure: what to do, in words.

    Returns:
      A line or two; None where the gain of all layers together is within a factor of 2 of 1 in the geometric mean, and
      that of each within a factor of 8.
    """
    gains = _known(row['gain'])
    if not gains:
        return None
    logarithms = {name: np.log2(gain) for name, gain in gains.items()}
    mean = np.mean(list(logarithms.values()))
    name, worst = max(logarithms.items(), key=lambda item: abs(item[1]))
    if abs(mean) <= np.log2(_MEAN_GAIN_OFF) and abs(worst) <= np.log2(_GAIN_OFF):
        return None
    if abs(mean) > np.log2(_MEAN_GAIN_OFF):
        text = (
            f'gradients {"grow" if mean > 0 else "shrink"} {2 ** abs(mean / 2):.2g}-fold a layer, '
            f'{2 ** (abs(mean) * len(gains) / 2):.2g}-fold over {len(gains)} layers (gain {2**mean:.2g}, expected 1)'
        )
    else:
        text = f'the gain of {name} is {2**worst:.2g}, expected about 1'
    return f'  {text}: {cure}'


def _known(values: dict[str, float | None]) -> dict[str, float]:
    """The values that there are, finite and greater than 0."""
    return {name: value for name, value in values.items() if value is not None and 0 < value < np.inf}


def start_message(
    name: str, workdir: pathlib.Path, *, layers: int, parameters: int, step: int, steps: int, epochs: int
) -> str:
    """Writes what is about to be trained, on what, and from which step.

    Args:
      name: network and data set.
      workdir: folder of the run.
      layers: number of spiking layers.
      parameters: number of weights.
      step: that training goes on from, 0 at the start.
      steps: of the whole training.
      epochs: of the whole training.

    Returns:
      Two lines.
    """
    start = f'goes on from step {step}' if step else 'starts'
    if step == steps:
        start = 'is finished: step'
    spiking = f'{layers} spiking layers' if layers else 'an ANN'
    legend = '; beta, chi and gain: min median max over the layers' if layers else ''
    return (
        f'{name}: {spiking}, {parameters:,} parameters, '
        f'{jax.device_count()} x {jax.devices()[0].device_kind}\n{workdir} {start} of {steps} steps '
        f'in {epochs} epochs{legend}'
    )


def memory_line(memory: dict[str, int]) -> str:
    """Writes the memory of a training step as a line.

    Args:
      memory: from `profile.memory_usage`.

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


def end_message(results: dict[str, Any], workdir: pathlib.Path, plots: list[pathlib.Path]) -> str:
    """Writes how a training ended and which files it left.

    Args:
      results: the last and best accuracy.
      workdir: folder of the run.
      plots: the pictures that were drawn.

    Returns:
      Two lines; three where there is a validation split.
    """
    best, epoch = results['best_accuracy'], results['best_epoch']
    if rated_by(results) == 'test':
        text = f'test accuracy: last {results["test_accuracy"]:.2%}, best {best:.2%} (epoch {epoch}, chosen on test)'
    else:
        text = (
            f'validation accuracy: last {results["validation_accuracy"]:.2%}, best {best:.2%} (epoch {epoch})\n'
            f'test accuracy: last {results["test_accuracy"]:.2%}, '
            f'of epoch {epoch}, chosen on validation, {results["best_test_accuracy"]:.2%}'
        )
    there = [name for name in ('metrics.jsonl', 'tensorboard', 'wandb', 'checkpoints') if (workdir / name).exists()]
    return f'{text}\n{workdir}: {", ".join([*there, *(f"plots/{plot.name}" for plot in plots)])}'


class Display:
    """Progress of a run: a live bar on a terminal, else a plain line every few seconds; use it in a `with`."""

    def __init__(
        self,
        total_steps: int,
        *,
        first_step: int,
        batch_size: int,
        epochs: int,
        console: Console | None = None,
        seconds_between_lines: float = 10.0,
    ) -> None:
        """Sets the display up.

        Args:
          total_steps: of the whole training.
          first_step: the step that training goes on from.
          batch_size: examples in a step.
          epochs: of the whole training.
          console: where to show; standard output when None.
          seconds_between_lines: pause between plain lines.
        """
        self._console = console or Console()
        self._total, self._batch_size, self._epochs = total_steps, batch_size, epochs
        self._pause = seconds_between_lines
        self._line_at = time.monotonic()
        # The clock for speed and time left starts with the first update: the first step may compile.
        self._origin: tuple[int, float] | None = None
        self._recent: deque[tuple[int, float]] = deque(maxlen=_WINDOW + 1)
        columns = (SpinnerColumn(), TextColumn('{task.description}'), BarColumn(), TextColumn('{task.fields[facts]}'))
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._bar = Progress(*columns, console=self._console, transient=True) if live else None
        if self._bar:
            self._task = self._bar.add_task('starting', total=total_steps, completed=first_step, facts='')

    def update(self, step: int, *, epoch: int, loss: float, accuracy: float) -> None:
        """Shows the progress of the run.

        Args:
          step: steps made.
          epoch: the running epoch, from 1.
          loss: of the epoch so far, in nats.
          accuracy: on the training examples of the epoch so far, 0 to 1.
        """
        now = time.monotonic()
        self._origin = self._origin or (step, now)
        self._recent.append((step, now))
        facts = f'{step / self._total:.0%}  loss {loss:.3f}  accuracy {accuracy:.1%}'
        speed, overall = _speed(self._recent[0], (step, now)), _speed(self._origin, (step, now))
        if speed and overall:
            left = duration((self._total - step) / overall)
            facts += f'  {speed * self._batch_size:.0f} images/s  {left} left'
        if self._bar:
            self._bar.update(self._task, completed=step, description=f'epoch {epoch}/{self._epochs}', facts=facts)
        elif now - self._line_at >= self._pause:
            self._line_at = now
            self.print(f'step {step}/{self._total}  epoch {epoch}/{self._epochs}  {facts}')

    def print(self, line: str) -> None:
        """Prints a line that stays, above the bar."""
        # Plain: rich would wrap at 80 columns where there is no terminal, and take brackets for markup.
        self._console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)
        self._console.file.flush()

    def __enter__(self) -> 'Display':
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()


def _speed(since: tuple[int, float], now: tuple[int, float]) -> float | None:
    """Steps per second between two pairs of step and time; None before any step or time has passed."""
    steps, seconds = now[0] - since[0], now[1] - since[1]
    return steps / seconds if steps > 0 and seconds > 0 else None


def duration(seconds: float) -> str:
    """Writes seconds as minutes:seconds, or hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{rest:02d}' if hours else f'{minutes}:{rest:02d}'
