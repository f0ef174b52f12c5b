"""ImageNet on SEW-ResNet34 on three machines: a plan on paper, from what is counted and from data sheets, not run.

    python -m benchmarks.plan

The model: each device computes its own images alone, in bfloat16 with parameters in float32. Time of a step at the
roofline = the greater of arithmetic and traffic to the memory, each at the peak of the data sheet, + the all-reduces,
which nothing hides. The time assumed divides the former by `--efficiency` and gives each all-reduce a latency.

    arithmetic   2 FLOPs a multiply-add of convolutions and dense layers; the backward pass takes twice the forward
                 pass; `remat = block` runs the forward pass again.
    traffic      each output of a convolution is written once and read three times, for its norm's mean, for its
                 variance and by the neurons, which apply the norm; for the backward pass neurons and norm read it again
                 and write its gradient, which is read by the norm and by both halves of the convolution's backward
                 pass. Spikes are written and read, and so is their gradient; as bytes they are written and, for the
                 backward pass, read. `remat = block` writes and reads again what the forward pass does, less the bytes.
                 A parameter is read by forward and backward pass, its gradient written and read, parameter and
                 optimiser state read and written by the update.
                 Supposed to cost none: potentials computed again, bytes turned into spikes, membrane statistics. Left
                 out: images, pools, sums of branches, dense layers.
    all-reduces  gradients in one; of each channel of a norm, mean and variance one after the other, in the backward
                 pass two sums in one, with `remat = block` the former again; of each layer of neurons, five sums in two
                 for mean, variance and firing rate. In a ring of n devices, each sends 2 (n - 1) / n of the bytes.
                 Left out: the few of the loss; and that XLA joins some that do not wait for each other.
    memory       parameters, optimiser state and all else that a step carries on, gradients, and the bytes that
                 `benchmarks.memory` counts for each image; with `remat = block`, those of the largest block besides.
                 Left out: what a compiler needs to work.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import memory
from configs import imagenet_sew_resnet34
from cpng_jax.control import rules
from cpng_jax.control.controller import Settings
from cpng_jax.models.blocks import REMATS
from cpng_jax.models.summary import Summary, summarise
from cpng_jax.runtime import command
from cpng_jax.runtime.config import Config
from cpng_jax.training import optim
from cpng_jax.training.state import create

_IMAGES = 1_281_167  # for training in ImageNet
_FLOAT32 = 4  # bytes
_USABLE = 0.75  # of the memory: what JAX takes of a GPU unless told otherwise

_EFFICIENCY = flags.DEFINE_float('efficiency', 0.4, 'Share of the peaks assumed to be reached.', 0.01, 1.0)
_LATENCY = flags.DEFINE_float('all_reduce_microseconds', 20.0, 'Latency assumed for each all-reduce.', 0.0)
_JPEG = flags.DEFINE_float('jpeg_kilobytes', 110.0, 'Mean size of a JPEG of ImageNet, in 10^3 bytes.', 0.0)
# docs/data.md: 357 images/s by the whole pipeline on two cores.
_CORE = flags.DEFINE_float('core_images_per_second', 178.0, 'Images/s that one core prepares.', 1.0)


class Device(NamedTuple):
    """What a machine's data sheet says; numbers are for one device, in decimal units.

    Attributes:
      name: of the device.
      count: devices that share the batch.
      flops: peak of dense bfloat16 arithmetic, a second.
      bandwidth: of the memory, bytes/s.
      memory: bytes.
      link: bytes/s that a device can send to the others.
      cores: of all hosts.
      source: where the numbers are from.
    """

    name: str
    count: int
    flops: float
    bandwidth: float
    memory: float
    link: float
    cores: int
    source: str


DEVICES = (
    Device('H200 SXM', 8, 989e12, 4.8e12, 141e9, 450e9, 112, 'NVIDIA, H200 and DGX H200 data sheets'),
    Device('A100 SXM 80 GB', 8, 312e12, 2.039e12, 80e9, 300e9, 128, 'NVIDIA, A100 and DGX A100 data sheets'),
    # A link has 50 GB/s each way; a slice below 16 x 16 is a mesh, not a torus: two of the four links are counted on.
    Device('TPU v5e', 64, 197e12, 819e9, 16e9, 100e9, 8 * 224, 'Google Cloud, TPU v5e; 8 hosts of 224 vCPUs'),
)


class Counts(NamedTuple):
    """What is counted of a network and its training.

    Attributes:
      summary: layers, parameters and multiply-adds of an image.
      itemsize: bytes of a number between two layers.
      state: bytes that a step hands to the next.
      kept: bytes an image keeps for the backward pass, by `remat`.
      block: bytes it keeps within the largest block.
    """

    summary: Summary
    itemsize: int
    state: int
    kept: dict[str, int]
    block: int

    @property
    def parameters(self) -> int:
        """Bytes of the parameters, and of their gradients."""
        return _FLOAT32 * self.summary.parameters

    def outputs(self, kind: str) -> int:
        """How many numbers the layers of a kind put out for an image."""
        return sum(math.prod(layer.shape) for layer in self.summary.layers if layer.kind == kind)

    def flops(self, remat: str) -> int:
        """FLOPs of a training step for each image."""
        return 2 * self.summary.multiply_adds * (4 if remat == 'block' else 3)

    def traffic(self, images: int, remat: str) -> int:
        """Bytes that a step on so many images moves to and from a device's memory."""
        fixed = 6 * self.parameters + 2 * (self.state - self.parameters)
        return images * self.traffic_per_image(remat) + fixed

    def traffic_per_image(self, remat: str) -> int:
        """Bytes of it that each image adds."""
        convolved, spikes = self.outputs('conv'), self.outputs('lif')
        again = 4 * convolved + 2 * spikes if remat == 'block' else 0
        return self.itemsize * (11 * convolved + 4 * spikes + again) + 2 * spikes

    def all_reduces(self, remat: str) -> tuple[int, int]:
        """Number of a step's all-reduces, and bytes of what they add up."""
        norms = [layer.shape[-1] for layer in self.summary.layers if layer.kind == 'norm']
        again = 2 if remat == 'block' else 0
        number = 1 + (3 + again) * len(norms) + 2 * self.summary.beta_layers
        return number, self.parameters + _FLOAT32 * ((4 + again) * sum(norms) + 5 * self.summary.beta_layers)

    def memory(self, images: int, remat: str) -> int:
        """Bytes that a device needs for so many images."""
        each = self.kept[remat] + (self.block if remat == 'block' else 0)
        return self.state + self.parameters + images * each


