"""A finished or unfinished run, read from its workdir; each part is read when it is first used."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from cpng_jax.nn.kinds import KINDS
from cpng_jax.runtime import metrics
from cpng_jax.runtime.config import Config, differing, flatten
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.workdir import load_config
from cpng_jax.training import keys
from cpng_jax.training.evaluate import restore
from cpng_jax.training.setup import Setup, build
from cpng_jax.training.state import TrainState

# Differing keys that the labels of two runs name.
_MOST_DIFFERENCES = 2


@dataclasses.dataclass(frozen=True)
class Run:
    """A run to analyse.

    Attributes:
      workdir: its folder.
      checkpoint: which of its checkpoints is analysed, 'latest' or 'best'.
      versus: another run to compare it with.
    """

    workdir: pathlib.Path
    checkpoint: str = 'latest'
    versus: 'Run | None' = None

    @functools.cached_property
    def config(self) -> Config:
        """The configuration, from the run's own `config.json`; a UserError where there is none."""
        return load_config(self.workdir, keys.table())

    @functools.cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """The rows of its epochs; a UserError where there is no run, or none of its epochs has ended."""
        _ = self.config
        rows = metrics.read_epochs(self.workdir)
        if not rows:
            if (self.workdir / 'conversion.json').is_file():
                raise UserError(
                    f'The network in {self.workdir} was converted, not trained, and has no epochs: report of the '
                    'folder above has what conversion reached.'
                )
            raise UserError(f'The run in {self.workdir} has not finished an epoch: train it first.')
        return rows

    @property
    def sets_beta(self) -> bool:
        """Whether a rule set beta in the course of the run: `cpng.enabled=False` and `cpng.rule=fixed` both say no."""
        return self.config.cpng.enabled and self.config.cpng.rule != 'fixed'

    @property
    def spikes(self) -> bool:
        """Whether its network is one that spikes, and no ANN."""
        return KINDS[self.config.neuron.kind].spikes

    @functools.cached_property
    def setup(self) -> Setup:
        """Data, network and devices of the run, for analysis."""
        config = self.config.copy_and_resolve_references()
        config.eval.checkpoint = self.checkpoint
        config.neuron.implementation = 'scan'  # which any device runs
        config.remat = 'none'  # which is for the backward pass of training
        config.cpng.beta_from = ''  # a folder that is not needed again: the checkpoint has its beta
        if config.cpng.rule == 'from_run':
            config.cpng.rule = 'fixed'  # which it is from then on
        return build(config)

    @functools.cached_property
    def state(self) -> TrainState:
        """The restored checkpoint; a UserError where there is none."""
        state = restore(self.setup, self.workdir) if (self.workdir / 'checkpoints').is_dir() else None
        if state is None:
            raise UserError(f'There is no checkpoint in {self.workdir}: train at least one epoch first.')
        return state

    @property
    def folder(self) -> pathlib.Path:
        """`analysis` in the workdir, where results go; made when it is missing."""
        folder = self.workdir / 'analysis'
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f'Cannot write to {folder}: {error.strerror}.') from error
        return folder

    def title(self) -> str:
        """Network, data set and epoch of the checkpoint as a title."""
        epoch = self.setup.epoch(int(self.state.step))
        return f'{self.config.model.name} on {self.config.data.name}, epoch {epoch} of {self.config.epochs}'


def check_spikes(run: Run, measuring: Sequence[str], others: Sequence[str]) -> None:
    """Refuses to measure spikes of an ANN.

    Args:
      run: to be analysed, maybe with another to compare it with.
      measuring: names of analyses that do so.
      others: names of those that do not, for the message.

    Raises:
      UserError: a run is that of an ANN, and there is such an analysis.
    """
    for each in (run, run.versus):
        if measuring and each and (each.workdir / 'config.json').is_file() and not each.spikes:
            raise UserError(
                f'{each.workdir} holds a run with config.neuron.kind={each.config.neuron.kind}, an ANN, which has no '
                f'spikes for {measuring[0]} to measure: expected one of {", ".join(others)}, or a run of another kind.'
            )


def labels(first: Run, second: Run) -> tuple[str, str]:
    """Labels two runs by what differs between them.

    Args:
      first: a run.
      second: another.

    Returns:
      'with CPNG' and 'without CPNG' where `cpng.enabled` differs; otherwise the values of up to two keys that
      differ, or the folders where none does.
    """
    if first.config.cpng.enabled != second.config.cpng.enabled:
        names = [f'{"with" if run.config.cpng.enabled else "without"} CPNG' for run in (first, second)]
        return names[0], names[1]
    ours, theirs = flatten(first.config), flatten(second.config)
    different = [key for key in differing(ours, theirs, keys.table()) if key in ours and key in theirs]
    if different:
        names = [
            ', '.join(f'{key}={values[key]}' for key in different[:_MOST_DIFFERENCES]) for values in (ours, theirs)
        ]
        return names[0], names[1]
    # Between two bare $, matplotlib would set a formula.
    return str(first.workdir).replace('$', r'\$'), str(second.workdir).replace('$', r'\$')
