"""Converts a trained ANN into networks that spike, and measures these.

    cpng-convert --workdir=runs/ann --method=qcfs --time_steps=8,16,32
    cpng-convert --workdir=runs/ann --method=calibration_light
    cpng-convert --workdir=runs/ann --method=calibration_advanced --images=512 --iterations=1000

The ANN is a run of `cpng-train` with config.neuron.kind=relu or qcfs. For each number of time steps there is a workdir,
such as `convert/qcfs/T8` in that of the ANN, which `cpng-train --mode=eval`, summary and `cpng-analysis` read; and one
table of all, `convert.md`, with a CSV and a picture. What is finished is kept: the same command goes on.
`python -m cpng_jax.convert` is the same program.
"""

import sys

from cpng_jax.runtime import programs

try:
    from absl import flags

    from cpng_jax.convert import results
    from cpng_jax.convert.convert import Options, convert, read
    from cpng_jax.convert.methods import METHODS
    from cpng_jax.convert.weight_calibration import Training
    from cpng_jax.models.summary import summarise
    from cpng_jax.runtime import command, paths
    from cpng_jax.runtime.errors import UserError, files_named
except ModuleNotFoundError as missing:
    sys.exit(programs.missing(missing))

_WORKDIR = command.define_workdir('Folder of the run of the ANN.')
_METHOD = command.define_choice('method', tuple(METHODS), 'How to convert.')
_TIME_STEPS = flags.DEFINE_list('time_steps', ['8', '16', '32', '64', '128'], 'Numbers of time steps, T.')
_CHECKPOINT = command.define_choice('checkpoint', ('latest', 'best'), 'Which checkpoint of the run.')
_OUT = flags.DEFINE_string('out', None, 'Folder of what is written; convert/METHOD in the workdir if not given.')
_DEFAULT = Training()
_IMAGES = flags.DEFINE_integer(
    'images', 1024, 'Training images that weights are calibrated on, calibration_advanced.', lower_bound=1
)
_ITERATIONS = flags.DEFINE_integer(
    'iterations', _DEFAULT.iterations, 'Steps that the weights of a layer are calibrated in.', lower_bound=1
)
_LEARNING_RATE = flags.DEFINE_float(
    'learning_rate', _DEFAULT.learning_rate, 'Of these steps, at the start.', lower_bound=0
)
_PERCENTILE = flags.DEFINE_float(
    'percentile', 99.7, 'Of what a layer is given, for its threshold; of diet.', lower_bound=0, upper_bound=100
)
_SCALING = flags.DEFINE_float('scaling', 0.6, 'Of the thresholds of diet.', lower_bound=0)


@files_named()
def main(argv: list[str]) -> None:
    """Converts what the command line names, and writes the table."""
    if argv[1:]:
        raise UserError(f'unexpected argument {argv[1]!r}: expected --workdir=FOLDER and --method={"|".join(METHODS)}.')
    if _WORKDIR.value is None:
        raise UserError('expected --workdir, the folder of the run of an ANN.')
    time_steps = _steps()
    workdir = paths.local(_WORKDIR.value, '--workdir')
    folder = workdir / 'convert' / _METHOD.value if _OUT.value is None else paths.local(_OUT.value, '--out')
    training = Training(iterations=_ITERATIONS.value, learning_rate=_LEARNING_RATE.value)
    options = Options(_METHOD.value, _CHECKPOINT.value, _IMAGES.value, training, _PERCENTILE.value, _SCALING.value)
    ann = read(workdir, options)
    print(f'ANN of {workdir}, step {int(ann.state.step)}: test accuracy {ann.accuracy:.2%}', flush=True)
    rows = []
    for steps in time_steps:
        row = convert(ann, options, steps, folder / f'T{steps}', lambda what, at=steps: _say(f'T = {at}: {what}'))
        _say(
            f'T = {steps}: test accuracy {row["test_accuracy"]:.2%}, firing {row["firing_rate"]:.1%}, '
            f'{row["seconds"]:.1f} s'
        )
        rows.append(row)
    multiply_adds = summarise(ann.setup.model, ann.setup.example).multiply_adds
    of_ann = {'test_accuracy': ann.accuracy, 'multiply_adds': multiply_adds}
    title = f'{ann.config.model.name} on {ann.config.data.name}, converted by {options.method}'
    for path in results.write(rows, of_ann, folder, title=title):
        print(path, flush=True)
    last = folder / f'T{time_steps[-1]}'
    print(f'next: {programs.command("train")} --config={last}/config.json --workdir={last} --mode=eval', flush=True)


def _steps() -> list[int]:
    """The numbers of time steps, each once, in ascending order."""
    texts = _TIME_STEPS.value
    if not texts or not all(text.isdecimal() and int(text) >= 1 for text in texts):
        raise UserError(f'--time_steps is {",".join(texts)!r}, expected numbers of steps, such as 8,16,32.')
    return sorted({int(text) for text in texts})


def _say(line: str) -> None:
    print(line, flush=True)


def program() -> None:
    """Runs the program with the flags of the command line."""
    command.run(main)


if __name__ == '__main__':
    program()
