"""Shared by the command-line programs: the flag for a configuration file; errors as one sentence and an exit code."""

import functools
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

from absl import app, logging

from cpng_jax.runtime import distributed, signals, streams
from cpng_jax.runtime.config import ConfigDict, Retired, flatten, instead_of, nearest
from cpng_jax.runtime.errors import LostProcessError, UserError
from cpng_jax.runtime.paths import local
from cpng_jax.runtime.signals import Stopped

DEFAULT_CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'digits.py'


def parse_flags(argv: list[str], retired: Mapping[str, Retired]) -> list[str]:
    """Parses the flags; checks the configuration file and the keys that flags change before.

    Left to ml_collections, a wrong file or key would end in a traceback.

    Args:
      argv: the command line.
      retired: keys that a configuration no longer has.

    Returns:
      The program and its positional arguments.
    """
    try:
        return app.parse_flags_with_usage(_with_config(argv, retired))
    except UserError as error:
        exit_with_error(error)


def run(main: Callable[[list[str]], None], retired: Mapping[str, Retired] | None = None) -> None:
    """Runs a program; a `UserError` becomes one sentence and exit code 2.

    Signals end it at once, but for a run, which saves before. It goes on where nobody reads what it prints any more;
    where that cannot be written for another reason, such as a full disk, too, but ends with exit code 1.

    Exit code 75 (EX_TEMPFAIL): another process of the run has ended; the same command goes on from the last checkpoint.

    Args:
      main: takes the program and its positional arguments.
      retired: keys that a configuration no longer has; None for a program without a configuration.
    """
    streams.outlive_readers()
    signals.end_program_on_signals()
    parse = app.parse_flags_with_usage if retired is None else functools.partial(parse_flags, retired=retired)
    app.run(lambda argv: _guarded(main, argv), flags_parser=parse)


def _guarded(main: Callable[[list[str]], None], argv: list[str]) -> None:
    logging.set_verbosity(logging.FATAL)  # Orbax and Grain log errors that they raise as well.
    try:
        main(argv)
        if streams.output_error():
            sys.exit(1)
    except LostProcessError as lost:
        print(f'{streams.program_name()}: {lost}', file=sys.stderr)
        distributed.exit_process(os.EX_TEMPFAIL)
    except UserError as error:
        exit_with_error(error)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except Exception:
        traceback.print_exc()
        distributed.exit_process(1)


def exit_with_error(sentence: object) -> NoReturn:
    """Prints the name of the program and a sentence on standard error, and exits with code 2."""
    print(f'{streams.program_name()}: {sentence}', file=sys.stderr)
    distributed.exit_process(2)


def _with_config(argv: list[str], retired: Mapping[str, Retired]) -> list[str]:
    """The command line, with `--config` of the default if it has none; the file and overridden keys are checked.

    The path of the file is as `paths.local` has it, so that ml_collections finds it, too.
    """
    given = [index for index, argument in enumerate(argv) if re.match('--?config(=|$)', argument)]
    if not given:
        argv = [argv[0], f'--config={DEFAULT_CONFIG}', *argv[1:]]
        given = [1]
    index = given[-1]
    flag, equals, file = argv[index].partition('=')
    if not equals:
        index, flag, file = index + 1, '', ''.join(argv[index + 1 : index + 2])
    path, colon, argument = file.partition(':')
    file = str(local(file if '://' in file else path, '--config')) + colon + argument
    argv = [*argv[:index], f'{flag}{equals}{file}', *argv[index + 1 :]]
    known = flatten(load(file))
    for argument in argv[1:]:
        override = re.match(r'--?(?:no)?config\.([^=]*)', argument)
        if override and override[1] in retired:
            raise UserError(instead_of(override[1], retired[override[1]]))
        if override and not any(key == override[1] or key.startswith(f'{override[1]}.') for key in known):
            raise UserError(f'config has no key {override[1]!r}; the nearest is {nearest(override[1], known)!r}.')
    return argv


def load(file: str) -> ConfigDict:
    """Reads the configuration that a file makes, before any flag changes it.

    Args:
      file: its path; `path:argument` hands the argument to its function.

    Returns:
      The configuration.

    Raises:
      UserError: there is no such file, or it makes no configuration.
    """
    path, _, argument = file.partition(':')
    if not pathlib.Path(path).is_file():
        raise UserError(f'--config is {path!r}, which is not a file; those at hand are in {DEFAULT_CONFIG.parent}.')
    try:
        get_config = runpy.run_path(path).get('get_config')
        config = get_config and (get_config(argument) if argument else get_config())
    except Exception as error:  # Whatever the user's file may raise.
        raise UserError(f'{path} fails with {type(error).__name__}: {error}') from error
    if get_config is None:
        raise UserError(f'{path} has no function get_config().')
    if not isinstance(config, ConfigDict):
        raise UserError(
            f'get_config() of {path} must return an ml_collections.ConfigDict, got {type(config).__name__}.'
        )
    return config
