"""Control of the Proportion of Non-zero Gradients: Algorithm 1 as pure functions.

    state = cpng.init(beta)
    beta, state, report = cpng.update(stats, beta, state, cpng.CPNGConfig())

`beta` is any pytree of arrays, one leaf per layer, `stats` the same tree with a `MembraneStats` in the
place of each leaf, or a `MembraneDistances`: then chi is counted instead of taken from Eq. 6's Gaussian. Nothing here
knows of models, devices or epochs: call `update` whenever the network has seen the data once.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cpng_jax.control.controller import Controller, Observed, Report, Rule, Settings, Surrogates
from cpng_jax.control.effective_domain import beta_for_chi, chi, domain_half_width
from cpng_jax.control.layer_tree import PyTree, floating, leaves_where, like, stats_vector, vector
from cpng_jax.control.options import Option, choice, number
from cpng_jax.nn.statistics import MembraneStats, Stats
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate

LIMIT_MODES = ('delayed', 'immediate')


@dataclasses.dataclass(frozen=True)
class CPNGConfig:
    """How Algorithm 1 decides. Values are checked at construction.

    Attributes:
      chi_limit: the least share of potentials that a layer is held at, 0 <= chi_limit < 1 (Table 2).
      limit_mode: 'delayed', as Algorithm 1 prints it: the recorder first takes a chi below the limit and is
        raised to the limit at the next call; 'immediate': the recorder never stays below the limit.
      interval: which interval chi counts, 'paper' or 'support', see `domain_half_width`.
      surrogate: 'triangular', 'rectangular', 'arctan', 'dspike' or a `Surrogate`: that of the network.
      v_th: threshold of the network's neurons.

    Raises:
      ValueError: a value is out of range; the message names it.
    """

    chi_limit: float = 0.2
    limit_mode: str = 'delayed'
    interval: str = 'paper'
    surrogate: str | Surrogate = 'triangular'
    v_th: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.chi_limit < 1:
            raise ValueError(f'chi_limit must lie in 0 <= chi_limit < 1, got {self.chi_limit!r}.')
        if self.limit_mode not in LIMIT_MODES:
            raise ValueError(f'limit_mode must be one of {", ".join(LIMIT_MODES)}, got {self.limit_mode!r}.')
        domain_half_width(self.surrogate, self.interval)


class CPNGState(NamedTuple):
    """What Algorithm 1 remembers.

    Attributes:
      chi_recorder: the smallest chi of each layer so far, shaped like beta; infinite before the first.
    """

    chi_recorder: PyTree


class CPNGReport(NamedTuple):
    """What a call of `update` saw; each field is a pytree shaped like beta.

    Attributes:
      chi: chi at the beta that the statistics were taken with; NaN where they are not finite.
      chi_min: the recorder after the call, which the new beta aims at.
      skipped: True where the layer kept its beta because its potentials are constant or not
        finite, or because no beta reaches chi_min.
    """

    chi: PyTree
    chi_min: PyTree
    skipped: PyTree

    def skipped_layers(self) -> list[str]:
        """Names the layers that were skipped, by their path in the beta tree; on the host only."""
        return leaves_where(self.skipped)


def init(beta: PyTree) -> CPNGState:
    """Starts Algorithm 1 with nothing recorded.

    Args:
      beta: pytree of arrays, one leaf per layer.

    Returns:
      The state for the first `update`, which only records.
    """
    return CPNGState(jax.tree.map(lambda leaf: jnp.full(jnp.shape(leaf), jnp.inf, jnp.float32), beta))


def update(
    stats: PyTree, beta: PyTree, state: CPNGState, config: CPNGConfig | None = None
) -> tuple[PyTree, CPNGState, CPNGReport]:
    """Runs Algorithm 1 once on all layers.

    The first call with usable statistics only records a layer's chi. Later, a layer whose chi
    rose above the smallest recorded gets the beta that brings it back there; the recorder follows chi
    downwards, but not below `chi_limit`. A layer whose potentials are constant or not finite keeps its beta
    and its record. Pure: same numbers on the host and under `jit`.

    Args:
      stats: pytree like `beta` with a `MembraneStats` for each leaf, of the leaf's shape; or a `MembraneDistances` for
        each, to count chi; or the collection `membrane` or `distances` as the layers have written it.
      beta: pytree of floating arrays greater than 0: scalars, or one value per channel.
      state: from `init` or the last `update`.
      config: see `CPNGConfig`; the default is the paper's.

    Returns:
      `(beta, state, report)`; beta keeps its dtypes.

    Raises:
      ValueError: `stats` or `state` does not fit the layers of `beta`.

    Source: Algorithm 1, Sec. 4.2.
    """
    config = CPNGConfig() if config is None else config
    measured = stats_vector(stats, beta)
    betas = vector('beta', beta, beta)
    recorder = vector('state.chi_recorder', state.chi_recorder, beta)
    domain: dict[str, Any] = dict(v_th=config.v_th, surrogate=config.surrogate, interval=config.interval)
    delayed = config.limit_mode == 'delayed'
    betas, recorder, chi_now, skipped = _algorithm_1(measured, betas, recorder, config.chi_limit, delayed, **domain)

    report = CPNGReport(like(beta, chi_now), like(beta, recorder), like(beta, skipped))
    new_beta = jax.tree.map(lambda old, new: new.astype(floating(old).dtype), beta, like(beta, betas))
    new_state = CPNGState(jax.tree.map(lambda old, new: new.astype(old.dtype), state.chi_recorder, report.chi_min))
    return new_beta, new_state, report


# Numbers are not part of the program, so that one serves all.
@functools.partial(jax.jit, static_argnames=('delayed', 'surrogate', 'interval'))
def _algorithm_1(
    stats: Stats, beta: Array, recorder: Array, chi_limit: ArrayLike, delayed: bool, **domain: Any
) -> tuple[Array, Array, Array, Array]:
    """Algorithm 1 on vectors with an element per layer: returns beta, recorder, chi, skipped."""
    chi_now = chi(stats, beta, **domain)
    usable = jnp.isfinite(chi_now)
    if isinstance(stats, MembraneStats):
        usable &= jnp.isfinite(stats.mean) & (stats.variance > 0) & jnp.isfinite(stats.variance)
    first = jnp.isinf(recorder)

    smallest = jnp.minimum(recorder, chi_now)
    if delayed:
        smallest = jnp.where(recorder < chi_limit, chi_limit, smallest)
    else:
        smallest = jnp.where(first, smallest, jnp.maximum(smallest, chi_limit))
    new_recorder = jnp.where(usable, smallest, recorder)

    adapt = usable & ~first & (new_recorder != chi_now)
    solution = beta_for_chi(new_recorder, stats, **domain)
    solved = adapt & (solution > 0)
    return jnp.where(solved, solution, beta), new_recorder, chi_now, ~usable | (adapt & ~solved)


def config_of(settings: Settings) -> CPNGConfig:
    """Makes the configuration of Algorithm 1 from the settings of a run."""
    return CPNGConfig(
        chi_limit=settings.options['chi_limit'],
        limit_mode=settings.options['limit_mode'],
        interval=settings.interval,
        surrogate=settings.surrogate,
        v_th=settings.v_th,
    )


def _make(settings: Settings) -> Controller:
    config, statistics = config_of(settings), settings.statistics

    def step(observed: Observed, surrogates: Surrogates, state: CPNGState) -> tuple[Surrogates, CPNGState, Report]:
        beta, state, seen = update(getattr(observed, statistics), surrogates.beta, state, config)
        return surrogates._replace(beta=beta), state, Report(seen.skipped)

    return Controller(init, step, (statistics,), numbers=lambda state: {'chi_min': state.chi_recorder})


RULE = Rule(
    'CPNG: as narrow as the smallest χ so far allows (Algorithm 1)',
    make=_make,
    options=(
        Option('chi_limit', 0.2, number(0, 1, open_high=True), 'the least χ a layer is held at (Sec. 5.2)', '0.1'),
        Option(
            'limit_mode',
            'delayed',
            choice(*LIMIT_MODES),
            'delayed, as Algorithm 1 prints it: a χ below the limit is first recorded, then raised; or immediate',
            '0.1',
        ),
    ),
)
