"""Trains a spiking network with CPNG: `python train.py --config=configs/digits.py --workdir=runs/digits`."""

import os
import pathlib
import re
import runpy
import sys
import traceback
from typing import NoReturn

try:
    from absl import app, flags, logging
    from ml_collections import config_flags

    from cpng_jax import distributed, train
    from cpng_jax.config import ConfigDict, flatten, nearest
    from cpng_jax.errors import LostProcessError, UserError
    from cpng_jax.stop import Stopped
except ModuleNotFoundError as missing:
    sys.exit(f'train.py: the package {missing.name} is not installed: pip install -r requirements.txt')

_DEFAULT_CONFIG = pathlib.Path(__file__).parent / 'configs' / 'digits.py'

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, f'Configuration file, {_DEFAULT_CONFIG.name} if not given; --config.KEY=VALUE changes a value.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; runs/NAME for configs/NAME.py if not given.')
_MODE = flags.DEFINE_enum(
    'mode', 'train', train.MODES, 'Train, evaluate a checkpoint of the workdir, or list the layers.'
)


def main(argv: list[str]) -> None:
    """Runs what the flags ask for; exits with 2 and one sentence on what the user can set right.

    75 tells that another process of the run has ended, so that the same command will do.
    """
    if len(argv) > 1:
        _fail(f'unexpected argument {argv[1]!r}: values are given as --config.KEY=VALUE.')
    logging.set_verbosity(logging.FATAL)  # of Orbax and Grain, whose errors become sentences here
    config_file = config_flags.get_config_filename(flags.FLAGS['config'])
    workdir = _WORKDIR.value or pathlib.Path('runs', pathlib.Path(config_file).stem)
    try:
        train.run(_CONFIG.value, workdir, _MODE.value)
    except LostProcessError as lost:
        print(f'train.py: {lost}', file=sys.stderr)
        distributed.leave(os.EX_TEMPFAIL)
    except UserError as error:
        _fail(str(error))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        distributed.leave(130)
    except Exception:
        traceback.print_exc()
        distributed.leave(1)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags, after a check of the configuration file and of the keys that the flags change."""
    given = [index for index, argument in enumerate(argv) if re.match('--?config(=|$)', argument)]
    if not given:
        argv = [argv[0], f'--config={_DEFAULT_CONFIG}', *argv[1:]]
        given = [1]
    _, _, file = argv[given[-1]].partition('=')
    known = flatten(_load(file or ''.join(argv[given[-1] + 1 : given[-1] + 2])))
    for argument in argv[1:]:
        override = re.match(r'--?(?:no)?config\.([^=]*)', argument)
        if override and not any(key == override[1] or key.startswith(f'{override[1]}.') for key in known):
            _fail(f'config has no key {override[1]!r}; the nearest is {nearest(override[1], known)!r}.')
    return app.parse_flags_with_usage(argv)


def _load(file: str) -> ConfigDict:
    """The configuration that a file makes, before any flag changes it."""
    path, _, argument = file.partition(':')
    if not pathlib.Path(path).is_file():
        _fail(f'--config is {path!r}, which is not a file; those at hand are in {_DEFAULT_CONFIG.parent}.')
    try:
        get_config = runpy.run_path(path).get('get_config')
        if get_config is None:
            _fail(f'{path} has no function get_config().')
        config = get_config(argument) if argument else get_config()
    except Exception as error:  # Whatever the user's file may raise.
        _fail(f'{path} fails with {type(error).__name__}: {error}')
    if not isinstance(config, ConfigDict):
        _fail(f'get_config() of {path} must return an ml_collections.ConfigDict, got {type(config).__name__}.')
    return config


def _fail(sentence: str) -> NoReturn:
    print(f'train.py: {sentence}', file=sys.stderr)
    distributed.leave(2)


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
