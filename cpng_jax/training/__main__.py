"""Trains a spiking network with CPNG.

    cpng-train --config=digits --workdir=runs/digits
    cpng-train --config=digits --workdir=runs/digits --mode=eval
    cpng-train --mode=keys --match=cpng

`python train.py` of a checkout, `python -m cpng_jax.training` and `cpng-train` are the same program.
"""

import shlex
import sys

from cpng_jax.runtime import programs

try:
    from absl import flags

    from cpng_jax.nn.kinds import KINDS
    from cpng_jax.runtime import command, config_file, distributed
    from cpng_jax.runtime.errors import UserError
    from cpng_jax.training import key_listing, keys, loop
except ModuleNotFoundError as missing:
    sys.exit(programs.missing(missing))

_CONFIG = command.define_config(
    f'Configuration, by its name or file, {config_file.DEFAULT} if not given; --config.KEY=VALUE changes a value.'
)
_WORKDIR = command.define_workdir('Folder of the run; runs/NAME for --config=NAME if not given.')
_MODE = command.define_choice(
    'mode',
    (*loop.MODES, 'keys'),
    'Train, evaluate a checkpoint of the workdir, list the layers, or list the keys of a configuration.',
)
_MATCH = flags.DEFINE_string('match', '', 'For --mode=keys: those whose names contain this.')


def main(argv: list[str]) -> None:
    """Runs what the flags ask for."""
    if len(argv) > 1:
        given = 'a configuration is given as --config=NAME, its values as --config.KEY=VALUE'
        raise UserError(f'unexpected argument {argv[1]!r}: {given}.')
    name = command.config_name()
    if _MODE.value == 'keys':
        print(key_listing.listing(_MATCH.value, name, _CONFIG.value))
        return
    if _MATCH.value:
        raise UserError(f'--match is {_MATCH.value!r}, which is for --mode=keys.')
    workdir = f'runs/{name}' if _WORKDIR.value is None else _WORKDIR.value
    loop.run(_CONFIG.value, workdir, _MODE.value)
    if _MODE.value == 'train' and distributed.is_primary():
        print(_next(workdir), flush=True)


def _next(workdir: str) -> str:
    """What to do with a finished run: commands, a line each."""
    changes, of_run = command.overrides(), shlex.quote(f'--workdir={workdir}')
    kind = _CONFIG.value.neuron.kind
    convert = [programs.command('convert'), of_run, f'--method={"qcfs" if kind == "qcfs" else "calibration_light"}']
    commands = [
        [programs.command('analysis'), 'report', of_run],
        [programs.command('train'), *changes, of_run, '--mode=eval'],
        [programs.command('experiments'), 'compare', *changes] if KINDS[kind].spikes else convert,
    ]
    return '\n'.join(f'{"      " if line else "next: "}{" ".join(words)}' for line, words in enumerate(commands))


def program() -> None:
    """Runs the program with the flags of the command line."""
    command.run(main, keys.RETIRED)


if __name__ == '__main__':
    program()
