"""What sets width and height of the surrogate gradients, whichever rule it is: a pair of pure functions.

    controller = rules.make('cpng', settings)
    state = controller.init(beta)
    surrogates, state, report = controller.update(observed, Surrogates(beta, scale), state)

As in optax, a controller knows nothing of models, devices or epochs. Whoever trains looks at `needs`, measures that,
and calls `update` once an epoch or once a batch.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cpng_jax.control.layer_tree import PyTree, layer_name, leaves_where
from cpng_jax.control.options import Option
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate, get_surrogate

State = Any


class FirstLayer(NamedTuple):
    """The layer that the input of a network meets first, for rules that try its weights.

    Attributes:
      weights: its kernel.
      loss: maps such a kernel, and beta of all layers, to the training loss of a batch, a scalar.
    """

    weights: Array
    loss: Callable[[Array, PyTree], Array]


class Surrogates(NamedTuple):
    """What a rule sets: the surrogate gradient of each layer.

    Attributes:
      beta: its width parameter, a pytree of arrays with one leaf per layer.
      scale: its height, as a factor, laid out like beta.
    """

    beta: PyTree
    scale: PyTree


class Observed(NamedTuple):
    """What a controller is shown; None where nobody asked for it. `Controller.needs` has the names of these fields.

    Attributes:
      membrane: a `MembraneStats` in the place of each beta.
      distances: a `MembraneDistances` in the place of each beta.
      currents: a `MembraneStats` of the currents in the place of each beta.
      firing_rate: the share of neurons and time steps that spiked, in the place of each beta.
      params: parameters of the network, laid out by module path like beta.
      first_layer: see `FirstLayer`.
      updates: which update this is, counted from 1; 0 for `Controller.start`. Always given.
    """

    membrane: PyTree = None
    distances: PyTree = None
    currents: PyTree = None
    firing_rate: PyTree = None
    params: PyTree = None
    first_layer: FirstLayer | None = None
    updates: ArrayLike = 0


# What layers measure, each in the collection of that name; the other fields are not measured by layers.
MEASURED = ('membrane', 'distances', 'currents', 'firing_rate')


class Report(NamedTuple):
    """What an update tells of each layer; a pytree laid out like beta.

    Attributes:
      skipped: True where a layer kept its surrogate gradient because there was nothing to tell a better one by.
    """

    skipped: PyTree

    def skipped_layers(self) -> list[str]:
        """Names the layers that were skipped, in whole or in part; on the host only."""
        return [layer_name(name) for name in leaves_where(self.skipped)]


class Controller(NamedTuple):
    """A rule that sets the surrogate gradients, made for a network.

    Attributes:
      init: maps beta, a pytree of arrays with one leaf per layer, to the state of the rule.
      update: maps `(observed, surrogates, state)` to `(surrogates, state, report)`. Pure, and jittable.
      needs: names of the fields of `Observed` that `update` reads.
      start: maps `(observed, surrogates, state)` to `(surrogates, state)` before the first step; None changes nothing.
      start_needs: names of the fields of `Observed` that `start` reads.
      numbers: reads from the state what the rule tells of each layer: pytrees laid out like beta, by the name they have
        in the metrics, such as 'chi_min'.
    """

    init: Callable[[PyTree], State]
    update: Callable[[Observed, Surrogates, State], tuple[Surrogates, State, Report]]
    needs: tuple[str, ...] = ()
    start: Callable[[Observed, Surrogates, State], tuple[Surrogates, State]] | None = None
    start_needs: tuple[str, ...] = ()
    numbers: Callable[[State], Mapping[str, PyTree]] = lambda state: {}


class Settings(NamedTuple):
    """What is known of a run when its controller is made, the same for every rule.

    Attributes:
      surrogate: of the network.
      v_th: threshold of its neurons.
      tau: decay of their potentials, where it is not learnt.
      time_steps: T.
      detach_reset: no gradient flows through their reset.
      beta_init: beta of every layer at the start.
      interval: which interval chi counts, 'paper' or 'support'.
      counted: chi is counted from `MembraneDistances` instead of taken from Eq. 6.
      every: when `update` is called, 'epoch' or 'batch'.
      updates_per_epoch: how often that is in an epoch.
      decay_learnt: the decay of the membrane potential is a parameter.
      fixed_threshold: threshold and width are `v_th` and that of beta at each step, so that the gain can be told from
        the potentials.
      options: values of the options of all rules, by name.
      beta_of_run: reads beta of each layer, by the layer's name, from the folder of a run.
    """

    surrogate: str | Surrogate = 'triangular'
    v_th: float = 1.0
    tau: float = 0.5
    time_steps: int = 1
    detach_reset: bool = False
    beta_init: float = 1.0
    interval: str = 'paper'
    counted: bool = False
    every: str = 'epoch'
    updates_per_epoch: int = 1
    decay_learnt: bool = False
    fixed_threshold: bool = True
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
      The controller; beta keeps its shapes and dtypes, heights stay, and the state is empty.
    """

    def update(observed: Observed, surrogates: Surrogates, state: State) -> tuple[Surrogates, State, Report]:
        beta, report = moved(surrogates.beta, wanted(observed, surrogates.beta))
        return surrogates._replace(beta=beta), state, report

    return Controller(lambda beta: (), update, needs)


def from_the_first_step(controller: Controller) -> Controller:
    """Lets a controller update once before the first step, too, from a forward pass.

    Args:
      controller: whose update does not go by what an earlier one saw.

    Returns:
      The controller; its first update leaves the state as it is.
    """

    def start(observed: Observed, surrogates: Surrogates, state: State) -> tuple[Surrogates, State]:
        return controller.update(observed, surrogates, state)[0], state

    return controller._replace(start=start, start_needs=controller.needs)


def moved(old: PyTree, wanted: PyTree) -> tuple[PyTree, Report]:
    """Takes wanted values where they are finite numbers greater than 0.

    Args:
      old: beta or scale.
      wanted: what it is to be; each leaf broadcasts to that of `old`.

    Returns:
      The values, in the shapes and dtypes of `old`, which is kept where there is nothing usable; and which that is.
    """
    new = jax.tree.map(lambda old, new: jnp.broadcast_to(new, jnp.shape(old)), old, wanted)
    skipped = jax.tree.map(lambda new: ~(jnp.isfinite(new) & (new > 0)), new)
    keep = lambda old, new, skip: jnp.where(skip, old, new).astype(jnp.asarray(old).dtype)
    return jax.tree.map(keep, old, new, skipped), Report(skipped)


def goes_by_moments(settings: Settings, name: str) -> str | None:
    """The conflict of a rule that needs mean and variance where chi is counted instead."""
    if not settings.counted:
        return None
    return (
        f'config.cpng.chi is counted and config.cpng.rule is {name}, which goes by mean and variance: '
        'expected gaussian with it.'
    )


def sets_the_support(settings: Settings, name: str) -> str | None:
    """The conflict of a rule that asks for the width of the support where that does not depend on beta."""
    shape = get_surrogate(settings.surrogate)
    if math.isinf(shape.reach):
        return None
    return (
        f'config.neuron.surrogate is {shape.name} and config.cpng.rule is {name}, which sets the width of the interval '
        f'where the gradient is not 0: that of {shape.name} is the same for every beta, expected another shape with it.'
    )
