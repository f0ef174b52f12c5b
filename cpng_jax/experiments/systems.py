"""The systems of Table 4 as arms of an experiment: what the paper compares with, at one network and data set."""

from collections.abc import Sequence

from cpng_jax.experiments.plan import CPNG, FIXED, Arm, Plan
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError

# The method by which an arm is converted that is trained on from there, Diet-SNN.
CONVERSION = 'diet'
# What all others are compared with, seed by seed.
BASELINE = 'CPNG'
# Numbers of time steps that ANNs are converted for.
_TIME_STEPS = (8, 16, 32, 64, 128)

_ANN = {'neuron.kind': 'relu', 'model.time_steps': 1}
# Without norms nothing keeps activations in bounds: the learning rate of Diet-SNN.
_DIET_ANN = _ANN | {'norm.kind': 'none', 'optim.learning_rate': 0.01}


def table4(config: Config, values: Sequence[float] | None) -> Plan:
    """The systems that the paper compares with, at one network and data set (Table 4)."""
    own = {'neuron.kind': 'lif', 'model.time_steps': config.model.time_steps}
    diet = {'neuron.kind': 'diet', 'neuron.tau': 1.0, 'neuron.detach_reset': True, 'norm.kind': 'none'}
    diet |= {'optim.name': 'amsgrad', 'optim.learning_rate': 1e-4, 'optim.weight_decay': 0.0}
    diet |= {'loss.name': 'sum_output', 'cpng.beta_init': 1.0, 'cpng.scale_init': 0.3}
    tet = {'loss.name': 'tet', 'loss.tet_weight': 0.05}
    dspike = {'neuron.surrogate': 'dspike', 'cpng.rule': 'dspike', 'cpng.beta_init': 3.0, 'cpng.dspike_step': 0.2}
    systems = {
        'fixed beta': FIXED | own,
        'CPNG': CPNG | own,
        'CPNG + TET': CPNG | own | tet,
        'coherence and gain': CPNG | own | {'cpng.rule': 'coherent_gain'},
        'TET': FIXED | own | tet,
        'STBP-tdBN': FIXED | own | {'neuron.surrogate': 'rectangular', 'neuron.tau': 0.25, 'neuron.v_th': 0.5},
        'Dspike': CPNG | own | dspike,
        'ANN': _ANN,
        'ANN, QCFS': _ANN | {'neuron.kind': 'qcfs'},
        'ANN without norms': _DIET_ANN,
        'Diet-SNN': FIXED | own | diet,
    }
    conversions = {'ANN': ('none', 'calibration_light', 'calibration_advanced'), 'ANN, QCFS': ('qcfs',)}
    arms = []
    for label, changes in systems.items():
        source, folder = ('ANN without norms', 'diet_snn') if label == 'Diet-SNN' else (None, None)
        baseline = None if label == BASELINE else BASELINE
        more = {'converted_from': source, 'conversions': conversions.get(label, ()), 'folder': folder}
        arms.append(Arm(label, changes, {'system': label}, baseline, **more))
    wanted = values or _TIME_STEPS
    if not all(value >= 1 and float(value).is_integer() for value in wanted):
        given = ','.join(f'{value:g}' for value in wanted)
        raise UserError(f'--values is {given}, expected numbers of time steps, such as 8,32.')
    steps = tuple(sorted({int(value) for value in wanted}))
    return Plan('The systems that the paper compares with', 'Table 4', tuple(arms), conversion_steps=steps)
