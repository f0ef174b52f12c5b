"""CPNG in JAX: surrogate gradients for spiking networks whose width follows the membrane potentials.

The library, usable in anyone's JAX code. The training program lives in the other modules and is not imported here.
"""

import os
import signal
import sys

# `python -m cpng_jax.analysis`, `cpng-analysis`: Ctrl-C during the imports ends the program; JAX might swallow Python's
# exception.
if (
    (sys.argv[:1] == ['-m'] and any(argument.startswith('cpng_jax.') for argument in sys.orig_argv))
    or os.path.basename(''.join(sys.argv[:1])).startswith('cpng-')
) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from cpng_jax.control import cpng
from cpng_jax.control.coherence import beta_for_coherence, coherence
from cpng_jax.control.cpng import CPNGConfig, CPNGReport, CPNGState
from cpng_jax.control.effective_domain import beta_for_chi, chi
from cpng_jax.control.gradient_gain import beta_for_gain, gain, scale_for_gain
from cpng_jax.control.layer_tree import like_beta
from cpng_jax.models.inputs import network_input
from cpng_jax.models.vgg import VGG
from cpng_jax.models.zoo import card, load
from cpng_jax.nn.layers import Conv, Dense, TdBN, avg_pool
from cpng_jax.nn.losses import mean_output_cross_entropy
from cpng_jax.nn.neuron import lif
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.statistics import MembraneDistances, MembraneStats, membrane_stats
from cpng_jax.nn.surrogate import Surrogate, spike

__version__ = '0.2.0'

__all__ = [
    'LIF',
    'VGG',
    'CPNGConfig',
    'CPNGReport',
    'CPNGState',
    'Conv',
    'Dense',
    'MembraneDistances',
    'MembraneStats',
    'Surrogate',
    'TdBN',
    'avg_pool',
    'beta_for_chi',
    'beta_for_coherence',
    'beta_for_gain',
    'card',
    'chi',
    'coherence',
    'cpng',
    'gain',
    'lif',
    'like_beta',
    'load',
    'mean_output_cross_entropy',
    'membrane_stats',
    'network_input',
    'scale_for_gain',
    'spike',
]
