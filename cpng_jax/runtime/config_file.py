"""Reads a configuration from a Python file: one that comes with the package, by its name, or any other.

The `config.json` that a run has written is one, too: that of the run.

`configs/` of the repository is `cpng_jax/configs/` where the package is installed, and `cpng_jax.configs` in both.
"""

import importlib.util
import json
import os
import pathlib
import re
import sys
import types

from cpng_jax.runtime.config import ConfigDict, flatten, from_flat
from cpng_jax.runtime.errors import UserError, if_alike
from cpng_jax.runtime.paths import import_last, local

# What `--config` is where nobody says.
DEFAULT = 'digits'

_NAME = re.compile(r'[^\W\d]\w*')


def home() -> pathlib.Path:
    """The folder of the configurations: within the package where that is installed, beside it in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    installed = package / 'configs'
    return installed if (installed / f'{DEFAULT}.py').is_file() else package.parent / 'configs'


def names() -> list[str]:
    """Lists the configurations that come with the package, in alphabetic order."""
    return sorted(path.stem for path in home().glob('*.py') if _NAME.fullmatch(path.stem) and path.stem[0] != '_')


def find(given: str) -> tuple[pathlib.Path, str]:
    """Finds the file of a configuration.

    Args:
      given: `--config`: the name of one that comes with the package, such as digits, or the path of a file, which may
        be the `config.json` of a run; after a colon an argument for its function. `configs/NAME.py`, where there is
        none here, is the one of that name.

    Returns:
      The file, and the argument, '' for none.

    Raises:
      UserError: there is no such file; the message has all names, and the nearest.
    """
    text, _, argument = (given, '', '') if '://' in given else given.partition(':')
    path, is_name = local(text, '--config'), _NAME.fullmatch(text) is not None
    of_checkout = path == pathlib.Path('configs', f'{path.stem}.py') and not os.path.exists(path)
    if (is_name or of_checkout) and path.stem in names():
        return home() / f'{path.stem}.py', argument
    if not is_name and os.path.isfile(path):
        return path, argument
    problem = 'which is none that comes with the package' if is_name else 'which is not a file'
    expected = f'one of {", ".join(names())}, or a path such as ./mine.py{if_alike(path.stem, names())}'
    raise UserError(f'--config is {text!r}, {problem}: expected {expected}.')


def load(given: str) -> ConfigDict:
    """Reads the configuration that a file makes, before any flag changes it.

    The file may import those that come with the package, `from cpng_jax.configs import digits`, what lies beside it,
    and in the current folder. These come after all else on the path: a neighbour that is called jax.py hides nothing.

    Args:
      given: its name or path, as for `find`.

    Returns:
      The configuration.

    Raises:
      UserError: there is no such file, or it makes no configuration.
    """
    path, argument = find(given)
    if path.suffix == '.json':
        return _of_run(path)
    try:
        get_config = getattr(_run(path.resolve()), 'get_config', None)
        config = get_config and (get_config(argument) if argument else get_config())
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # Whatever the user's file may raise.
        raise UserError(f'{path} fails with {type(error).__name__}: {error}{_advice(error)}') from error
    if get_config is None:
        raise UserError(f'{path} has no function get_config().')
    if not isinstance(config, ConfigDict):
        raise UserError(
            f'get_config() of {path} must return an ml_collections.ConfigDict, got {type(config).__name__}.'
        )
    return config


def _of_run(path: pathlib.Path) -> ConfigDict:
    """The configuration that a run has written."""
    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored, dict):
            raise ValueError('it holds no keys')
        return from_flat(flatten(stored))
    except (ValueError, OSError) as error:
        raise UserError(f'--config is {str(path)!r}, which is no configuration of a run: {error}.') from error


def _advice(error: BaseException) -> str:
    """What to do about a file that asks for `configs`, the folder of a checkout, where there is none."""
    of_checkout = isinstance(error, ModuleNotFoundError) and error.name == 'configs'
    return '; those that come with the package are imported from cpng_jax.configs' if of_checkout else ''


def _run(path: pathlib.Path) -> types.ModuleType:
    """Runs a file as a module of its own, which other files cannot import by accident, and which shares no state."""
    _find_ours_first()
    for folder in (os.getcwd(), str(path.parent)):
        import_last(folder)
    ours = sys.modules.get('configs')
    if ours and path.parent.name == 'configs' and str(path.parent) not in ours.__path__:
        ours.__path__.append(str(path.parent))
    module = types.ModuleType(re.sub(r'\W', '_', str(path)))
    module.__file__, module.__package__ = str(path), ''
    sys.modules[module.__name__] = module  # where dataclasses look for what they are made from
    exec(compile(path.read_bytes(), path, 'exec'), module.__dict__)
    return module


def _find_ours_first() -> None:
    """Makes `configs` the folder of a checkout, even where a package of that name comes first on the path.

    Files of its users may import that. An installed package leaves the name to them.
    """
    ours = home() / '__init__.py'
    if home().parent == pathlib.Path(__file__).parents[1] or not ours.is_file():
        return
    found = getattr(sys.modules.get('configs'), '__file__', None)
    if found and pathlib.Path(found).resolve() == ours.resolve():
        return
    spec = importlib.util.spec_from_file_location('configs', ours)
    if spec is None or spec.loader is None:
        return
    for name in [name for name in sys.modules if name.partition('.')[0] == 'configs']:
        del sys.modules[name]
    module = sys.modules['configs'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