class Step(NamedTuple):
    """Times of a step on one machine, in seconds.

    Attributes:
      batch: images of all devices.
      remat: what the counts are for.
      arithmetic: at the peak.
      traffic: at the peak.
      all_reduce: at the peak.
      latency: assumed, of all all-reduces.
      efficiency: assumed, of arithmetic and traffic.
    """

    batch: int
    remat: str
    arithmetic: float
    traffic: float
    all_reduce: float
    latency: float
    efficiency: float

    @property
    def roofline(self) -> float:
        """Least time."""
        return max(self.arithmetic, self.traffic) + self.all_reduce

    @property
    def assumed(self) -> float:
        """Time at the efficiency and latency assumed."""
        return max(self.arithmetic, self.traffic) / self.efficiency + self.all_reduce + self.latency


def count(config: Config) -> Counts:
    """Counts a network and its training.

    Args:
      config: of static images.

    Returns:
      The `Counts`.
    """
    model, image = memory.network(config)
    variables = memory.variables_of(model, image)
    example = jnp.zeros(image.shape)
    optimizer = optim.make_optimizer(config.optim, steps=config.epochs)
    controller = rules.make('cpng', Settings())
    return Counts(
        summary=summarise(model, example),
        itemsize=image.dtype.itemsize,
        state=memory.tree_bytes(jax.eval_shape(lambda: create(model, optimizer, controller, example, config.seed))),
        kept={r: memory.kept_bytes_per_image(model.clone(remat=r), variables, image) for r in REMATS},
        block=memory.largest_block_bytes_per_image(model, variables, image),
    )


def least_remat(counts: Counts, device: Device, images: int) -> str | None:
    """The first `remat` with which a device has memory for so many images; None if there is none."""
    return next((r for r in REMATS if counts.memory(images, r) <= _USABLE * device.memory), None)


def plan_step(counts: Counts, device: Device, batch_size: int, efficiency: float, latency: float) -> Step:
    """Plans a step with the largest batch up to `batch_size` that the devices share, and the least `remat` that fits.

    Args:
      counts: from `count`.
      device: the machine.
      batch_size: images wanted.
      efficiency: share of the peaks, above 0.
      latency: of an all-reduce, seconds.

    Returns:
      The `Step`; where nothing fits, that with `remat = block`.
    """
    images = batch_size // device.count
    remat = least_remat(counts, device, images) or 'block'
    number, reduced = counts.all_reduces(remat)
    return Step(
        batch=images * device.count,
        remat=remat,
        arithmetic=images * counts.flops(remat) / device.flops,
        traffic=counts.traffic(images, remat) / device.bandwidth,
        all_reduce=2 * (device.count - 1) / device.count * reduced / device.link,
        latency=number * latency,
        efficiency=efficiency,
    )


