"""The optimiser and its learning rate, from optax (Table 5, A.2)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from cpng_jax.runtime.config import Config

# A.2: the warm-up starts at this share of the learning rate.
_WARMUP_START = 0.1


def learning_rate(config: Config, steps: int) -> optax.Schedule:
    """Linear warm-up from 0.1 of the learning rate, then cosine to 0, by step (A.2).

    Args:
      config: `config.optim`.
      steps: number of steps of the whole training.

    Returns:
      The schedule: step to learning rate.
    """
    peak = config.learning_rate
    # A run of a step or two has no room for both.
    warmup = min(round(config.warmup_fraction * steps), steps - 1)
    schedule = optax.schedules.cosine_decay_schedule(peak, steps - warmup)
    if warmup:
        linear = optax.schedules.linear_schedule(_WARMUP_START * peak, peak, warmup)
        schedule = optax.schedules.join_schedules([linear, schedule], [warmup])
    # Optax divides the step as it comes, and JAX's strict promotion of dtypes makes no float of an integer by itself.
    return lambda step: schedule(jnp.asarray(step, jnp.float32))


def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """SGD with momentum, or Adam, and weight decay (Table 5).

    The decay is added to the gradient before the momentum, as L2 regularisation is commonly written, for Adam too:
    that is what the recipes that the paper builds on do.

    Args:
      config: `config.optim`; `momentum` is SGD's alone.
      steps: number of steps of the whole training.

    Returns:
      The optax transformation.
    """
    rate = learning_rate(config, steps)
    update = optax.adam(rate) if config.name == 'adam' else optax.sgd(rate, momentum=config.momentum)
    mask = None if config.decay_norm_and_bias else _matrices
    chain = optax.chain(optax.add_decayed_weights(config.weight_decay, mask), update)

    def by_usual_promotion(*arguments: Any, **more: Any) -> Any:
        # Adam of optax mixes integers and floats, which JAX can be told to refuse.
        with jax.numpy_dtype_promotion('standard'):
            return chain.update(*arguments, **more)

    return optax.GradientTransformation(chain.init, by_usual_promotion)


def _matrices(params: Any) -> Any:
    """True for kernels, False for the vectors of norms and biases."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
