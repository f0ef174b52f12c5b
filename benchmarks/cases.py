"""The work that `benchmarks.race` gives to both sides, and its inputs: what both sides import, so numpy alone."""

import dataclasses
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]

# T of a layer of neurons.
TIME_STEPS = (4, 10, 50, 100)

_SEED = 0
_ROWS = 64
# Numbers that are drawn of a layer at each time step; larger ones repeat them.
_DRAWN = 1 << 20


class Network(NamedTuple):
    """A network of the paper, as far as both sides must agree on it.

    Attributes:
      config: file in `configs/`.
      surrogate: of our neurons; that of a peer's is the same shape.
      time_steps: T.
      batch: examples in a training step, on a small machine.
      image_size: edge of an image of three channels.
      classes: number of outputs.
      check_size: edge of an image where only equality is checked.
    """

    config: str
    surrogate: str
    time_steps: int
    batch: int
    image_size: int
    classes: int
    check_size: int


NETWORKS = {
    'vgg16': Network('cifar100_vgg16', 'triangular', 5, 16, 32, 100, 32),
    'resnet19': Network('cifar10_resnet19', 'triangular', 6, 8, 32, 10, 32),
    'sew_resnet34': Network('imagenet_sew_resnet34', 'arctan', 4, 2, 224, 1000, 64),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
      name: 'lif', a layer of neurons, forward and backward; 'copy', 1 added to an array of as many numbers, of ours
        alone; or a key of `NETWORKS`, a training step.
      time_steps: T.
      batch: examples of a network.
      width: factor on all channels of a network.
      image_size: edge of its images.
      neurons: of the layer.
      dtype: 'float32', or 'bfloat16': `config.dtype` of ours, autocast of a PyTorch peer.
      channels_last: memory layout of a PyTorch peer.
      compile: run a PyTorch peer through `torch.compile`.
      implementation: `neuron.implementation` of ours; '' for that of the configuration.
      convolution: of `benchmarks.convolutions`, whose names are what is done with it: examples, edge of the map,
        channels, features, edge of the kernel, stride.
    """

    name: str
    time_steps: int
    batch: int = 0
    width: float = 1.0
    image_size: int = 0
    neurons: int = 0
    dtype: str = 'float32'
    channels_last: bool = False
    compile: bool = False
    implementation: str = ''
    convolution: tuple[int, ...] = ()

    @property
    def size(self) -> str:
        """What the work is, for a table."""
        if self.name == 'lif':
            return f'T = {self.time_steps}, {self.neurons:,} neurons'
        if self.name == 'copy':
            return f'{self.neurons:,} numbers'
        width = '' if self.width == 1 else f', width {self.width:g}'
        return f'T = {self.time_steps}, batch {self.batch}, {self.image_size} x {self.image_size}{width}'

    def reduced(self) -> 'Case':
        """The same work small enough for rounding not to move a potential across the threshold, in float32."""
        if self.name == 'lif':
            return dataclasses.replace(self, neurons=min(self.neurons, _DRAWN))
        size = min(self.image_size, NETWORKS[self.name].check_size)
        return dataclasses.replace(self, batch=2, width=1 / 16, image_size=size, dtype='float32', compile=False)


def lif_case(time_steps: int, neurons: int) -> Case:
    """A layer of neurons; their number is rounded up to a multiple of 64."""
    return Case('lif', time_steps, neurons=-(-neurons // _ROWS) * _ROWS)


def network_case(name: str, batch: int = 0, width: float = 1.0) -> Case:
    """A training step of a network; `batch` 0 for that of `NETWORKS`."""
    network = NETWORKS[name]
    return Case(name, network.time_steps, batch or network.batch, width, network.image_size)


def lif_inputs(case: Case) -> Arrays:
    """Draws `currents` and the `cotangent` of the spikes, `[T, 64, neurons / 64]`, float32.

    About one potential in five reaches the threshold, and most lie inside the surrogate gradient's domain.
    """
    rng = np.random.default_rng(_SEED)
    columns = case.neurons // _ROWS
    shape = (case.time_steps, _ROWS, min(columns, _DRAWN // _ROWS))
    drawn = rng.normal(0.4, 0.6, shape), rng.normal(size=shape)
    currents, cotangent = (np.take(a.astype(np.float32), range(columns), axis=-1, mode='wrap') for a in drawn)
    return {'currents': currents, 'cotangent': cotangent}


def network_inputs(case: Case) -> Arrays:
    """Draws `images`, uint8 `[B, H, W, 3]`, and `labels`, int32 `[B]`."""
    rng = np.random.default_rng(_SEED)
    shape = (case.batch, case.image_size, case.image_size, 3)
    labels = rng.integers(0, NETWORKS[case.name].classes, case.batch, np.int32)
    return {'images': rng.integers(0, 256, shape, np.uint8), 'labels': labels}


def first_spikes(spikes: np.ndarray) -> np.ndarray:
    """Finds each neuron's first spike, which no reset has touched.

    Args:
      spikes: 0 or 1, `[T, ...]`.

    Returns:
      Its time step, or -1 for a neuron that never spikes; int32, `[...]`.
    """
    return np.where(spikes.any(axis=0), spikes.argmax(axis=0), -1).astype(np.int32)
