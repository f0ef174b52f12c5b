"""Saliency maps by SmoothGrad (A.7, Fig. 14): which pixels a network's output for a class depends on.

Smilkov et al. (2017), "SmoothGrad: removing noise by adding noise", arXiv:1706.03825.
"""

import functools
import pathlib
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cpng_jax.analysis.compared import Compared, check_comparable, check_options, spread_examples
from cpng_jax.data.dataset import ArraySource
from cpng_jax.nn.surrogate import Array, ArrayLike, at_least_float32
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.plots import GREY, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Per cent of the pixels that share the top of the scale, so that a single bright one does not darken the rest of a map.
_BRIGHTEST = 1.0

# Characters of a label that fit beside a picture.
_LINE = 20

# Candidates for each example that is shown, so that different classes can be chosen.
_POOL = 4


class Maps(NamedTuple):
    """Saliency maps and predictions of a run for some images.

    Attributes:
      saliency: summed over channels and time, not negative, float32 `[N, H, W]`.
      predicted: class indices, integer `[N]`.
    """

    saliency: np.ndarray
    predicted: np.ndarray


def smooth_grad(
    score: Callable[[Array], Array],
    image: ArrayLike,
    key: Array,
    *,
    samples: int = 64,
    noise: ArrayLike = 0.15,
    signed: bool = False,
    batch_size: int = 64,
) -> Array:
    """Averages the magnitude of a score's gradient over noisy copies of an image (Smilkov et al., 2017).

    Args:
      score: maps an image, floating, to a scalar.
      image: any shape.
      key: of the noise; the same key gives the same map, whatever `batch_size`, up to rounding.
      samples: noisy copies.
      noise: standard deviation of the Gaussian noise, as a share of the image's maximum less its minimum.
      signed: average the gradients with their signs and take the magnitude of the mean, in which copies that disagree
        cancel.
      batch_size: copies that are computed at the same time.

    Returns:
      Not negative, of the image's shape, in at least float32.

    Raises:
      ValueError: `samples` or `batch_size` is below 1, or `noise` is negative.
    """
    for name, value in (('samples', samples), ('batch_size', batch_size)):
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}.')
    if isinstance(noise, int | float) and noise < 0:
        raise ValueError(f'noise must be at least 0, got {noise}.')
    image = jnp.asarray(image)
    image = image.astype(at_least_float32(image.dtype))
    sigma = noise * (jnp.max(image) - jnp.min(image))

    def of_copy(key: Array) -> Array:
        gradient = jax.grad(score)(image + sigma * jax.random.normal(key, image.shape, image.dtype))
        return gradient if signed else jnp.abs(gradient)

    gradients = jax.lax.map(of_copy, jax.random.split(key, samples), batch_size=min(batch_size, samples))
    return jnp.abs(jnp.mean(gradients, axis=0))


def saliency_maps(
    run: Compared,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    beta: float | None = None,
    of: Literal['label', 'predicted'] = 'label',
    seed: int = 0,
    samples: int = 64,
    noise: float = 0.15,
    signed: bool = False,
) -> Maps:
    """Makes the maps of a run: of its output for a class, averaged over time, in evaluation mode.

    Args:
      run: the run.
      images: uint8 `[N, H, W, C]`, or events `[N, T, H, W, C]`.
      labels: true classes, integer `[N]`.
      beta: width of the surrogate gradient in every layer; None for each layer's own after training.
      of: the class whose output is looked at: the true one, or the one that the network predicts.
      seed: of the noise; the n-th image of each run gets the same.
      samples: noisy copies of each image.
      noise: standard deviation of the noise, as a share of the image's maximum less its minimum.
      signed: average the gradients with their signs instead of their magnitudes.

    Returns:
      The `Maps`.
    """
    setup, state = run.setup, run.state
    if beta is not None:
        state = state.replace(surrogate=jax.tree.map(lambda old: jnp.full_like(old, beta), state.surrogate))

    def outputs(variables: Any, image: Array) -> Array:
        logits: Any = setup.model.apply(variables, setup.prepare(image[None]))
        return jnp.mean(logits[:, 0].astype(jnp.float32), axis=0)

    @jax.jit
    def look(variables: Any, image: Array, label: Array, key: Array) -> tuple[Array, Array]:
        predicted = jnp.argmax(outputs(variables, image))
        chosen = label if of == 'label' else predicted
        score = lambda copy: outputs(variables, copy)[chosen]
        # No more memory than a step of training needs.
        batch_size = setup.config.batch_size
        saliency = smooth_grad(score, image, key, samples=samples, noise=noise, signed=signed, batch_size=batch_size)
        return flat(saliency), predicted

    keys = jax.random.split(jax.random.key(seed), len(images))
    looks = [look(state.variables, *each) for each in zip(images, labels, keys, strict=True)]
    saliency, predicted = (np.stack(jax.device_get(column)) for column in zip(*looks, strict=True))
    return Maps(saliency, predicted)


