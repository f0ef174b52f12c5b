"""What a network learns from a batch: the loss, mixing of examples before it, dropout within, by configuration."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cpng_jax.data import mixing
from cpng_jax.nn import losses
from cpng_jax.nn.surrogate import Array, ArrayLike
from cpng_jax.runtime.config import Config
from cpng_jax.training.step import Loss, Mix, Noise


def make_loss(config: Config, classes: int) -> Loss:
    """Makes the training loss.

    Args:
      config: `config.loss`.
      classes: number of outputs.

    Returns:
      Maps logits `[T, B, classes]`, and labels `[B]` or `[B, classes]`, to the loss of each example, `[B]`.
    """
    if config.name == 'tet':
        loss = functools.partial(losses.temporal_efficient_training, weight=config.tet_weight, target=config.tet_target)
    else:
        summed = config.name == 'sum_output'
        loss = losses.sum_output_cross_entropy if summed else losses.mean_output_cross_entropy
    smoothing = config.label_smoothing
    if not smoothing:
        return loss
    return lambda logits, labels: loss(logits, optax.losses.smooth_labels(_distribution(labels, classes), smoothing))


def make_mix(config: Config, seed: int, classes: int) -> Mix | None:
    """Makes mixup and CutMix; the same in each run, since their randomness is seed and step alone.

    Args:
      config: `config.data`.
      seed: of the run.
      classes: number of outputs.

    Returns:
      Maps images, labels and the number of the step to mixed images and distributions over the classes; None where
      nothing is mixed.
    """
    alphas = {'mixup_alpha': config.mixup_alpha, 'cutmix_alpha': config.cutmix_alpha}
    if not any(alphas.values()):
        return None

    def mix(images: Array, labels: Array, step: Array) -> tuple[Array, Array]:
        key = jax.random.fold_in(jax.random.key(seed), step)
        return mixing.mix(images, _distribution(labels, classes), key, **alphas)

    return mix


def make_noise(model: nn.Module, seed: int) -> Noise | None:
    """Makes the random numbers of dropout; the same in each run, since they are a function of seed and step alone.

    Args:
      model: the network.
      seed: of the run.

    Returns:
      Maps the number of the step, and that of the micro-batch within it, to the keys that the network takes; None where
      it has no dropout.
    """
    if not drops(model):
        return None

    def noise(step: Array, micro_batch: ArrayLike) -> dict[str, Array]:
        key = jax.random.fold_in(jax.random.key(seed), step)
        return {'dropout': jax.random.fold_in(key, micro_batch)}

    return noise


def drops(model: nn.Module) -> bool:
    """Whether a network has dropout."""
    return bool(getattr(model, 'dropout', 0) or getattr(model, 'head_dropout', 0))


def _distribution(labels: Array, classes: int) -> Array:
    """Class indices as one-hot float32 `[B, classes]`; what is a distribution already stays."""
    return labels if labels.ndim == 2 else jax.nn.one_hot(labels, classes, dtype=jnp.float32)
