"""Makes an entry of the zoo of a finished run: its weights, what they reach, and how they came about.

    python -m cpng_jax.training.zoo --workdir=runs/digits --out=zoo/digits --dtype=float16

rounds the weights to the dtype, evaluates them as they are stored, and writes the folder: `weights.npz`, `card.json`
for programs and `README.md`, made of it, for people. `cpng_jax.load('digits')` reads it.

    python -m cpng_jax.training.zoo --table=README.md

puts what the entries of the zoo reach into the table of that file.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import sys
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cpng_jax.models import zoo
from cpng_jax.runtime import arrays, config_file, metrics, npz
from cpng_jax.runtime.command import override
from cpng_jax.runtime.config import Config, differing, flatten, validate
from cpng_jax.runtime.environment import environment
from cpng_jax.runtime.errors import UserError, files_named
from cpng_jax.runtime.paths import local
from cpng_jax.runtime.workdir import load_config, load_environments
from cpng_jax.training import card_page, keys, weights
from cpng_jax.training.evaluate import Accuracy, evaluate_split
from cpng_jax.training.setup import Setup, build

DTYPES = ('float32', 'float16')

Rows = list[dict[str, Any]]


def make(
    workdir: pathlib.Path, out: pathlib.Path, *, file: pathlib.Path, which: str = 'latest', dtype: str = 'float32'
) -> dict[str, Any]:
    """Makes an entry of a finished run, in one go: a process that is killed leaves none.

    Args:
      workdir: folder of the run.
      out: the new folder; its last part is the name of the entry.
      file: the configuration file of the run.
      which: checkpoint, 'latest' or 'best'.
      dtype: that the weights are stored in.

    Returns:
      The card.

    Raises:
      UserError: the folder is there already or cannot be written, the run is not finished or cannot be read.
    """
    if out.exists():
        raise UserError(f'{out} is there already and stays as it is: remove it, or choose another name.')
    config, base = load_config(workdir, keys.table()), config_file.load(str(file))
    validate(base, keys.table())
    changes = differing(flatten(base), flatten(config), keys.table())
    # What changes no result is as the file has it: folders of this machine tell nothing of the weights.
    flat = flatten(config) | _free(base)
    rows = metrics.read_epochs(workdir)
    epoch, saved = _finished(workdir, rows, config, which)
    stored = rounded(saved, dtype)
    setup = build(config)
    given = weights.fitted(stored, setup.state_shapes.variables, source=str(workdir)).given
    state = setup.initial_state(given)
    overrides = [override(name, flat[name]) for name in changes]
    found = {
        'format': zoo.FORMAT,
        'name': out.name,
        'configuration': file.stem,
        'overrides': overrides,
        **_training(workdir, rows, config, epoch, which),
        **{split: _result(evaluate_split(setup, state, split)) for split in sorted({'test', setup.rated_by})},
        **_data(setup),
        'dtype': dtype,
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        'commands': _commands(out.name, file.stem, overrides),
        'environments': load_environments(workdir),
        'evaluated_with': environment(),
        'config': flat,
    }
    return _write(out, found, stored)


def _finished(workdir: pathlib.Path, rows: Rows, config: Config, which: str) -> tuple[int, arrays.Saved]:
    """The epoch, and the arrays, that an entry is made of."""
    done = rows[-1]['epoch'] if rows else 0
    if done < config.epochs:
        raise UserError(f'The run in {workdir} has finished {done} of {config.epochs} epochs: train to the end first.')
    saved = arrays.read_checkpoint(workdir, weights.COLLECTIONS, which)
    epochs = {row['step']: row['epoch'] for row in rows}
    if saved.step not in epochs or (which == 'latest' and saved.step != rows[-1]['step']):
        raise UserError(
            f'{workdir} has no whole checkpoint of the end of its training: the latest that can be read is that of '
            f'step {saved.step}, expected {rows[-1]["step"]}.'
        )
    return epochs[saved.step], saved


def rounded(saved: arrays.Saved, dtype: str) -> npz.Arrays:
    """Rounds the arrays of a checkpoint to a dtype.

    Raises:
      UserError: a value is too large for it.
    """
    with np.errstate(over='ignore'):
        found = {name: array.astype(dtype) for name, array in saved.arrays.items()}
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise UserError(f'--dtype is {dtype}, which {name} does not fit into: take float32.')
    return found


def _free(config: Config) -> dict[str, Any]:
    """The keys of a configuration that change no result, with their values."""
    flat = flatten(config)
    return {key.name: flat[key.name] for key in keys.table().known.values() if key.free}


def _training(workdir: pathlib.Path, rows: Rows, config: Config, epoch: int, which: str) -> dict[str, Any]:
    """What is known of the training."""
    # With the evaluations, which older versions did not time; nor did the oldest time anything.
    seconds = [row.get('wall_seconds', row.get('seconds')) for row in rows]
    known = [value for value in seconds if value is not None]
    raised = (workdir / 'config_history.json').exists()
    return {
        'seed': config.seed,
        'epochs': config.epochs,
        'epoch': epoch,
        'weights': chosen(config, epoch, which, rows[-1])
        + '; epochs were raised on the way, which a run from the start does not repeat' * raised,
        # Of runs of a version that did not write it down it is not known.
        'seconds': round(sum(known), 1) if len(known) == len(rows) else None,
    }


def chosen(config: Config, epoch: int, which: str, row: Mapping[str, Any]) -> str:
    """Says in words how the weights of a run were chosen.

    Args:
      config: of the run.
      epoch: that they are of.
      which: checkpoint, 'latest' or 'best'.
      row: metrics of an epoch, which tell what the best was chosen on.
    """
    if which == 'latest':
        return f'of epoch {epoch}, the last: nothing was chosen'
    split = metrics.rated_by(row)
    flattered = ', so that its accuracy there is flattered' * (split == 'test')
    return f'of epoch {epoch}, the best of {config.epochs} on the {split} split{flattered}'


def _result(measured: Accuracy) -> dict[str, Any]:
    return {'accuracy': measured.accuracy, **measured._asdict()}


def _data(setup: Setup) -> dict[str, Any]:
    dataset = setup.dataset
    splits = {'train': dataset.train, 'validation': dataset.validation, 'test': dataset.test}
    return {
        'data': setup.config.data.name,
        'examples': {split: len(source) for split, source in splits.items() if source is not None},
        'classes': list(dataset.class_names),
        'image_shape': list(dataset.image_shape),
        'mean': dataset.mean.tolist(),
        'std': dataset.std.tolist(),
    }


def _commands(name: str, configuration: str, overrides: list[str]) -> dict[str, str]:
    """The command that trained, and the one whose last line has the digits of the card."""
    program = f'python train.py --config=configs/{configuration}.py'
    evaluation = [each for each in overrides if not each.lstrip("'").startswith('--config.init_')]
    return {
        'train': ' '.join([program, f'--workdir=runs/{name}', *overrides]),
        'evaluate': ' '.join([program, '--mode=eval', f'--config.init_from=zoo/{name}', *evaluation]),
    }


@files_named()
def _write(out: pathlib.Path, found: dict[str, Any], stored: npz.Arrays) -> dict[str, Any]:
    """Writes the folder beside its place and moves it there; returns the card."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f'{out.name}.{uuid.uuid4().hex}.tmp')
    try:
        npz.write(temporary / zoo.WEIGHTS, stored)
        contents = (temporary / zoo.WEIGHTS).read_bytes()
        found = found | {'bytes': len(contents), 'sha256': hashlib.sha256(contents).hexdigest()}
        (temporary / zoo.CARD).write_text(json.dumps(found, indent=2) + '\n', 'utf-8')
        (temporary / 'README.md').write_text(card_page.page(found), 'utf-8')
        os.rename(temporary, out)  # fails where a folder with files has come there meanwhile
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return found