def flat(image: Array) -> Array:
    """Sums an image `[H, W, C]` or events `[T, H, W, C]` to `[H, W]`."""
    return jnp.sum(image, axis=(*range(image.ndim - 3), -1))


def draw(
    runs: Sequence[Compared],
    folder: pathlib.Path,
    *,
    images: int = 8,
    beta: float | Literal['init', 'trained'] = 'init',
    of: Literal['label', 'predicted'] = 'label',
    seed: int = 0,
    samples: int = 64,
    noise: float = 0.15,
    signed: bool = False,
) -> list[pathlib.Path]:
    """Draws test images and, below each, the map of each run, as Fig. 14 does.

    Args:
      runs: one or more, on the same data; without CPNG first, in the paper's order.
      folder: where the picture goes; made when missing.
      images: how many of the test split, of different classes where there are enough.
      beta: width of the surrogate gradient that the maps are made with: a number; 'init', that at the start of the
        first run, so that the maps of all differ by their weights alone; or 'trained', each run's own.
      of: the class whose output is looked at: the true one, or the one that the network predicts.
      seed: of the noise.
      samples: noisy copies of each image.
      noise: standard deviation of the noise, as a share of the image's maximum less its minimum.
      signed: average the gradients with their signs instead of their magnitudes.

    Returns:
      The path of `saliency.png`.

    Raises:
      UserError: the runs have different data, or an option lies outside its range.
    """
    check_comparable(runs)
    check_options(images=(images, 1), samples=(samples, 1), noise=(noise, 0))
    first = runs[0].setup
    width = _width(beta, first.config.cpng.beta_init)
    examples = varied(spread_examples(first.dataset, 'test', _POOL * images), images)
    make = functools.partial(saliency_maps, beta=width, of=of, seed=seed, samples=samples, noise=noise, signed=signed)
    maps = [make(run, examples.images, examples.labels) for run in runs]
    names, count = first.dataset.class_names, len(examples)
    figure = new_figure(max(1.25 * count + 0.4, 4.9), 1.32 * (1 + len(runs)) + 0.6)  # the title needs 4.9
    rows = figure.subplots(1 + len(runs), count, squeeze=False)
    for axes, image, label in zip(rows[0], examples.images, examples.labels, strict=True):
        _show_image(axes, image)
        axes.set_title(names[label], fontsize=9)
    for row, (saliency, predicted) in zip(rows[1:], maps, strict=True):
        for axes, one, guess, label in zip(row, saliency, predicted, examples.labels, strict=True):
            _show_map(axes, one)
            if guess != label:
                axes.set_xlabel(f'taken for {names[guess]}', fontsize=7, color=GREY)
    for axes, label in zip(rows[:, 0], ['image', *(run.label for run in runs)], strict=True):
        axes.set_ylabel(textwrap.fill(label, _LINE, break_long_words=False), fontsize=8)
    whose = f'β = {width:g} in every layer' if width is not None else 'β as trained'
    figure.suptitle(f'SmoothGrad of the output for the {_CLASS[of]} class, {whose}', fontsize=10)
    folder.mkdir(parents=True, exist_ok=True)
    return [save(figure, folder / 'saliency.png')]


def varied(examples: ArraySource, count: int) -> ArraySource:
    """Chooses one example of each class, in their order, then a second one of each, and so on.

    Args:
      examples: to choose from.
      count: how many; all of them, if they are fewer.

    Returns:
      The chosen examples.
    """
    labels = examples.labels
    earlier = np.array([np.sum(labels[:index] == label) for index, label in enumerate(labels)])
    chosen = np.argsort(earlier, kind='stable')[:count]
    return ArraySource(examples.images[chosen], labels[chosen])


_CLASS = {'label': 'true', 'predicted': 'predicted'}


def _width(beta: float | str, init: float) -> float | None:
    """The beta of all layers, or None for each layer's own after training."""
    if beta == 'trained':
        return None
    width = init if beta == 'init' else beta
    if isinstance(width, str) or not (width > 0 and np.isfinite(width)):
        raise UserError(f'beta is {beta!r}, expected init, trained or a number above 0.')
    return width


def _show_image(axes: 'Axes', image: np.ndarray) -> None:
    """Shows a colour image as it is, any other in grey, events summed over time and polarity."""
    if image.ndim == 3 and image.shape[-1] == 3:
        axes.imshow(image)
    else:
        axes.imshow(np.asarray(flat(jnp.asarray(image, jnp.float32))), cmap='gray')
    _bare(axes)


def _show_map(axes: 'Axes', saliency: np.ndarray) -> None:
    """Shows a map on a grey scale of its own from 0: the size of gradients differs from network to network."""
    top = np.percentile(saliency, 100 - _BRIGHTEST) or np.max(saliency)
    axes.imshow(saliency, cmap='gray', vmin=0, vmax=top or 1)
    if not np.any(saliency):
        axes.text(0.5, 0.5, 'no gradient', transform=axes.transAxes, ha='center', va='center', color='w', fontsize=7)
    _bare(axes)


def _bare(axes: 'Axes') -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