def counted_table(counts: Counts) -> str:
    """What is counted of the network."""
    number, reduced = counts.all_reduces('none')
    rows = [
        ['multiply-adds of an image, forward', f'{counts.summary.multiply_adds / 1e9:.2f} G'],
        ['FLOPs of an image, forward and backward', f'{counts.flops("none") / 1e9:.1f} G'],
        ['numbers that convolutions put out, an image', f'{counts.outputs("conv") / 1e6:.2f} M'],
        ['numbers that neurons put out, an image', f'{counts.outputs("lif") / 1e6:.2f} M'],
        *([f'traffic of an image, `remat = {r}`', f'{counts.traffic_per_image(r) / 1e6:.1f} MB'] for r in REMATS),
        *([f'kept for the backward pass, an image, `remat = {r}`', f'{counts.kept[r] / 1e6:.1f} MB'] for r in REMATS),
        ['the same within the largest block', f'{counts.block / 1e6:.1f} MB'],
        ['parameters', f'{counts.parameters / 1e6:.1f} MB'],
        ['state: parameters, optimiser, statistics', f'{counts.state / 1e6:.1f} MB'],
        ['all-reduces of a step', f'{number} of together {reduced / 1e6:.1f} MB'],
        ['of which the gradients', f'1 of {counts.parameters / 1e6:.1f} MB'],
    ]
    return memory.table(['counted', ''], rows)


def devices_table() -> str:
    """What the data sheets say."""
    heading = ['device', 'bfloat16, TFLOP/s', 'memory, GB', 'its TB/s', 'sends, GB/s', 'cores of the hosts', 'source']
    rows = [
        [
            f'{d.count} x {d.name}',
            *(f'{d.flops / 1e12:.0f}', f'{d.memory / 1e9:.0f}', f'{d.bandwidth / 1e12:.3f}', f'{d.link / 1e9:.0f}'),
            f'{d.cores:,}',
            d.source,
        ]
        for d in DEVICES
    ]
    return memory.table(heading, rows)


def plan_table(counts: Counts, config: Config) -> str:
    """The plan, a machine in each column."""
    columns = []
    for device in DEVICES:
        step = plan_step(counts, device, config.batch_size, _EFFICIENCY.value, _LATENCY.value * 1e-6)
        images = step.batch // device.count
        rate = step.batch / step.assumed
        epoch = _IMAGES // step.batch * step.assumed / 3600
        column = {
            'batch': f'{step.batch}',
            'images of a device': f'{images}',
            **{f'memory, GB, `remat = {r}`': f'{counts.memory(images, r) / 1e9:.1f}' for r in REMATS},
            'least `remat` that fits': least_remat(counts, device, images) or 'no choice fits',
            'arithmetic of a step, TFLOP': f'{images * counts.flops(step.remat) / 1e12:.2f}',
            'traffic of a step, GB': f'{counts.traffic(images, step.remat) / 1e9:.1f}',
            'arithmetic at the peak, ms': f'{step.arithmetic * 1e3:.2f}',
            'traffic at the peak, ms': f'{step.traffic * 1e3:.2f}',
            'all-reduces at the peak, ms': f'{step.all_reduce * 1e3:.2f}',
            'bound by': 'arithmetic' if step.arithmetic > step.traffic else 'traffic',
            'step at the roofline, ms': f'{step.roofline * 1e3:.2f}',
            'images/s at the roofline': f'{step.batch / step.roofline:,.0f}',
            'latency of the all-reduces, assumed, ms': f'{step.latency * 1e3:.2f}',
            '**step, assumed, ms**': f'{step.assumed * 1e3:.2f}',
            'images/s of a device': f'{rate / device.count:,.0f}',
            '**images/s**': f'{rate:,.0f}',
            'JPEGs read, MB/s': f'{rate * _JPEG.value / 1e3:,.0f}',
            'cores needed for the input': f'{math.ceil(rate / _CORE.value):,} of {device.cores:,}',
            'epoch, hours': f'{epoch:.3f}',
            f'**{config.epochs} epochs, days**': f'{epoch * config.epochs / 24:.2f}',
        }
        columns.append(column)
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return memory.table(['', *(f'{d.count} x {d.name}' for d in DEVICES)], rows)


def main(_: list[str]) -> None:
    """Counts, plans and prints."""
    config = imagenet_sew_resnet34.get_config()
    config.dtype = 'bfloat16'
    counts = count(config)
    assumed = (
        f'Assumed: {_EFFICIENCY.value:.0%} of the peaks, {_LATENCY.value:g} microseconds of latency for each '
        f'all-reduce, {_USABLE:.0%} of the memory to use, JPEGs of {_JPEG.value:g} kB, {_CORE.value:g} images/s '
        'prepared by a core.'
    )
    print(devices_table(), counted_table(counts), assumed, plan_table(counts, config), sep='\n\n')


if __name__ == '__main__':
    command.run(main)
