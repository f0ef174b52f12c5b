"""Rules of other papers that set the width of the surrogate gradient, next to Algorithm 1 of `cpng`.

Those of this file go by the membrane potentials or the decay; that of `dspike`, by the loss, has a file of its own.

    rule = rules.make_rule('mpd_agl', surrogate='triangular')
    beta, skipped = rules.update(rule, stats, params, beta)

All three papers differentiate the spike by a rectangle, 1 / width where |u - v_th| < width / 2. Here any shape of
`surrogate` takes its place, over the same interval: beta is such that the gradient is non-zero just there. (That of
arctan is non-zero everywhere: it gets the beta of the triangular one.) The papers take the width of a step from that
step itself and, the first two, of each time step by itself; here a layer has one beta, and statistics are those of all
T and serve from the next step on. What else is adapted stands at each rule.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cpng_jax.control.effective_domain import domain_half_width
from cpng_jax.nn.neuron import DECAY
from cpng_jax.nn.statistics import MembraneStats, is_stats
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate

PyTree = Any

RULES = ('mpd_agl', 'ds_atgo', 'lsg')

Rule = Callable[[PyTree, PyTree], PyTree]
"""Maps the statistics of all layers and the parameters of the network to beta of all layers."""


def beta_of_width(width: ArrayLike, surrogate: str | Surrogate) -> Array:
    """The width parameter at which a surrogate gradient is non-zero in an interval of a given width.

    Args:
      width: of the interval around the threshold, greater than 0, any shape.
      surrogate: 'triangular', 'rectangular', 'arctan' or a `Surrogate`.

    Returns:
      beta, at least float32, of the same shape.

    Raises:
      ValueError: unknown surrogate.
    """
    width = jnp.asarray(width)
    return 2 * domain_half_width(surrogate, 'support') / width.astype(jnp.promote_types(width.dtype, jnp.float32))


def mpd_agl(stats: MembraneStats, *, surrogate: str | Surrogate = 'triangular') -> Array:
    """Two standard deviations of the membrane potential as the width.

    Jiang et al., "Adaptive Gradient Learning for Spiking Neural Networks by Exploiting Membrane Potential Dynamics",
    IJCAI 2025, Theorem 2: width = 2 gamma v_th at the first time step and 2 sqrt(1 + tau^2) gamma v_th later, gamma
    being the mean scale of the tdBN before the neurons. By their Theorem 1 that is twice the standard deviation of
    the potentials.

    Adapted: the standard deviation is measured, not estimated from tau and gamma, so that it holds for any network.

    Args:
      stats: `MembraneStats`, any shape.
      surrogate: of the network.

    Returns:
      beta, at least float32, of the shape of the statistics; infinite where the potentials are constant.

    Raises:
      ValueError: unknown surrogate.
    """
    return beta_of_width(2 * jnp.sqrt(jnp.asarray(stats.variance)), surrogate)


def ds_atgo(stats: MembraneStats, *, beta_init: float = 1.0, v_th: float = 1.0) -> Array:
    """A width that grows with the threshold that would suit the membrane potentials.

    Jiang et al., "DS-ATGO: Dual-Stage Synergistic Learning via Forward Adaptive Threshold and Backward Gradient
    Optimization for Spiking Neural Networks", AAAI 2026. Eq. 5, of the true distribution: the adaptive threshold is
    f_c (mean + standard deviation), with f_c = 1; Eq. 7: width = (1 + tanh(adaptive threshold - v_th)) times the width
    at the start, which is one line for both of its cases.

    Adapted: the backward half alone, which their ablation calls w/ TGO. In the forward pass the threshold stays v_th;
    `ds_atgo.AdaptedLIF` has both halves. Their published code leaves the mean out of Eq. 7; here it is as printed.

    Args:
      stats: `MembraneStats`, any shape.
      beta_init: beta at the start, whose width Eq. 7 scales.
      v_th: threshold of the neurons.

    Returns:
      beta, at least float32, of the shape of the statistics.
    """
    mean, variance = (jnp.asarray(value) for value in stats)
    adaptive_threshold = mean + jnp.sqrt(variance)
    return beta_init / (1 + jnp.tanh(adaptive_threshold - v_th))


def lsg(decay: ArrayLike, *, surrogate: str | Surrogate = 'triangular', v_th: float = 1.0) -> Array:
    """A width that follows the decay of the membrane potential, which is learnt.

    Lian et al., "Learnable Surrogate Gradient for Direct Training Spiking Neural Networks", IJCAI 2023: the decay of
    each layer is learnt as tau = sigmoid(b), and the width is 2 v_th sqrt(1 + tau^2), since by their Theorem 1 the
    potentials have about the variance (1 + tau^2) v_th^2 behind a tdBN. No gradient reaches b by way of the width.

    Adapted: tau starts at the network's (theirs at 0.2).

    Args:
      decay: b, the parameter that `LIF(learn_tau=True)` learns, any shape.
      surrogate: of the network.
      v_th: threshold of the neurons.

    Returns:
      beta, at least float32, of the shape of `decay`.

    Raises:
      ValueError: unknown surrogate.
    """
    return beta_of_width(2 * v_th * jnp.sqrt(1 + jnp.square(jax.nn.sigmoid(jnp.asarray(decay)))), surrogate)


def make_rule(
    name: str, *, surrogate: str | Surrogate = 'triangular', v_th: float = 1.0, beta_init: float = 1.0
) -> Rule:
    """Looks a rule up by name.

    Args:
      name: one of `RULES`.
      surrogate: of the network.
      v_th: threshold of the neurons.
      beta_init: beta at the start.

    Returns:
      The rule for all layers: 'lsg' reads the parameters, the others the statistics.

    Raises:
      ValueError: no rule has that name.
    """
    if name == 'lsg':
        width = functools.partial(lsg, surrogate=surrogate, v_th=v_th)
        return lambda stats, params: jax.tree.map_with_path(
            lambda path, _: width(_decay(params, path)), stats, is_leaf=is_stats
        )
    by_name = {
        'mpd_agl': functools.partial(mpd_agl, surrogate=surrogate),
        'ds_atgo': functools.partial(ds_atgo, beta_init=beta_init, v_th=v_th),
    }
    if name not in by_name:
        raise ValueError(f'rule must be one of {", ".join(RULES)}, got {name!r}.')
    return lambda stats, _: jax.tree.map(by_name[name], stats, is_leaf=is_stats)


def update(rule: Rule, stats: PyTree, params: PyTree, beta: PyTree) -> tuple[PyTree, PyTree]:
    """Applies a rule to all layers. Pure, and jittable.

    Args:
      rule: from `make_rule`.
      stats: pytree like `beta` with a `MembraneStats` for each leaf, of the leaf's shape.
      params: parameters of the network.
      beta: pytree of floating arrays.

    Returns:
      `(beta, skipped)`: beta keeps its shapes and dtypes. It stays as it is, and `skipped` is True, where the rule
      gives no finite number greater than 0: where potentials are constant, say, or not finite.
    """
    wanted = jax.tree.map(lambda old, new: jnp.broadcast_to(new, jnp.shape(old)), beta, rule(stats, params))
    skipped = jax.tree.map(lambda new: ~(jnp.isfinite(new) & (new > 0)), wanted)
    keep = lambda old, new, skip: jnp.where(skip, old, new).astype(jnp.asarray(old).dtype)
    return jax.tree.map(keep, beta, wanted, skipped), skipped


def _decay(params: PyTree, path: tuple[Any, ...]) -> Array:
    """The learnt decay of the layer whose beta lies at a path."""
    for key in path[:-1]:
        params = params[key.key]
    return params[DECAY]
