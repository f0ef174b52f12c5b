"""Writes a trained network as a file that other programs read.

    cpng-export --workdir=runs/digits --to=nir
    cpng-export --workdir=runs/digits --to=stablehlo --checkpoint=best
    cpng-export --workdir=zoo/digits --to=safetensors --dtype=float16 --out=digits.safetensors

The network is that of a run, or of an entry of the zoo. Files go to `export` in the workdir, those of the zoo to the
current folder, unless --out says otherwise. `python -m cpng_jax.export` is the same program.
"""

import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from cpng_jax.runtime import programs

try:
    from absl import flags

    from cpng_jax.export import nir_write, source, stablehlo
    from cpng_jax.export.source import Source
    from cpng_jax.runtime import command, paths, safetensors
    from cpng_jax.runtime.arrays import Saved
    from cpng_jax.runtime.config import flatten
    from cpng_jax.runtime.errors import UserError, files_named
    from cpng_jax.runtime.packages import needed
    from cpng_jax.training import zoo
except ModuleNotFoundError as missing:
    sys.exit(programs.missing(missing))

Write = Callable[[pathlib.Path, str], list[pathlib.Path]]


def _nir(found: Source) -> Write:
    needed('nir', '--to=nir')
    if found.config['dtype'] != 'float32':
        raise UserError(
            f'config.dtype is {found.config["dtype"]}, expected float32 for --to=nir: those who read NIR compute in it, '
            'and their spikes would be others. --to=stablehlo takes any network.'
        )
    graph = nir_write.to_nir(*found.network(), found.image_shape, found.description())
    return lambda path, dtype: [nir_write.write(path, graph)]


def _stablehlo(found: Source) -> Write:
    needed('flatbuffers', '--to=stablehlo')
    program = stablehlo.to_stablehlo(
        *found.network(), found.image_shape, found.mean, found.std, found.config['dtype']
    )
    return lambda path, dtype: stablehlo.write(path, program, found.description())


def _safetensors(found: Source) -> Write:
    needed('safetensors', '--to=safetensors')
    texts = found.description() | {'config': flatten(found.config)}
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in texts.items()}
    rounded = lambda dtype: zoo.rounded(Saved(0, found.arrays), dtype)
    return lambda path, dtype: [safetensors.write(path, rounded(dtype), metadata)]


# Each takes what is to be exported, and returns what writes it: by then all that can be wrong has been said.
FORMATS: dict[str, Callable[[Source], Write]] = {'nir': _nir, 'stablehlo': _stablehlo, 'safetensors': _safetensors}

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
    if _DTYPE.value != zoo.DTYPES[0] and _TO.value != 'safetensors':
        raise UserError(f'--dtype is {_DTYPE.value}, which is for --to=safetensors; --to={_TO.value} keeps float32.')
    found = source.read(paths.local(_WORKDIR.value, '--workdir'), _CHECKPOINT.value)
    out = found.folder / f'{found.name}.{_TO.value}' if _OUT.value is None else paths.local(_OUT.value, '--out')
    if out.exists():
        raise UserError(f'{out} is there already and stays as it is: remove it, or choose another name with --out.')
    write = FORMATS[_TO.value](found)
    out.parent.mkdir(parents=True, exist_ok=True)
    for path in write(out, _DTYPE.value):
        print(path, flush=True)


def program() -> None:
    """Runs the program with the flags of the command line."""
    command.run(main)


if __name__ == '__main__':
    program()
