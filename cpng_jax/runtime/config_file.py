"""Reads a configuration from a Python file, wherever that lies, whatever its neighbours are called."""

import importlib.util
import pathlib
import re
import sys
import types

from cpng_jax.runtime.config import ConfigDict
from cpng_jax.runtime.errors import UserError

DEFAULT_CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'digits.py'

_OURS = DEFAULT_CONFIG.with_name('__init__.py')


def load(file: str) -> ConfigDict:
    """Reads the configuration that a file makes, before any flag changes it.

    The file may import `configs`, the folder of this repository, and what lies beside it. Its neighbours come after all
    else on the path: one that is called jax.py hides nothing.

    Args:
      file: its path; `path:argument` hands the argument to its function.

    Returns:
      The configuration.

    Raises:
      UserError: there is no such file, or it makes no configuration.
    """
    name, _, argument = file.partition(':')
    path = pathlib.Path(name)
    try:
        if not path.is_file():
            at_hand = f'; those at hand are in {DEFAULT_CONFIG.parent}' if _OURS.is_file() else ''
            raise UserError(f'--config is {name!r}, which is not a file{at_hand}.')
        get_config = getattr(_run(path.resolve()), 'get_config', None)
        config = get_config and (get_config(argument) if argument else get_config())
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # Whatever the user's file may raise.
        raise UserError(f'{name} fails with {type(error).__name__}: {error}') from error
    if get_config is None:
        raise UserError(f'{name} has no function get_config().')
    if not isinstance(config, ConfigDict):
        raise UserError(
            f'get_config() of {name} must return an ml_collections.ConfigDict, got {type(config).__name__}.'
        )
    return config


def _run(path: pathlib.Path) -> types.ModuleType:
    """Runs a file as a module of its own, which other files cannot import by accident, and which shares no state."""
    _find_ours_first()
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    ours = sys.modules.get('configs')
    if ours and path.parent.name == _OURS.parent.name and str(path.parent) not in ours.__path__:
        ours.__path__.append(str(path.parent))
    module = types.ModuleType(re.sub(r'\W', '_', str(path)))
    module.__file__, module.__package__ = str(path), ''
    sys.modules[module.__name__] = module  # where dataclasses look for what they are made from
    exec(compile(path.read_bytes(), path, 'exec'), module.__dict__)
    return module


def _find_ours_first() -> None:
    """Makes `configs` the folder of this repository, even where a package of that name comes first on the path."""
    if not _OURS.is_file():  # the package was installed, which comes without
        return
    found = getattr(sys.modules.get('configs'), '__file__', None)
    if found and pathlib.Path(found).resolve() == _OURS.resolve():
        return
    spec = importlib.util.spec_from_file_location('configs', _OURS)
    if spec is None or spec.loader is None:
        return
    for name in [name for name in sys.modules if name.partition('.')[0] == 'configs']:
        del sys.modules[name]
    module = sys.modules['configs'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
