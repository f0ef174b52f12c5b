"""What sets beta, whichever rule it is: a pair of pure functions, and what these have to be shown.

    controller = rules.make('cpng', settings)
    state = controller.init(beta)
    beta, state, report = controller.update(observed, beta, state)

As in optax, a controller knows nothing of models, devices or epochs. Whoever trains looks at `needs`, measures that,
and calls `update` once an epoch or once a batch.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cpng_jax.control.layer_tree import PyTree, layer_name, leaves_where
from cpng_jax.control.options import Option
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate

State = Any


class FirstLayer(NamedTuple):
    """The layer that the input of a network meets first, for rules that try its weights.

    Attributes:
      weights: its kernel.
      loss: maps such a kernel, and beta of all layers, to the training loss of a batch, a scalar.
    """

    weights: Array
    loss: Callable[[Array, PyTree], Array]


class Observed(NamedTuple):
    """What a controller is shown; None where nobody asked for it. `Controller.needs` has the names of these fields.

    Attributes:
      membrane: a `MembraneStats` in the place of each beta.
      distances: a `MembraneDistances` in the place of each beta.
      params: parameters of the network, laid out by module path like beta.
      first_layer: see `FirstLayer`.
      updates: which update this is, counted from 1; 0 for `Controller.start`. Always given.
    """

    membrane: PyTree = None
    distances: PyTree = None
    params: PyTree = None
    first_layer: FirstLayer | None = None
    updates: ArrayLike = 0


# What layers measure, each in the collection of that name; the other fields are not measured by layers.
MEASURED = ('membrane', 'distances')


class Report(NamedTuple):
    """What an update tells of each layer; a pytree laid out like beta.

    Attributes:
      skipped: True where a layer kept its beta because there was nothing to tell a better one by.
    """

    skipped: PyTree

    def skipped_layers(self) -> list[str]:
        """Names the layers that were skipped, in whole or in part; on the host only."""
        return [layer_name(name) for name in leaves_where(self.skipped)]


class Controller(NamedTuple):
    """A rule that sets beta, made for a network.

    Attributes:
      init: maps beta, a pytree of arrays with one leaf per layer, to the state of the rule.
      update: maps `(observed, beta, state)` to `(beta, state, report)`. Pure, and jittable.
      needs: names of the fields of `Observed` that `update` reads.
      start: maps `(observed, beta, state)` to `(beta, state)` before the first step; None changes nothing.
      numbers: reads from the state what the rule tells of each layer: pytrees laid out like beta, by the name they have
        in the metrics, such as 'chi_min'.
    """

    init: Callable[[PyTree], State]
    update: Callable[[Observed, PyTree, State], tuple[PyTree, State, Report]]
    needs: tuple[str, ...] = ()
    start: Callable[[Observed, PyTree, State], tuple[PyTree, State]] | None = None
    numbers: Callable[[State], Mapping[str, PyTree]] = lambda state: {}


class Settings(NamedTuple):
    """What is known of a run when its controller is made, the same for every rule.

    Attributes:
      surrogate: of the network.
      v_th: threshold of its neurons.
      beta_init: beta of every layer at the start.
      interval: which interval chi counts, 'paper' or 'support'.
      counted: chi is counted from `MembraneDistances` instead of taken from Eq. 6.
      every: when `update` is called, 'epoch' or 'batch'.
      updates_per_epoch: how often that is in an epoch.
      decay_learnt: the decay of the membrane potential is a parameter.
      options: values of the options of all rules, by name.
      beta_of_run: reads beta of each layer, by the layer's name, from the folder of a run.
    """

    surrogate: str | Surrogate = 'triangular'
    v_th: float = 1.0
    beta_init: float = 1.0
    interval: str = 'paper'
    counted: bool = False
    every: str = 'epoch'
    updates_per_epoch: int = 1
    decay_learnt: bool = False
    options: Mapping[str, Any] = {}
    beta_of_run: Callable[[str], Mapping[str, float]] | None = None

    @property
    def statistics(self) -> str:
        """The collection that chi is taken from: a field of `Observed`."""
        return 'distances' if self.counted else 'membrane'


def _agrees(settings: Settings) -> str | None:
    del settings
    return None


class Rule(NamedTuple):
    """A rule as the table of `rules` has it.

    Attributes:
      title: what it is, and whose: a line for help and documentation.
      make: makes its controller.
      options: what it has to set, keys `cpng.NAME` of a configuration.
      conflict: says in a sentence what of the settings does not go together with it, or None.
      heeds: of the settings that rules have in common, those by which its beta differs: 'every', how often it is set,
        and 'per', whether a layer or a channel has one.
    """

    title: str
    make: Callable[[Settings], Controller]
    options: tuple[Option, ...] = ()
    conflict: Callable[[Settings], str | None] = _agrees
    heeds: tuple[str, ...] = ('every', 'per')


def stateless(wanted: Callable[[Observed, PyTree], PyTree], needs: tuple[str, ...] = ()) -> Controller:
    """Makes a controller of a function that knows from what is observed which beta it wants.

    Args:
      wanted: maps what is observed, and beta, to the wanted beta; each leaf broadcasts to that of beta. Where it is no
        finite number greater than 0, of constant potentials, say, the layer keeps its own and is reported as skipped.
      needs: names of the fields of `Observed` that it reads.

    Returns:
      The controller; beta keeps its shapes and dtypes, and the state is empty.
    """

    def update(observed: Observed, beta: PyTree, state: State) -> tuple[PyTree, State, Report]:
        new = jax.tree.map(lambda old, new: jnp.broadcast_to(new, jnp.shape(old)), beta, wanted(observed, beta))
        skipped = jax.tree.map(lambda new: ~(jnp.isfinite(new) & (new > 0)), new)
        keep = lambda old, new, skip: jnp.where(skip, old, new).astype(jnp.asarray(old).dtype)
        return jax.tree.map(keep, beta, new, skipped), state, Report(skipped)

    return Controller(lambda beta: (), update, needs)


def goes_by_moments(settings: Settings, name: str) -> str | None:
    """The conflict of a rule that needs mean and variance where chi is counted instead."""
    if not settings.counted:
        return None
    return (
        f'config.cpng.chi is counted and config.cpng.rule is {name}, which goes by mean and variance: '
        'expected gaussian with it.'
    )
