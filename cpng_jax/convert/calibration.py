"""Calibration: what is left of the difference between an ANN and the network that spikes in its place is taken away.

Li et al., "A Free Lunch From ANN: Towards Efficient, Accurate Spiking Neural Networks Calibration", ICML 2021. Layer by
layer, in the order that they run in, each layer is set so that its mean answer is that of the ANN, the layers before it
being calibrated already. The ANN stays as it is.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from cpng_jax.convert.means import ByLayer, Measure
from cpng_jax.convert.network import Activation, Variables, parameter, with_params
from cpng_jax.nn.surrogate import Array

Said = Callable[[str], None]
"""Tells whoever waits how far things are."""


def correct_biases(
    snn: Measure, variables: Variables, answers: ByLayer, images: Array, layers: Sequence[Activation]
) -> Variables:
    """Shifts the currents of each layer until each channel answers as much as that of the ANN (light pipeline).

    Args:
      snn: measures the network that spikes.
      variables: its collections.
      answers: of the ANN to the images, by layer.
      images: a batch, in the form that networks take.
      layers: in the order that they run in.

    Returns:
      The collections, with other shifts.

    Source: Li et al. (2021), Sec. 4.2, Eq. 15.
    """
    of_channels = lambda off: jnp.mean(off, axis=tuple(range(off.ndim - 1)))
    return _corrected(snn, variables, answers, images, layers, 'shift', of_channels)


def correct_potentials(
    snn: Measure, variables: Variables, answers: ByLayer, images: Array, layers: Sequence[Activation], time_steps: int
) -> Variables:
    """Starts each neuron with the potential that it lacks to answer as much as that of the ANN (advanced pipeline).

    Args:
      snn: measures the network that spikes.
      variables: its collections.
      answers: of the ANN to the images, by layer.
      images: a batch, in the form that networks take.
      layers: in the order that they run in.
      time_steps: T.

    Returns:
      The collections, with other potentials at the start.

    Source: Li et al. (2021), Sec. 4.3, Eq. 19.
    """
    of_neurons = lambda off: time_steps * jnp.mean(off, axis=0, keepdims=True)
    return _corrected(snn, variables, answers, images, layers, 'start', of_neurons)


def _corrected(
    snn: Measure,
    variables: Variables,
    answers: ByLayer,
    images: Array,
    layers: Sequence[Activation],
    what: str,
    lacking: Callable[[Array], Array],
) -> Variables:
    """Adds to a parameter of each layer what its answers lack, the layers before it being corrected already."""
    for layer in layers:
        off = answers[layer.path] - snn(variables, images).answers[layer.path]
        name = f'{layer.path}/{what}'
        variables = with_params(variables, {name: parameter(variables, name) + lacking(off)})
    return variables
