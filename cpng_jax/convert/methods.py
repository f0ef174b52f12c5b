"""The ways to convert an ANN, by name."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from cpng_jax.convert import thresholds
from cpng_jax.convert.calibration import Said, correct_biases, correct_potentials
from cpng_jax.convert.means import Measure, averaged, make_measure
from cpng_jax.convert.network import Activation, Variables, parameter, with_params
from cpng_jax.convert.percentile import percentile_thresholds
from cpng_jax.convert.weight_calibration import Training, calibrate_weights
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime.errors import UserError

# Batches that thresholds are found on, and the share of the running average over them that is kept.
_BATCHES, _KEPT = 7, 0.9
# Images that Diet-SNN looks at.
_DIET_IMAGES = 512


class Task(NamedTuple):
    """A conversion to be made.

    Attributes:
      ann: the network that was trained.
      ann_variables: its collections.
      snn: the network that spikes.
      variables: its collections, weights being those of the ANN with the norms folded in.
      layers: of neurons, in the order that they run in.
      time_steps: T.
      batches: yields training batches, in the form that the networks take, without end.
      images: that weights are calibrated on.
      training: how they are.
      percentile: of what a layer is given, for its threshold, 0 to 100; of `diet`.
      scaling: of thresholds after that.
      key: of random numbers.
      say: told of what is being done.
    """

    ann: nn.Module
    ann_variables: Variables
    snn: nn.Module
    variables: Variables
    layers: list[Activation]
    time_steps: int
    batches: Iterator[Array]
    images: int
    training: Training
    percentile: float
    scaling: float
    key: Array
    say: Said


class Method(NamedTuple):
    """A way to convert.

    Attributes:
      title: what it is, and whose.
      convert: makes the collections of the network that spikes.
      trains: it trains the weights of layers, so that the options of that have an effect.
      kinds: of neurons that it converts; those of any ANN if empty.
      makes: kind of neurons that it makes of them.
    """

    title: str
    convert: Callable[[Task], Variables]
    trains: bool = False
    kinds: tuple[str, ...] = ()
    makes: str = 'if_soft'


def _qcfs(task: Task) -> Variables:
    """Bu et al.: the threshold is the one that was learnt, and half of it is there from the start."""
    changes: dict[str, Array] = {}
    for layer in task.layers:
        learnt = parameter(task.ann_variables, f'{layer.path}/threshold')
        if not learnt > 0:
            raise UserError(
                f'The threshold of {layer.path} became {float(learnt):.3g} in training, expected more than 0: train '
                'again with a larger config.neuron.threshold or a smaller config.optim.learning_rate.'
            )
        changes |= {f'{layer.path}/threshold': learnt, f'{layer.path}/start': learnt / 2}
    return with_params(task.variables, changes)


def _with_thresholds(task: Task, of_layer: Callable[[Array], Array]) -> tuple[Measure, Variables]:
    """Thresholds by what the ANN answers, and half a step of T more at each; also what measures the ANN."""
    ann, found = make_measure(task.ann), []
    each = jax.jit(of_layer)
    for batch in itertools.islice(task.batches, _BATCHES):
        answers = ann(task.ann_variables, batch).answers
        found.append({layer.path: each(answers[layer.path]) for layer in task.layers})
    changes: dict[str, Array] = {}
    for path, average in averaged(found, _KEPT).items():
        # A layer that answers nothing has nothing to be clipped.
        threshold = jnp.where(average > 0, average, 1.0)
        changes |= {f'{path}/threshold': threshold, f'{path}/shift': threshold / (2 * task.time_steps)}
    return ann, with_params(task.variables, changes)


def _none(task: Task) -> Variables:
    return _with_thresholds(task, thresholds.largest)[1]


def _mmse(task: Task) -> tuple[Measure, Variables]:
    task.say(f'thresholds, on {_BATCHES} batches')
    return _with_thresholds(task, lambda answers: thresholds.mmse(answers, task.time_steps))


def _light(task: Task) -> Variables:
    ann, variables = _mmse(task)
    images = next(task.batches)
    task.say('biases, on a batch')
    answers = ann(task.ann_variables, images).answers
    return correct_biases(make_measure(task.snn), variables, answers, images, task.layers)


def _advanced(task: Task) -> Variables:
    ann, variables = _mmse(task)
    snn, images = make_measure(task.snn), next(task.batches)
    some = [images, *itertools.islice(task.batches, -(-task.images // len(images)) - 1)]
    variables = calibrate_weights(
        ann,
        snn,
        task.ann_variables,
        variables,
        some,
        task.layers,
        task.time_steps,
        training=task.training,
        key=task.key,
        say=task.say,
    )
    task.say('potentials at the start, on a batch')
    answers = ann(task.ann_variables, images).answers
    return correct_potentials(snn, variables, answers, images, task.layers, task.time_steps)


def _diet(task: Task) -> Variables:
    """Rathi and Roy: thresholds by a percentile of what each layer is given, over 100 steps."""
    some, count = [], 0
    while count < _DIET_IMAGES:
        some.append(next(task.batches))
        count += len(some[-1])
    images = jnp.concatenate(some)[:_DIET_IMAGES]
    try:
        return percentile_thresholds(
            task.snn,
            task.variables,
            images,
            percentile=task.percentile,
            scaling=task.scaling,
            found=lambda layer, threshold: task.say(f'threshold of {layer}: {threshold:.4g} before scaling'),
        )
    except ValueError as error:
        raise UserError(f'--method=diet: {error}') from error


METHODS: dict[str, Method] = {
    'qcfs': Method(
        'thresholds learnt with the ANN, half of one at the start (Bu et al., ICLR 2022)', _qcfs, kinds=('qcfs',)
    ),
    'calibration_light': Method(
        'thresholds of the least square error, biases calibrated (Li et al., ICML 2021, light pipeline)', _light
    ),
    'calibration_advanced': Method(
        'the same thresholds, weights and first potentials calibrated (Li et al., ICML 2021, advanced pipeline)',
        _advanced,
        trains=True,
    ),
    'diet': Method(
        'thresholds by a percentile, to be trained on with leak and threshold (Diet-SNN; Rathi and Roy, 2021)',
        _diet,
        makes='diet',
    ),
    'none': Method('thresholds that clip nothing; the least that a conversion can be', _none),
}
