"""What an inference costs by counts of operations: energies of an SNN, and of the ANN of the same shape.

Energies are those of 45 nm at 0.9 V (Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014),
as most papers on spiking networks take them. They are numbers to compare with, not a measurement of a device.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Constants(NamedTuple):
    """Energies in pJ; the defaults are Horowitz's, for 32-bit floats.

    Attributes:
      mac: a multiply-add, 3.7 + 0.9; with 8-bit integers 0.2 + 0.03.
      ac: an addition.
      bits: of a weight, a potential and an activation; a spike is one bit.
      sram_8kb: reading or writing 64 bits in an SRAM of up to 8 KiB.
      sram_32kb: up to 32 KiB.
      sram_1mb: up to 1 MiB.
      dram: where an array is larger; he has 1300 to 2600.
    """

    mac: float = 4.6
    ac: float = 0.9
    bits: int = 32
    sram_8kb: float = 10.0
    sram_32kb: float = 20.0
    sram_1mb: float = 100.0
    dram: float = 1300.0


class Layer(NamedTuple):
    """A convolution or dense layer and the neurons behind it, at the work of one image.

    Attributes:
      name: its path.
      weights: numbers in its kernel, and one bias for each output channel, that of a norm folded in.
      inputs: values that it takes in a step.
      outputs: values that it gives in a step.
      steps: time steps that it is computed in: T, or 1 for a static image, whose currents are kept.
      time_steps: T.
      macs: multiply-adds of the SNN.
      acs: accumulates of the SNN: each spike times the outputs that it reaches.
      input_bits: of an input of the SNN; None for real values.
      neurons: sums behind it that are kept from step to step: potentials, or of the last layer the outputs so far; 0
        behind one branch of two, whose neurons are counted with the other.
      leaky: whether these are multiplied at each step.
      spiking: whether they are of neurons that spike.
      spikes: of these neurons.
      ann_macs: multiply-adds of the ANN.
      first: whether it takes the image.
    """

    name: str
    weights: int
    inputs: int
    outputs: int
    steps: int
    time_steps: int
    macs: float
    acs: float
    input_bits: int | None
    neurons: int
    leaky: bool
    spiking: bool
    spikes: float
    ann_macs: float
    first: bool = False


class Traffic(NamedTuple):
    """Energy of memory accesses in pJ: of weights, of potentials and currents, of spikes and activations."""

    weights: float
    potentials: float
    activations: float


# How often an array passes from memory to arithmetic: bounds between which dataflows lie.
MEMORIES = {
    'inference': 'each array once an image: layer by layer, all time steps of one before the next, perfect reuse',
    'step': 'each array once a time step: step by step, as a stream asks for, perfect reuse within a step',
    'operation': 'operands for each operation: no reuse',
}


class Energy(NamedTuple):
    """Energy of a layer for one image, in pJ.

    Attributes:
      macs: multiply-adds.
      acs: accumulates.
      neurons: updates of neurons; of the ANN, biases.
      memory: traffic by each of `MEMORIES`.
    """

    macs: float
    acs: float
    neurons: float
    memory: dict[str, Traffic]

    @property
    def arithmetic(self) -> float:
        """Energy of all operations, memory left out."""
        return self.macs + self.acs + self.neurons

    def total(self, memory: str | None) -> float:
        """Energy with the memory traffic of a model, one of `MEMORIES`; None leaves it out."""
        return self.arithmetic + (0.0 if memory is None else sum(self.memory[memory]))


def access(values: float, bits: float, constants: Constants) -> float:
    """Energy of 64 bits in the smallest memory that holds an array.

    Args:
      values: in the array.
      bits: of a value.
      constants: energies.

    Returns:
      pJ for reading or writing 64 bits.
    """
    kib = values * bits / 8 / 1024
    sizes = ((8, constants.sram_8kb), (32, constants.sram_32kb), (1024, constants.sram_1mb))
    return next((energy for size, energy in sizes if kib <= size), constants.dram)


def of_snn(layer: Layer, constants: Constants, *, spikes: float = 1.0) -> Energy:
    """Energy of a layer of the SNN.

    A neuron's update, once a step, is an addition of its bias and, where it leaks, a multiplication: counted as a
    multiply-add; without a leak as an addition. Resets, thresholds, pools and shortcuts are left out. Where nothing is
    reused, a multiply-add reads a weight and an input, an accumulate reads a weight and reads and writes a potential
    (as in Lemaire et al., ICONIP 2022, arXiv:2210.13107), and an update reads and writes a potential.

    Args:
      layer: its counts.
      constants: energies.
      spikes: factor on all spikes, to find where the energies of two networks meet.

    Returns:
      The `Energy`.
    """
    bits, steps, acs = constants.bits, layer.time_steps, spikes * layer.acs
    word = lambda values, size=bits: access(values, size, constants) * size / 64
    weight, potential = word(layer.weights), word(layer.outputs)
    real = layer.input_bits is None
    value = word(layer.inputs, bits if layer.input_bits is None else layer.input_bits)
    fired = steps * layer.neurons * word(layer.neurons, 1) if layer.spiking else 0.0
    passed = layer.steps * layer.inputs * value + fired
    # Currents that are computed once and serve every step: written, and read each time.
    kept = (1 + steps) * layer.outputs * potential if layer.steps < steps else 0.0
    between = 2 * (steps - 1) * layer.neurons * potential
    updates = 2 * steps * layer.neurons * potential
    memory = {
        'inference': Traffic(layer.weights * weight, 0.0, passed),
        'step': Traffic(layer.steps * layer.weights * weight, kept + between, passed),
        'operation': Traffic(
            (layer.macs + acs) * weight,
            kept + updates + 2 * acs * potential,
            layer.macs * value + fired if real else passed,
        ),
    }
    neurons = steps * layer.neurons * (constants.mac if layer.leaky else constants.ac)
    return Energy(layer.macs * constants.mac, acs * constants.ac, neurons, memory)


def of_ann(layer: Layer, constants: Constants, *, density: float = 1.0) -> Energy:
    """Energy of the layer in the ANN of the same shape, with ReLU in the place of the neurons, in one pass.

    Args:
      layer: its counts.
      constants: energies.
      density: share of the activations that are not zero, where the arithmetic skips zeros; what the first layer takes
        counts as it is.

    Returns:
      The `Energy`.
    """
    word = lambda values: access(values, constants.bits, constants) * constants.bits / 64
    macs = layer.ann_macs * (1.0 if layer.first else density)
    weight, value, written = word(layer.weights), word(layer.inputs), layer.outputs * word(layer.outputs)
    once = Traffic(layer.weights * weight, 0.0, layer.inputs * value + written)
    memory = {'inference': once, 'step': once, 'operation': Traffic(macs * weight, 0.0, macs * value + written)}
    return Energy(macs * constants.mac, 0.0, layer.outputs * constants.ac, memory)


class Comparison(NamedTuple):
    """The SNN beside the ANN.

    Attributes:
      snn: energy of an image, pJ.
      ann: the same of the ANN.
      factor: by which all spikes could grow until both are equal; below 0 none is few enough, infinite where spikes
        cost nothing or there is none.
    """

    snn: float
    ann: float
    factor: float

    @property
    def ratio(self) -> float:
        """How many times the energy of the SNN the ANN needs: above 1 the SNN needs less."""
        return self.ann / self.snn


def compare(layers: Sequence[Layer], constants: Constants, memory: str | None) -> Comparison:
    """Compares both networks.

    Args:
      layers: of the network.
      constants: energies.
      memory: one of `MEMORIES`, or None for arithmetic alone.

    Returns:
      The `Comparison`.
    """
    total = lambda spikes: sum(of_snn(layer, constants, spikes=spikes).total(memory) for layer in layers)
    snn, without = total(1.0), total(0.0)
    ann = sum(of_ann(layer, constants).total(memory) for layer in layers)
    return Comparison(snn, ann, (ann - without) / (snn - without) if snn > without else math.inf)


def density_at_break_even(layers: Sequence[Layer], constants: Constants) -> float:
    """The share of nonzero activations at which an ANN that skips zeros needs the arithmetic of the SNN.

    Args:
      layers: of the network.
      constants: energies.

    Returns:
      The share; above 1 or below 0 there is none.
    """
    snn = sum(of_snn(layer, constants).arithmetic for layer in layers)
    ann = lambda density: sum(of_ann(layer, constants, density=density).arithmetic for layer in layers)
    full, none = ann(1.0), ann(0.0)
    return (snn - none) / (full - none) if full > none else math.inf


def firing_rate(layers: Sequence[Layer]) -> float:
    """The share of neurons and time steps with a spike; 0 without neurons."""
    neurons = sum(layer.neurons * layer.time_steps for layer in layers if layer.spiking)
    return sum(layer.spikes for layer in layers) / neurons if neurons else 0.0
