"""How the time of a training step grows with T, batch, width and depth of a network, and with micro-batches.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --axes=time_steps

The network is a spiking VGG of two stages on random images of 32 x 32; one size changes at a time. Sizes take turns
in each round, and a time is the median over rounds. The slope is that of a straight line through the logarithms of size
and time: 1 is linear. The last column is the growth of the time from the smallest to the largest size over that of the
work, which goes with the square of the width and else in proportion: below 1, large sizes use the machine better. Into
how many micro-batches the batch goes (`config.optim.accumulate`) changes nothing of the work.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags, logging

from benchmarks import ours
from benchmarks.cpng_cost import seconds_of
from benchmarks.memory import table
from configs import cifar10_resnet19
from cpng_jax.runtime import command
from cpng_jax.runtime.config import Config
from cpng_jax.training import setup

# Axis -> sizes and the power of the size that the work grows with.
AXES: dict[str, tuple[tuple[int, ...], int]] = {
    'time_steps': ((1, 2, 4, 8, 16, 32, 64), 1),
    'batch': ((2, 4, 8, 16, 32), 1),
    'width': ((8, 16, 32, 64), 2),
    'depth': ((2, 4, 8, 16), 1),
    'micro_batches': ((1, 2, 4, 8), 0),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the network that is measured; `depth` convolutions, half of them with `width` channels, half with twice."""

    time_steps: int = 4
    batch: int = 8
    width: int = 16
    depth: int = 4
    micro_batches: int = 1

    def along(self, axis: str, value: int) -> 'Size':
        """The same with another value of one field."""
        return dataclasses.replace(self, **{axis: value})


@dataclasses.dataclass(frozen=True)
class Growth:
    """Seconds of a step along an axis.

    Attributes:
      axis: a key of `AXES`.
      sizes: along it.
      seconds: of a step at each.
    """

    axis: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def slope(self) -> float:
        """Power of the size that the time grows with, by least squares over the logarithms."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])

    @property
    def over_work(self) -> float:
        """Growth of the time over that of the work."""
        work = (self.sizes[-1] / self.sizes[0]) ** AXES[self.axis][1]
        return self.seconds[-1] / self.seconds[0] / work


def config_of(size: Size) -> Config:
    """The configuration of the network of a size."""
    config = cifar10_resnet19.get_config()
    config.data.fake = True
    config.data.fake_examples = 4 * size.batch
    config.batch_size = size.batch
    del config.model['stem_width']
    config.model.name = 'vgg'
    config.model.stages = tuple((width,) * math.ceil(size.depth / 2) for width in (size.width, 2 * size.width))
    config.model.time_steps = size.time_steps
    config.optim.accumulate = size.micro_batches
    return config


def step_of(size: Size) -> Callable[[], None]:
    """Compiles a training step of a size."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size.batch, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, size.batch, np.int32)
    return ours.training_step(setup.build(config_of(size)), {'images': images, 'labels': labels})


def measure(axis: str, sizes: Sequence[int], *, rounds: int, steps: int, base: Size | None = None) -> Growth:
    """Measures along an axis.

    Args:
      axis: a key of `AXES`.
      sizes: along it, rising.
      rounds: in which the sizes take turns.
      steps: of each in a round.
      base: the other sizes; the default is that of `Size`.

    Returns:
      The `Growth`.
    """
    works = [step_of((base or Size()).along(axis, value)) for value in sizes]
    for work in works:
        seconds_of(work, 2)  # the first one compiles
    turns = [[seconds_of(work, steps) for work in works] for _ in range(rounds)]
    return Growth(axis, tuple(sizes), tuple(map(statistics.median, zip(*turns, strict=True))))


def growth_table(growths: list[Growth]) -> str:
    """Lays the times out in Markdown."""
    rows = []
    for growth in growths:
        times = [f'{size}: {1000 * time:.3g}' for size, time in zip(growth.sizes, growth.seconds, strict=True)]
        rows.append([growth.axis.replace('_', ' '), ', '.join(times), f'{growth.slope:.2f}', f'{growth.over_work:.2f}'])
    return table(['size', 'ms a step', 'slope', 'time / work'], rows)


def main(_: list[str]) -> None:
    """Measures and prints."""
    logging.set_verbosity(logging.WARNING)  # JAX names each backend that is not there
    values = flags.FLAGS
    growths = [measure(axis, AXES[axis][0], rounds=values.rounds, steps=values.steps) for axis in values.axes]
    print(growth_table(growths))


if __name__ == '__main__':
    flags.DEFINE_multi_enum('axes', list(AXES), list(AXES), 'Along which.')
    flags.DEFINE_integer('rounds', 7, 'Rounds in which the sizes take turns.', lower_bound=1)
    flags.DEFINE_integer('steps', 3, 'Of each size in a round.', lower_bound=1)
    command.run(main)
