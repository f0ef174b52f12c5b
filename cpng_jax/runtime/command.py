"""Shared by the command-line programs: the flag for a configuration file; errors as one sentence and an exit code."""

import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from cpng_jax.runtime import distributed, signals, streams
from cpng_jax.runtime.config import ConfigDict, Retired, flatten, instead_of
from cpng_jax.runtime.config_file import DEFAULT, find, load
from cpng_jax.runtime.errors import LostProcessError, UserError, if_alike, nearest
from cpng_jax.runtime.signals import Stopped

# Where ml_collections looks for keys that flags change. Left to itself it reads `sys.argv`, and files of flags, as soon
# as the flag is defined.
_COMMAND_LINE: list[str] = []


def define_config(help_text: str, values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder:
    """Defines the flags `--config=NAME`, or a file, and `--config.KEY=VALUE`.

    Args:
      help_text: of the flag.
      values: where it is defined.

    Returns:
      What holds the configuration once the flags are parsed.
    """
    return config_flags.DEFINE_config_file('config', None, help_text, flag_values=values, sys_argv=_COMMAND_LINE)


def define_workdir(help_text: str, values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder[str | None]:
    """Defines the flag `--workdir=FOLDER`; an empty one, as of a variable that is not set, is an error.

    Args:
      help_text: of the flag.
      values: where it is defined.

    Returns:
      What holds the folder, None where it is not given, once the flags are parsed.
    """
    holder = flags.DEFINE_string('workdir', None, help_text, flag_values=values)
    flags.register_validator('workdir', lambda folder: folder != '', 'expected a folder', flag_values=values)
    return holder


class _Choice(flags.EnumParser):
    """Takes one of some words; of one that is misspelt it says which is the nearest."""

    def parse(self, argument: str) -> str:
        """Returns the word."""
        try:
            return super().parse(argument)
        except ValueError as error:
            raise ValueError(f'{error}{if_alike(argument, self.enum_values)}') from error


def define_choice(
    name: str, choices: Sequence[str], help_text: str, values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder[str]:
    """Defines a flag that is one of some words, the first if it is not given.

    Args:
      name: of the flag.
      choices: the words.
      help_text: of the flag.
      values: where it is defined.

    Returns:
      What holds the word once the flags are parsed.
    """
    parser, serializer = _Choice([*choices]), flags.ArgumentSerializer()
    return flags.DEFINE(parser, name, choices[0], f'<{"|".join(choices)}>: {help_text}', values, serializer)


def config_name(values: flags.FlagValues = flags.FLAGS) -> str:
    """Names the configuration, once the flags are parsed: by its file, without folder and suffix."""
    return find(config_flags.get_config_filename(values['config']))[0].stem


def overrides(values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Writes the flags that made the configuration, once these are parsed.

    Args:
      values: where they are defined.

    Returns:
      `--config=NAME` as it was given, and `--config.KEY=VALUE` for each key that a flag has set; for a shell.
    """
    config = values['config']
    changes = config_flags.get_override_values(config)
    given = shlex.quote(f'--config={config_flags.get_config_filename(config)}')
    return [given, *(override(name, value) for name, value in changes.items())]


def override(name: str, value: Any) -> str:
    """Writes the flag that changes a key, for a shell."""
    return shlex.quote(f'--config.{name}={tuples(value)}')


def tuples(value: Any) -> Any:
    """A value as a flag takes it: tuples in place of the lists that `flatten` makes of them."""
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def parse_flags(
    argv: list[str], retired: Mapping[str, Retired] | None = None, values: flags.FlagValues = flags.FLAGS
) -> list[str]:
    """Parses the flags; checks the configuration file and the keys that flags change before.

    Left to absl and ml_collections, a wrong file or key would end in a traceback.

    Args:
      argv: the command line.
      retired: keys that a configuration no longer has; None for a program without a configuration.
      values: where the flags are defined, and get their values.

    Returns:
      The program and its positional arguments.

    Raises:
      UserError: a flag, a file of flags or the configuration is wrong.
    """
    try:
        argv = values.read_flags_from_files(argv, force_gnu=False)
        if retired is not None:
            argv = _with_config(argv, retired, values)
        return values(argv)
    except flags.Error as error:
        raise UserError(f'{" ".join(str(error).split())} (--help shows the flags)') from error
    except UnicodeDecodeError as error:
        raise UserError(f'--flagfile names a file that is not text: {error}.') from error


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
    _show_in_help(main)

    def parse(argv: list[str]) -> list[str]:
        try:
            return parse_flags(argv, retired)
        except UserError as error:
            exit_with_error(error)

    app.run(lambda argv: _guarded(main, argv), flags_parser=parse)


def _show_in_help(main: Callable[[list[str]], None]) -> None:
    """Has --help show the module of a program, whatever has started it, and the flags that are defined here for it."""
    program = sys.modules[main.__module__]
    sys.modules['__main__'].__doc__ = program.__doc__
    for flag in {*flags.FLAGS.get_flags_for_module(program), *flags.FLAGS.get_flags_for_module(__name__)}:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


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


class _Loaded(flags.ArgumentParser):
    """Takes for `--config=NAME` the configuration that has been read from its file."""

    def __init__(self, config: ConfigDict) -> None:
        self._config = config

    def parse(self, argument: str) -> ConfigDict:
        """Returns it, whatever the argument; its keys can no longer be made up."""
        self._config.lock()
        return self._config


def _with_config(argv: list[str], retired: Mapping[str, Retired], values: flags.FlagValues) -> list[str]:
    """The command line, with `--config` in front, of the default if it has none; the file and the keys are checked."""
    program, *arguments = argv
    end = arguments.index('--') if '--' in arguments else len(arguments)
    files, others = [], []
    given = iter(arguments[:end])
    for argument in given:
        if re.match('--?config(=|$)', argument):
            _, equals, file = argument.partition('=')
            files.append(file if equals else next(given, ''))
        else:
            others.append(argument)
    if len(files) > 1:
        raise UserError(f'--config is given more than once, as {" and ".join(map(repr, files))}: give one.')
    file = files[0] if files else DEFAULT
    config = load(file)
    known = flatten(config)
    for argument in others:
        override = re.match(r'--?(?:no)?config\.([^=]*)', argument)
        if override:
            _check_key(override[1], known, retired)
    values['config'].parser = _Loaded(config)
    _COMMAND_LINE[:] = [program, f'--config={file}', *others]
    return [*_COMMAND_LINE, *arguments[end:]]


def _check_key(key: str, known: Mapping[str, Any], retired: Mapping[str, Retired]) -> None:
    if key in retired:
        raise UserError(instead_of(key, retired[key]))
    if key in known:
        return
    inside = [other for other in known if other.startswith(f'{key}.')]
    if inside:
        raise UserError(f'config.{key} is a section: set its keys, such as config.{inside[0]}.')
    raise UserError(f'config has no key {key!r}; the nearest is {nearest(key, known)!r}.')
