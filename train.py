"""Trains a spiking network with CPNG: `python train.py --config=configs/digits.py --workdir=runs/digits`."""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from cpng_jax import train
from cpng_jax.config import flatten, nearest
from cpng_jax.errors import UserError
from cpng_jax.stop import Stopped

_DEFAULT_CONFIG = pathlib.Path(__file__).parent / 'configs' / 'digits.py'

_CONFIG = config_flags.DEFINE_config_file(
    'config', str(_DEFAULT_CONFIG), 'Configuration file; --config.KEY=VALUE changes a value.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; runs/NAME for configs/NAME.py when not given.')
_MODE = flags.DEFINE_enum('mode', 'train', train.MODES, 'Train, or evaluate a checkpoint of the workdir.')


def main(argv: list[str]) -> None:
    """Runs what the flags ask for; exits with 2 and one sentence on what the user can set right."""
    if len(argv) > 1:
        _fail(f'unexpected argument {argv[1]!r}: values are given as --config.KEY=VALUE.')
    logging.set_verbosity(logging.ERROR)
    workdir = _WORKDIR.value or pathlib.Path('runs') / pathlib.Path(config_flags.get_config_filename(_flag())).stem
    try:
        train.run(_CONFIG.value, workdir, _MODE.value)
    except UserError as error:
        _fail(str(error))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; a misspelt configuration key or file gives one sentence instead of a traceback."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        known = flatten(_CONFIG.value)
        for argument in argv[1:]:
            key = argument.lstrip('-').split('=')[0].removeprefix('config.')
            if argument.lstrip('-').startswith('config.') and key not in known:
                _fail(f'config has no key {key!r}; the nearest is {nearest(key, known)!r}.')
        _fail(f'the configuration file cannot be read: {error}')
    except OSError as error:
        _fail(f'the configuration file cannot be opened: {error}')
    raise AssertionError('unreachable')


def _flag() -> flags.Flag:
    return flags.FLAGS['config']


def _fail(sentence: str) -> None:
    print(f'train.py: {sentence}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
