"""Images a second that one core prepares for ImageNet, ours against torchvision's transforms, and for CIFAR.

    python -m benchmarks.input_pipeline

Both read the same JPEGs in one run, in alternating rounds: scikit-learn's two photographs in sizes, of which most are
about 500 x 375, and of a quality that ImageNet has. Without torchvision (`pip install torch torchvision`) only our
figures are shown. At last the whole pipeline: decoding, augmentation and batching by Grain on all cores.
"""

import io
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from configs import cifar10_resnet19
from cpng_jax.data.augment import random_flip, standard
from cpng_jax.data.dataset import ArraySource, Example
from cpng_jax.data.jpeg import decode_random_resized_crop, decode_resize_centre_crop
from cpng_jax.data.pipeline import TrainBatches
from cpng_jax.runtime import command

# Width, height and number; together 527 x 430 on average.
SIZES = {(500, 375): 4, (375, 500): 2, (500, 333): 2, (320, 240): 1, (1200, 900): 1}
_QUALITY = 90
_BATCH = 32

Work = Callable[[int], Any]


def photographs() -> list[bytes]:
    """Encodes two photographs in each of the sizes, as often as it has them."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    encoded = []
    for size, count in SIZES.items():
        for pixels in load_sample_images().images:
            buffer = io.BytesIO()
            Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS).save(buffer, 'JPEG', quality=_QUALITY)
            encoded += [buffer.getvalue()] * count
    return encoded


def ours(encoded: list[bytes], seed: int) -> dict[str, Work]:
    """The ImageNet transforms of this project, from bytes to uint8 `[224, 224, 3]`."""
    rng = np.random.default_rng(seed)

    def train(index: int) -> np.ndarray:
        image = decode_random_resized_crop(encoded[index % len(encoded)], 224, rng)
        return np.ascontiguousarray(random_flip(image, rng))

    return {
        'ImageNet training': train,
        'ImageNet evaluation': lambda index: decode_resize_centre_crop(encoded[index % len(encoded)], 256, 224),
    }


def torchvision_transforms(encoded: list[bytes], seed: int) -> dict[str, Work]:
    """The same with torchvision, as its ImageNet recipe does it, up to uint8 tensors."""
    import torch  # pyright: ignore[reportMissingImports]
    from PIL import Image
    from torchvision import transforms  # pyright: ignore[reportMissingImports]

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    tensor = transforms.PILToTensor()
    train = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), tensor])
    evaluate = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), tensor])

    def load(index: int) -> Any:
        return Image.open(io.BytesIO(encoded[index % len(encoded)])).convert('RGB')

    return {
        'ImageNet training': lambda index: train(load(index)),
        'ImageNet evaluation': lambda index: evaluate(load(index)),
    }


def cifar(seed: int) -> Work:
    """Crop and flip of a CIFAR image."""
    rng = np.random.default_rng(seed)
    augment = standard(cifar10_resnet19.get_config().data, channels=3)
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    return lambda _: augment({'image': image}, rng)


def whole_pipeline(encoded: list[bytes], count: int, seed: int, threads: int) -> float:
    """Images a second, by the clock, of the training batches of ImageNet."""

    def augment(example: Example, rng: np.random.Generator) -> Example:
        image = decode_random_resized_crop(example['image'], 224, rng)
        return {'image': random_flip(image, rng), 'label': example['label']}

    source = ArraySource(np.array(encoded * 1000, object), np.zeros(1000 * len(encoded)))
    steps = -(-count // _BATCH)
    with TrainBatches(source, augment, batch_size=_BATCH, seed=seed, threads=threads) as batches:
        next(batches)  # the threads have started
        began = time.perf_counter()
        for _ in range(steps):
            next(batches)
        return steps * _BATCH / (time.perf_counter() - began)


def rate(work: Work, count: int) -> float:
    """Images for each second of processor time over `count` calls."""
    began = time.process_time()
    for index in range(count):
        work(index)
    return count / (time.process_time() - began)


def main(_: list[str]) -> None:
    """Measures and prints."""
    given = flags.FLAGS
    encoded = photographs()
    mine = ours(encoded, given.seed)
    try:
        theirs = torchvision_transforms(encoded, given.seed)
    except ImportError:
        theirs = {}
        print('Without torchvision there is nothing to compare with: pip install torch torchvision')
    print(f'{platform.machine()}, one core, {given.rounds} rounds of {given.images} images, seed {given.seed}')
    sizes = ', '.join(f'{count} of {width} x {height}' for (width, height), count in SIZES.items())
    print(f'JPEGs of quality {_QUALITY}: {sizes}')
    for name, work in mine.items():
        works = [work, theirs[name]] if name in theirs else [work]
        rounds = [[rate(each, given.images) for each in works] for _ in range(given.rounds + 1)][1:]  # warm now
        line = f'{name}: {statistics.median(pair[0] for pair in rounds):.0f} images/s'
        if len(works) > 1:
            ratios = sorted(pair[0] / pair[1] for pair in rounds)
            line += (
                f', torchvision {statistics.median(pair[1] for pair in rounds):.0f}; '
                f'ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})'
            )
        print(line)
    work = cifar(given.seed)
    rates = [rate(work, 20 * given.images) for _ in range(given.rounds)]
    print(f'CIFAR crop and flip: {statistics.median(rates):.0f} images/s')
    threads = os.cpu_count() or 1
    rates = [whole_pipeline(encoded, 8 * given.images, given.seed, threads) for _ in range(given.rounds)]
    spread = f'{statistics.median(rates):.0f} images/s by the clock ({min(rates):.0f} to {max(rates):.0f})'
    print(f'ImageNet training, batches of {_BATCH} by Grain on {threads} threads: {spread}')


if __name__ == '__main__':
    flags.DEFINE_integer('rounds', 7, 'Alternating rounds.', lower_bound=1)
    flags.DEFINE_integer('images', 120, 'Images a round.', lower_bound=1)
    flags.DEFINE_integer('seed', 0, 'Of the crops.')
    command.run(main)
