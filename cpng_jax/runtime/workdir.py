"""The folder of a run, which belongs to one configuration: `config.json`, `environment.json` with versions."""

import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

import jax

from cpng_jax.runtime.config import Config, Keys, brought_up_to_date, changed_keys, from_flat, raised_keys, validate
from cpng_jax.runtime.errors import UserError

Raised = dict[str, tuple[Any, Any]]
"""Values before and now of the keys by which a run has become longer."""

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'scikit-learn')


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
    stored = _read(workdir / 'config.json')
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
    stored = _read(workdir / 'config.json')
    if stored is None:
        raise UserError(f'There is no run in {workdir}: it has no config.json.')
    flat = brought_up_to_date(stored, keys)
    validate(flat, keys)
    return from_flat(flat)


def acquire(workdir: pathlib.Path, config: Config, keys: Keys, *, step: int = 0) -> Raised:
    """Makes the folder, or checks that it belongs to the same configuration, and notes the package versions.

    Writes `config.json`, and `environment.json` with an entry for each change of versions or devices. Where a key that
    grows is raised, `config_history.json` keeps what it was and at which step.

    Args:
      workdir: folder of the run.
      config: of this run.
      keys: those of a configuration.
      step: of the latest checkpoint.

    Returns:
      The value before and now of the keys that were raised.

    Raises:
      UserError: the folder cannot be written, its files are damaged, or it belongs to another configuration.
    """
    try:
        raised = check(workdir, config, keys, longer=True)
        workdir.mkdir(parents=True, exist_ok=True)
        if raised:
            _append(workdir / 'config_history.json', {'step': step, **{name: was for name, (was, _) in raised.items()}})
        write_json(workdir / 'config.json', config.to_dict())
        _append(workdir / 'environment.json', _environment())
        return raised
    except OSError as error:
        raise UserError(f'Cannot write to the workdir {workdir}: {error.strerror}.') from error


def _append(path: pathlib.Path, entry: dict[str, Any]) -> None:
    """Adds an entry to a list that a file holds, unless it is the last one already."""
    entries = _read(path) or []
    if entries[-1:] != [entry]:
        write_json(path, [*entries, entry])


def write_json(path: pathlib.Path, value: Any) -> None:
    """Replaces a JSON file in one go, so that a process that is killed leaves the old one or the new one.

    Args:
      path: the file.
      value: what JSON can hold.
    """
    temporary = path.with_suffix('.tmp')
    with temporary.open('w') as file:
        json.dump(value, file, indent=2)
        file.write('\n')
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f'{path} is damaged ({error}). Restore it, or choose another --workdir.') from error


def _environment() -> dict[str, Any]:
    """Versions and devices, for whoever asks later what a result was made with."""
    return {
        'python': platform.python_version(),
        'platform': platform.platform(),
        'packages': {name: _version(name) for name in ('cpng-jax', *_PACKAGES)},
        'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
