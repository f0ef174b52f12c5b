"""Kinds of neurons by name. A new one is a module with fields of `LIF`, and an entry here of what it can do.

The fields of its module say which keys of a configuration it has: `neuron.levels` is that of those with `levels`.
"""

from typing import NamedTuple

from flax import linen as nn

from cpng_jax.nn.adaptive_neuron import AdaptedLIF
from cpng_jax.nn.analog_neuron import QCFS, ReLU
from cpng_jax.nn.deviation_neuron import DeviationLIF
from cpng_jax.nn.diet_neuron import DietLIF
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.soft_reset import SoftResetIF


class Kind(NamedTuple):
    """A kind of neuron.

    Attributes:
      title: what it is, and whose: a line for help and documentation.
      module: its class.
      counts: it measures the collection `distances`, which chi is counted from.
      pallas: it runs in the kernels of `pallas_loop`.
      fixed_threshold: its threshold, and the width that beta stands for, are the same at each step, so that the gain
        can be told from its potentials.
      sets_support: it says how wide the interval is where the gradient is not 0: the shape must let beta widen that.
      spikes: it has a surrogate gradient, and potentials to set that by; otherwise it is that of an ANN, at T = 1.
      ignores: fields of its module that have no effect.
    """

    title: str
    module: type[nn.Module]
    counts: bool = False
    pallas: bool = False
    fixed_threshold: bool = False
    spikes: bool = True
    ignores: tuple[str, ...] = ()
    sets_support: bool = False


KINDS: dict[str, Kind] = {
    'lif': Kind(
        'leaky integrate-and-fire, integrate-and-fire at tau = 1 (Eq. 2)',
        LIF,
        counts=True,
        pallas=True,
        fixed_threshold=True,
    ),
    'ds_atgo': Kind(
        'LIF whose threshold and width follow the potentials at each time step (Jiang et al., AAAI 2026)', AdaptedLIF
    ),
    'mpd_agl': Kind(
        'LIF whose width at each time step follows the scale of the tdBN before it (Jiang et al., IJCAI 2025)',
        DeviationLIF,
        sets_support=True,
    ),
    'diet': Kind(
        'LIF that subtracts its threshold; each layer learns threshold and leak (Rathi and Roy, TNNLS 2021)',
        DietLIF,
        ignores=('learn_tau', 'implementation'),
    ),
    'if_soft': Kind(
        'integrate-and-fire that subtracts its threshold and answers with it: what cpng-convert makes of an ANN',
        SoftResetIF,
        ignores=('tau', 'learn_tau', 'detach_reset', 'implementation'),
    ),
    'relu': Kind('none: the rectified linear units of an ANN, at T = 1', ReLU, spikes=False),
    'qcfs': Kind(
        'none: units of an ANN that clip and quantize, at T = 1, for cpng-convert (Bu et al., ICLR 2022)',
        QCFS,
        spikes=False,
    ),
}
