"""Trains a spiking network with CPNG: `python train.py --config=configs/digits.py --workdir=runs/digits`."""

import signal
import sys

# Ctrl-C during the imports below: JAX might swallow the exception that Python makes of it.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    from absl import flags
    from ml_collections import config_flags

    from cpng_jax.runtime import command, paths
    from cpng_jax.runtime.config_file import DEFAULT_CONFIG
    from cpng_jax.runtime.errors import UserError
    from cpng_jax.training import keys, loop
except ModuleNotFoundError as missing:
    sys.exit(f'train.py: the package {missing.name} is not installed: pip install -r requirements.txt')

_CONFIG = command.define_config(
    f'Configuration file, {DEFAULT_CONFIG.name} if not given; --config.KEY=VALUE changes a value.'
)
_WORKDIR = command.define_workdir('Folder of the run; runs/NAME for configs/NAME.py if not given.')
_MODE = flags.DEFINE_enum(
    'mode',
    'train',
    (*loop.MODES, 'keys'),
    'Train, evaluate a checkpoint of the workdir, list the layers, or list the keys of a configuration.',
)
_MATCH = flags.DEFINE_string('match', '', 'For --mode=keys: those whose names contain this.')


def main(argv: list[str]) -> None:
    """Runs what the flags ask for."""
    if len(argv) > 1:
        raise UserError(f'unexpected argument {argv[1]!r}: values are given as --config.KEY=VALUE.')
    if _MODE.value == 'keys':
        print(keys.listing(_MATCH.value))
        return
    if _MATCH.value:
        raise UserError(f'--match is {_MATCH.value!r}, which is for --mode=keys.')
    name = paths.local(config_flags.get_config_filename(flags.FLAGS['config']), '--config').stem
    loop.run(_CONFIG.value, f'runs/{name}' if _WORKDIR.value is None else _WORKDIR.value, _MODE.value)


if __name__ == '__main__':
    command.run(main, keys.RETIRED)
