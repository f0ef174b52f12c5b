"""Writes a trained network as a file that other programs read.

    cpng-export --workdir=runs/digits --to=nir
    cpng-export --workdir=runs/digits --to=stablehlo --checkpoint=best
    cpng-export --workdir=zoo/digits --to=safetensors --dtype=float16 --out=digits.safetensors

The network is that of a run, or of an entry of the zoo. Files go to `export` in the workdir, those of the zoo to the
current folder, unless --out says otherwise. `python -m cpng_jax.export` is the same program.
"""

import sys

from cpng_jax.runtime import programs

try:
    from absl import flags

    from cpng_jax.export.formats import FORMATS, export
    from cpng_jax.runtime import command, paths
    from cpng_jax.runtime.errors import UserError, files_named
    from cpng_jax.training import zoo
except ModuleNotFoundError as missing:
    sys.exit(programs.missing(missing))

_WORKDIR = command.define_workdir('Folder of the run, or of an entry of the zoo, such as zoo/digits.')
_TO = command.define_choice('to', tuple(FORMATS), 'What is written.')
_CHECKPOINT = command.define_choice('checkpoint', ('latest', 'best'), 'Which checkpoint of the run.')
_OUT = flags.DEFINE_string('out', None, 'The new file; default: in the workdir, see above.')
_DTYPE = command.define_choice('dtype', zoo.DTYPES, 'Of the arrays, for --to=safetensors.')


@files_named()
def main(argv: list[str]) -> None:
    """Exports what the command line names, and prints what was written."""
    if argv[1:]:
        raise UserError(f'unexpected argument {argv[1]!r}: expected --workdir=FOLDER and --to={"|".join(FORMATS)}.')
    if _WORKDIR.value is None:
        raise UserError('expected --workdir, the folder of a run or of an entry of the zoo, such as zoo/digits.')
    out = None if _OUT.value is None else paths.local(_OUT.value, '--out')
    workdir = paths.local(_WORKDIR.value, '--workdir')
    for path in export(workdir, _TO.value, which=_CHECKPOINT.value, out=out, dtype=_DTYPE.value):
        print(path, flush=True)


def program() -> None:
    """Runs the program with the flags of the command line."""
    command.run(main)


if __name__ == '__main__':
    program()
