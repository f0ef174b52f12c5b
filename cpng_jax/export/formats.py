"""The formats of files, by name, and what writes a network in one of them."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

from cpng_jax.export import nir_write, source, stablehlo
from cpng_jax.export.source import Source
from cpng_jax.runtime import safetensors
from cpng_jax.runtime.arrays import Saved
from cpng_jax.runtime.config import flatten
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.packages import needed
from cpng_jax.training import zoo

Write = Callable[[pathlib.Path], list[pathlib.Path]]


def _nir(found: Source) -> Write:
    needed('nir', '--to=nir')
    if found.config['dtype'] != 'float32':
        raise UserError(
            f'config.dtype is {found.config["dtype"]}, expected float32 for --to=nir: readers compute in that, and '
            'their spikes would be others. --to=stablehlo takes any network.'
        )
    graph = nir_write.to_nir(*found.network(), found.image_shape, found.description())
    return lambda path: [nir_write.write(path, graph)]


def _stablehlo(found: Source) -> Write:
    needed('flatbuffers', '--to=stablehlo')
    program = stablehlo.to_stablehlo(*found.network(), found.image_shape, found.mean, found.std, found.config['dtype'])
    return lambda path: stablehlo.write(path, program, found.description())


def _safetensors(found: Source) -> Write:
    needed('safetensors', '--to=safetensors')
    texts = found.description() | {'config': flatten(found.config)}
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in texts.items()}
    return lambda path: [safetensors.write(path, found.arrays, metadata)]


# Each takes what is to be exported, and returns what writes it: by then all that can be wrong has been said.
FORMATS: dict[str, Callable[[Source], Write]] = {'nir': _nir, 'stablehlo': _stablehlo, 'safetensors': _safetensors}


def export(
    workdir: pathlib.Path,
    to: str,
    *,
    which: str = 'latest',
    out: pathlib.Path | None = None,
    dtype: str = zoo.DTYPES[0],
) -> list[pathlib.Path]:
    """Writes a trained network as a file of another program; nothing is written before all has been checked.

    Args:
      workdir: folder of a run, or of an entry of the zoo.
      to: one of `FORMATS`.
      which: checkpoint of the run, 'latest' or 'best'.
      out: the new file; None for one in the workdir, or of an entry of the zoo in the current folder.
      dtype: of the arrays of safetensors.

    Returns:
      The files.

    Raises:
      UserError: there is no such network, the format cannot say what it has, a package is missing, the arrays do not
        fit into the dtype, or the file is there.
    """
    if dtype != zoo.DTYPES[0] and to != 'safetensors':
        raise UserError(f'--dtype is {dtype}, which is for --to=safetensors; --to={to} keeps float32.')
    found = source.read(workdir, which)
    path = out or found.folder / f'{found.name}.{to}'
    if path.exists():
        raise UserError(f'{path} is there already and stays as it is: remove it, or choose another name with --out.')
    if to == 'safetensors':
        found = dataclasses.replace(found, arrays=zoo.rounded(Saved(0, found.arrays), dtype))
    write = FORMATS[to](found)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path)
