"""The folder of a run, which belongs to one configuration: `config.json`, `environment.json` with what made it."""

import contextlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from cpng_jax.runtime import files
from cpng_jax.runtime.config import (
    Config,
    Keys,
    brought_up_to_date,
    changed_keys,
    from_flat,
    raised_keys,
    refuse_idle,
    validate,
)
from cpng_jax.runtime.environment import environment
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.lock import held

# Seconds: a run that was killed may take a moment to end.
_PATIENCE = 5

Raised = dict[str, tuple[Any, Any]]
"""Values before and now of the keys by which a run has become longer."""


def check(workdir: pathlib.Path, config: Config, keys: Keys, *, longer: bool = False) -> Raised:
    """Checks that a folder is new or belongs to the same configuration; writes nothing.

    Args:
      workdir: folder of the run.
      config: of this run.
      keys: those of a configuration.
      longer: keys that grow, such as epochs, may be greater than they were.

    Returns:
      The value before and now of the keys that are.

    Raises:
      UserError: it belongs to another configuration, named by the changed keys, or its `config.json` is damaged.
    """
    stored = _stored(workdir)
    if stored is None:
        return {}
    raised = raised_keys(stored, config, keys) if longer else {}
    changes = changed_keys(stored, config, keys, but=raised)
    if changes:
        lowered = [
            key.name
            for key in keys.known.values()
            if key.grows and any(each.startswith(f'{key.name}: ') for each in changes)
        ]
        hint = f' ({", ".join(lowered)} may be raised, not lowered)' if longer and lowered else ''
        raise UserError(
            f'{workdir} holds a run of another configuration: {"; ".join(changes)}{hint}. '
            'Choose another --workdir, or the old values to go on.'
        )
    return raised


def check_effects(workdir: pathlib.Path, config: Config, keys: Keys) -> None:
    """Checks that no key is set without having an effect; a run that was begun so goes on.

    Args:
      workdir: folder of the run, if there is one.
      config: of this run.
      keys: those of a configuration.

    Raises:
      UserError: a key has no effect, see `config.refuse_idle`, or the `config.json` of the run is damaged.
    """
    stored = _stored(workdir)
    refuse_idle([config], keys, None if stored is None else brought_up_to_date(stored, keys))


def load_config(workdir: pathlib.Path, keys: Keys) -> Config:
    """Reads the configuration of a run.

    Args:
      workdir: folder of the run.
      keys: those of a configuration.

    Returns:
      The configuration as it would be written today: keys that came after the run have the value that stands for what
      it did, those that have retired since are translated.

    Raises:
      UserError: the folder holds no run, or its `config.json` is damaged or no configuration.
    """
    stored = _stored(workdir)
    if stored is None:
        raise UserError(f'There is no run in {workdir}: it has no config.json.')
    flat = brought_up_to_date(stored, keys)
    validate(flat, keys)
    return from_flat(flat)


def load_environments(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads what a run was made with: an entry of `environment` for each change, the latest last.

    Raises:
      UserError: the file is damaged.
    """
    return _read_list(workdir / 'environment.json')


class Acquired(NamedTuple):
    """A folder that is this run's to write to.

    Attributes:
      lock: a context manager whose end gives it back.
      raised: the value before and now of the keys by which the run has become longer.
    """

    lock: contextlib.ExitStack
    raised: Raised


def acquire(workdir: pathlib.Path, config: Config, keys: Keys, *, step: Callable[[], int] = lambda: 0) -> Acquired:
    """Makes the folder, or checks that it belongs to the same configuration, and notes versions, devices and commit.

    Takes its lock, so that no other run writes to it; then writes `config.json`, and `environment.json` with an entry
    for each change of these. Where a key that grows is raised, `config_history.json` keeps what it was and at which
    step.

    Args:
      workdir: folder of the run.
      config: of this run.
      keys: those of a configuration.
      step: says the step of the latest checkpoint.

    Returns:
      What holds the lock, and the keys that were raised.

    Raises:
      UserError: the folder cannot be written, its files are damaged, or it belongs to another configuration.
      BusyError: another run has the lock; nothing was written.
    """
    try:
        check(workdir, config, keys, longer=True)
        workdir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as lock:
            lock.enter_context(held(workdir, 'The run', patience=_PATIENCE))
            raised = check(workdir, config, keys, longer=True)  # another run may have made the folder meanwhile
            if raised:
                was = {name: before for name, (before, _) in raised.items()}
                _append(workdir / 'config_history.json', {'step': step(), **was})
            write_json(workdir / 'config.json', config.to_dict())
            _append(workdir / 'environment.json', environment())
            return Acquired(lock.pop_all(), raised)
    except OSError as error:
        raise UserError(f'Cannot write to the workdir {workdir}: {error.strerror}.') from error


def _append(path: pathlib.Path, entry: dict[str, Any]) -> None:
    """Adds an entry to a list that a file holds, unless it is the last one already."""
    entries = _read_list(path)
    if entries[-1:] != [entry]:
        write_json(path, [*entries, entry])


def _read_list(path: pathlib.Path) -> list[dict[str, Any]]:
    """The list that a file holds; an empty one where there is no file."""
    entries = _read(path) or []
    if not isinstance(entries, list):
        raise UserError(f'{path} is damaged (it holds no list). Move it away.')
    return entries


def write_json(path: pathlib.Path, value: Any) -> None:
    """Replaces a JSON file, in one go, by what JSON can hold."""
    files.replace(path, json.dumps(value, indent=2) + '\n')


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f'{path} is damaged ({error}). Restore it, or choose another --workdir.') from error


def _stored(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The configuration of a run, nested; None where there is no run."""
    path = workdir / 'config.json'
    stored = _read(path)
    if stored is not None and not isinstance(stored, dict):
        raise UserError(f'{path} is damaged (it holds no keys). Restore it, or choose another --workdir.')
    return stored
