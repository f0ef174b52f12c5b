"""A width that follows the decay of the membrane potential, which is learnt.

Lian et al., "Learnable Surrogate Gradient for Direct Training Spiking Neural Networks", IJCAI 2023: the decay of each
layer is learnt as tau = sigmoid(b), and the width is 2 v_th sqrt(1 + tau^2), since by their Theorem 1 the potentials
have about the variance (1 + tau^2) v_th^2 behind a tdBN. No gradient reaches b by way of the width.

Adapted: tau starts at the network's (theirs at 0.2), and any shape takes the place of their rectangle.
"""

from typing import Any

import jax
import jax.numpy as jnp

from cpng_jax.control.controller import Controller, Rule, Settings, sets_the_support, stateless
from cpng_jax.control.layer_tree import PyTree
from cpng_jax.nn.neuron_layer import DECAY
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate, beta_of_width


def beta_of(decay: ArrayLike, *, surrogate: str | Surrogate = 'triangular', v_th: float = 1.0) -> Array:
    """Beta of the width that the learnt decay asks for.

    Args:
      decay: b, the parameter that `LIF(learn_tau=True)` learns, any shape.
      surrogate: of the network.
      v_th: threshold of the neurons.

    Returns:
      beta, at least float32, of the shape of `decay`.

    Raises:
      ValueError: unknown surrogate.

    Source: their Theorem 1.
    """
    return beta_of_width(2 * v_th * jnp.sqrt(1 + jnp.square(jax.nn.sigmoid(jnp.asarray(decay)))), surrogate)


def decays_of(params: PyTree, beta: PyTree) -> PyTree:
    """Finds the parameters that layers learn their decay by: b, where the decay is sigmoid(b).

    Args:
      params: of the network, laid out by module path like beta.
      beta: pytree of arrays, one leaf per layer.

    Returns:
      b of each layer, laid out like beta.
    """

    def of_layer(path: tuple[Any, ...], _: Array) -> Array:
        module = params
        for key in path[:-1]:
            module = module[key.key]
        return module[DECAY]

    return jax.tree.map_with_path(of_layer, beta)


def _make(settings: Settings) -> Controller:
    of_layer = lambda decay: beta_of(decay, surrogate=settings.surrogate, v_th=settings.v_th)
    return stateless(
        lambda observed, beta: jax.tree.map(of_layer, decays_of(observed.params, beta)),
        ('params',),
    )


def _conflict(settings: Settings) -> str | None:
    if settings.decay_learnt:
        return sets_the_support(settings, 'lsg')
    return 'config.cpng.rule is lsg, whose width follows a decay that is learnt: set config.neuron.learn_tau to True.'


RULE = Rule(
    'LSG: 2 v_th sqrt(1 + τ²) as the width, τ learnt (Lian et al., IJCAI 2023)',
    make=_make,
    conflict=_conflict,
    heeds=('every',),  # a decay is that of a layer
)