def cards(home: pathlib.Path | None = None) -> dict[str, Mapping[str, Any]]:
    """Reads the cards of a zoo, by name."""
    folder = home or zoo.home()
    return {path.parent.name: zoo.card(path.parent) for path in sorted(folder.glob(f'*/{zoo.CARD}'))}


def main(arguments: list[str] | None = None) -> int:
    """Makes an entry, or the table; returns the exit code, 2 after a sentence on what can be set right."""
    parser = argparse.ArgumentParser(
        prog='python -m cpng_jax.training.zoo', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--workdir', help='folder of the run')
    parser.add_argument('--out', help='the new folder, such as zoo/digits')
    parser.add_argument('--config', help="the run's configuration, by name or file; default: NAME for zoo/NAME")
    parser.add_argument('--checkpoint', choices=('latest', 'best'), default='latest', help='default: latest')
    parser.add_argument('--dtype', choices=DTYPES, default='float32', help='of the stored weights; default: float32')
    parser.add_argument('--table', help='instead: the file whose table is brought up to date')
    flags = parser.parse_args(arguments)
    if (flags.table is None) == (flags.workdir is None or flags.out is None):
        parser.error('expected --workdir and --out, or --table')
    try:
        print(_table(local(flags.table, '--table')) if flags.table is not None else _entry(flags))
    except UserError as error:
        print(f'zoo: {error}', file=sys.stderr)
        return 2
    return 0


@files_named()
def _table(path: pathlib.Path) -> str:
    path.write_text(card_page.with_table(path.read_text('utf-8'), cards()), 'utf-8')
    return f'{path}: the table has {", ".join(cards())}'


def _entry(flags: argparse.Namespace) -> str:
    workdir, out = local(flags.workdir, '--workdir'), local(flags.out, '--out')
    file, _ = config_file.find(out.name if flags.config is None else flags.config)
    found = make(workdir, out, file=file, which=flags.checkpoint, dtype=flags.dtype)
    return f'{out}: {found["bytes"] / 1e6:.2f} MB, test accuracy {card_page.accuracy(found["test"])}'


if __name__ == '__main__':
    sys.exit(main())
