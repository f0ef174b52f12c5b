"""The optimiser and its learning rate, from optax (Table 5, A.2)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cpng_jax.nn.diet_neuron import LEAK
from cpng_jax.nn.scheduling import apart
from cpng_jax.runtime.config import Config

# A.2: the warm-up starts at this share of the learning rate.
_WARMUP_START = 0.1


def learning_rate(config: Config, steps: int, steps_per_epoch: int = 1) -> optax.Schedule:
    """Linear warm-up from 0.1 of the learning rate, then a cosine to 0 (A.2), or steps down.

    Args:
      config: `config.optim`. `schedule` 'cosine' falls to 0 at the end of the training; or, with `cosine_epochs`, in so
        many epochs after the warm-up, and then goes up and down again, as PyTorch's CosineAnnealingLR does beyond its
        T_max, here by step instead of by epoch. 'steps' multiplies by `step_factor` at each share of the training in
        `step_at`; those within the warm-up at its end.
      steps: number of steps of the whole training.
      steps_per_epoch: which `cosine_epochs` are counted in.

    Returns:
      The schedule: step to learning rate.
    """
    peak = config.learning_rate
    # A run of a step or two has no room for both.
    warmup = min(round(config.warmup_fraction * steps), steps - 1)
    schedule = _schedule(config, steps, steps_per_epoch, warmup)
    if warmup:
        linear = optax.schedules.linear_schedule(_WARMUP_START * peak, peak, warmup)
        schedule = optax.schedules.join_schedules([linear, schedule], [warmup])
    # One program: each operation by itself would be compiled. Optax divides the step as it comes, and JAX's strict
    # promotion of dtypes makes no float of an integer by itself.
    return jax.jit(lambda step: schedule(jnp.asarray(step, jnp.float32)))


def _schedule(config: Config, steps: int, steps_per_epoch: int, warmup: int) -> optax.Schedule:
    """What follows the warm-up, by steps after it."""
    peak = config.learning_rate
    if config.schedule == 'steps':
        # Not of optax, which knows each boundary once: those of a short run may be one.
        boundaries = [round(share * steps) - warmup for share in config.step_at]
        return lambda step: peak * config.step_factor ** sum((step >= at).astype(jnp.float32) for at in boundaries)
    if config.cosine_epochs:
        half_period = config.cosine_epochs * steps_per_epoch
        return lambda step: peak * 0.5 * (1 + jnp.cos(jnp.pi * step / half_period))
    return optax.schedules.cosine_decay_schedule(peak, steps - warmup)


def make_optimizer(config: Config, steps: int, steps_per_epoch: int = 1) -> optax.GradientTransformation:
    """SGD with momentum, or Adam, or its AMSGrad, and weight decay (Table 5).

    The decay is added to the gradient before the momentum, as L2 regularisation is commonly written, for Adam too:
    that is what the recipes that the paper builds on do. Leaks of `nn.diet_neuron` are kept at 1 or below.

    Args:
      config: `config.optim`; `momentum` is SGD's alone.
      steps: number of steps of the whole training.
      steps_per_epoch: see `learning_rate`.

    Returns:
      The optax transformation.
    """
    # Or XLA on a CPU would work it out again in the update of each parameter.
    rate = apart(learning_rate(config, steps, steps_per_epoch))
    makers: dict[str, Callable[[], optax.GradientTransformation]] = {
        'sgd': lambda: optax.sgd(rate, momentum=config.momentum),
        'adam': lambda: optax.adam(rate),
        'amsgrad': lambda: _amsgrad(rate),
    }
    mask = None if config.decay_norm_and_bias else _matrices
    chain = optax.chain(optax.add_decayed_weights(config.weight_decay, mask), makers[config.name]())

    def by_usual_promotion(updates: Any, state: Any, params: Any = None, **more: Any) -> Any:
        # Adam of optax mixes integers and floats, which JAX can be told to refuse.
        with jax.numpy_dtype_promotion('standard'):
            changes, state = chain.update(updates, state, params, **more)
        # Without a state of its own, which checkpoints from before it would lack.
        return jax.tree.map_with_path(_at_most_1, changes, params), state

    return optax.GradientTransformation(chain.init, by_usual_promotion)


def _amsgrad(rate: optax.Schedule) -> optax.GradientTransformation:
    """AMSGrad as PyTorch's Adam has it: the greatest second moment so far, corrected for its bias afterwards.

    Optax corrects before it takes the greatest, so that the first gradients of a parameter hold it back ever after, or
    not at all.
    """
    decay = 0.999
    corrected = lambda step: rate(step) * jnp.sqrt(1 - decay ** (jnp.asarray(step, jnp.float32) + 1))
    return optax.amsgrad(corrected, b2=decay, bias_correction_nu=False)


def _at_most_1(path: tuple[Any, ...], change: Any, param: Any) -> Any:
    """The change of a parameter, of a leak no further than to 1."""
    is_leak = any(getattr(key, 'key', None) == LEAK for key in path[-1:])
    return jnp.minimum(param + change, 1) - param if is_leak else change


def _matrices(params: Any) -> Any:
    """True for kernels, False for the vectors of norms and biases."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
