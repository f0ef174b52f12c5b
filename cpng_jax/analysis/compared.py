"""Runs drawn side by side, and the examples that they are compared on."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from cpng_jax.analysis.run import Run, labels
from cpng_jax.data.dataset import ArraySource, Dataset
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import weights as weights_file
from cpng_jax.training.setup import Setup
from cpng_jax.training.state import TrainState

Split = Literal['train', 'test']


class Compared(NamedTuple):
    """A run to be drawn beside others.

    Attributes:
      label: its name in pictures.
      setup: from `build`.
      state: a restored checkpoint.
    """

    label: str
    setup: Setup
    state: TrainState


def compared_with_versus(run: Run) -> list[Compared]:
    """Lists the runs to draw: `run.versus`, if there is one, and then the run, as in the paper's pictures.

    Args:
      run: with or without `versus`.

    Returns:
      One or two runs, labelled by what differs between them.

    Raises:
      UserError: there is no run, or no checkpoint in a folder.
    """
    if run.versus is None:
        return [Compared(run.title(), run.setup, run.state)]
    runs = (run.versus, run)
    names = reversed(labels(run, run.versus))
    return [Compared(name, each.setup, each.state) for name, each in zip(names, runs, strict=True)]


def check_comparable(runs: Sequence[Compared]) -> None:
    """Checks that runs have the same data set, shape of an image and classes.

    Args:
      runs: at least one.

    Raises:
      UserError: their data differ.
    """
    kinds = [_kind(run.setup) for run in runs]
    if any(kind != kinds[0] for kind in kinds):
        listed = '; '.join(
            f'{run.label} has {name} of {" x ".join(map(str, shape))} in {len(classes)} classes'
            for run, (name, shape, classes) in zip(runs, kinds, strict=True)
        )
        raise UserError(f'Runs on different data cannot be compared: {listed}.')


def _kind(setup: Setup) -> tuple[str, tuple[int, ...], list[str]]:
    """Name of the data set, shape of an image, and classes."""
    dataset = setup.dataset
    return setup.config.data.name, tuple(dataset.image_shape), list(dataset.class_names)


def check_options(**options: tuple[float, float]) -> None:
    """Checks options of a picture.

    Args:
      **options: value and least value allowed, by name.

    Raises:
      UserError: a value is less, or not a number.
    """
    for name, (value, least) in options.items():
        if not value >= least:
            raise UserError(f'{name} is {value:g}, expected at least {least:g}.')


def check_betas(betas: Sequence[float]) -> None:
    """Checks the widths that a picture is drawn for.

    Args:
      betas: width parameters.

    Raises:
      UserError: there is none, or one is not a number above 0.
    """
    if not betas or not all(isinstance(beta, int | float) and beta > 0 for beta in betas):
        raise UserError(f'betas is {betas!r}, expected numbers above 0, such as (0.5,1,2).')


def check_fixed_threshold(run: Compared) -> None:
    """Checks that the gain of a run's neurons can be told.

    Args:
      run: the run.

    Raises:
      UserError: their threshold or width moves.
    """
    if not run.setup.settings.fixed_threshold:
        raise UserError(
            f'config.neuron.kind is {run.setup.config.neuron.kind}, expected lif: the gain is that of neurons whose '
            'threshold and width stay over the time steps.'
        )


def state_with(run: Compared, weights: str) -> TrainState:
    """The state of a run with its trained weights, or with those that training began with.

    Args:
      run: the run.
      weights: 'start' or 'trained'. With `config.init_from` a run starts from what that names.

    Returns:
      The state; at the start also beta and all else is as it was.

    Raises:
      UserError: `weights` is neither, or what `config.init_from` names is not there.
    """
    if weights not in ('start', 'trained'):
        raise UserError(f'weights is {weights!r}, expected start or trained.')
    if weights == 'trained':
        return run.state
    setup = run.setup
    start = weights_file.start(setup.config, setup.state_shapes.variables)
    return setup.initial_state(start and start.given)


def spread_examples(dataset: Dataset, split: Split, count: int) -> ArraySource:
    """Takes evenly spaced examples of a split, which may be sorted by class, without augmentation.

    Args:
      dataset: the data set.
      split: 'train' or 'test'.
      count: number of examples; all of them, if they are fewer.

    Returns:
      The examples, prepared as for the network: images uint8 `[N, H, W, C]` or events `[N, T, H, W, C]`.

    Raises:
      ValueError: `count` is below 1, or there is no such split.
    """
    if count < 1:
        raise ValueError(f'count must be at least 1, got {count}.')
    if split not in ('train', 'test'):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    source = getattr(dataset, split)
    count = min(count, len(source))
    examples = [dataset.prepare(source[index]) for index in np.arange(count) * len(source) // count]
    return ArraySource(
        np.stack([example['image'] for example in examples]), np.array([example['label'] for example in examples])
    )
