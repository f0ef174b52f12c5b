"""The beta that another run found (A.4): each layer takes it at the start, or after some epochs.

By itself beta then stays there. In front of another rule, which a configuration asks for by `cpng.beta_from` besides
`cpng.rule`, that rule goes on from it.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cpng_jax.control import fixed
from cpng_jax.control.controller import Controller, Observed, PyTree, Report, Rule, Settings, State, Surrogates
from cpng_jax.control.layer_tree import layer_name, leaf_name
from cpng_jax.control.options import TEXT, Option, integer


def followed_by(found: Mapping[str, float], updates: int, then: Controller) -> Controller:
    """Sets a beta once, and leaves it to another controller for the rest.

    Args:
      found: beta of each layer, by the layer's name.
      updates: after how many updates it is set; 0 for before the first step.
      then: what sets beta before and afterwards.

    Returns:
      The controller, with the state of `then`.
    """

    def with_found(observed: Observed, beta: PyTree) -> PyTree:
        now = jnp.equal(observed.updates, updates)
        of_layer = lambda path, old: jnp.where(now, jnp.full_like(old, found[layer_name(leaf_name(path))]), old)
        return jax.tree.map_with_path(of_layer, beta)

    def update(observed: Observed, surrogates: Surrogates, state: State) -> tuple[Surrogates, State, Report]:
        surrogates, state, report = then.update(observed, surrogates, state)
        return *taken(observed, surrogates, state), report

    def start(observed: Observed, surrogates: Surrogates, state: State) -> tuple[Surrogates, State]:
        surrogates = surrogates._replace(beta=with_found(observed, surrogates.beta))
        return (surrogates, state) if then.start is None else then.start(observed, surrogates, state)

    def taken(observed: Observed, surrogates: Surrogates, state: State) -> tuple[Surrogates, State]:
        if then.start is None:
            return surrogates._replace(beta=with_found(observed, surrogates.beta)), state
        # What sets a height by the width starts with this one.
        if isinstance(observed.updates, int):  # between epochs, where a `cond` would be compiled at each of them
            return start(observed, surrogates, state) if observed.updates == updates else (surrogates, state)
        now = jnp.equal(observed.updates, updates)
        return jax.lax.cond(now, lambda: start(observed, surrogates, state), lambda: (surrogates, state))

    return then._replace(update=update, start=start)


def in_front_of(then: Controller, settings: Settings) -> Controller:
    """Puts the beta that the settings name in front of a controller.

    Args:
      then: what sets beta before and afterwards.
      settings: with the options `beta_from` and `beta_from_epoch`, and a reader of runs.

    Returns:
      The controller.

    Raises:
      ValueError: there is no reader of runs.
    """
    if settings.beta_of_run is None:
        raise ValueError('settings.beta_of_run must read the beta of a run, got None.')
    found = settings.beta_of_run(settings.options['beta_from'])
    return followed_by(found, settings.options['beta_from_epoch'] * settings.updates_per_epoch, then)


def _conflict(settings: Settings) -> str | None:
    if settings.options['beta_from']:
        return None
    return "config.cpng.rule is from_run and config.cpng.beta_from '', expected the folder of a run that has found one."


RULE = Rule(
    'the beta that each layer had at the end of the run `cpng.beta_from` (A.4)',
    make=lambda settings: in_front_of(fixed.RULE.make(settings), settings),
    options=(
        Option('beta_from', '', TEXT, 'folder of a run whose final beta the layers take (A.4), or none', '0.2'),
        Option('beta_from_epoch', 0, integer(0), 'epochs before they do', '0.2'),
    ),
    conflict=_conflict,
    heeds=(),
)
