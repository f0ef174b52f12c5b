"""What CPNG adds to training: statistics in each step, and Algorithm 1 once an epoch or after each batch.

    python -m benchmarks.cpng_cost
    python -m benchmarks.cpng_cost --networks=vgg16 --batch=64

Three training steps of a network take turns in one process, on the same random images: `without` has no statistics, no
CPNG and no totals of the epoch; `statistics` is the step of `config.cpng.every = 'epoch'`, which measures each layer's
membrane potential and firing rate; `every batch` is that of `config.cpng.every = 'batch'`, which runs Algorithm 1 too.
A share is what the later adds to the former, round by round: the median and, in brackets, where it lies by 95 %, so
that rounds are better many and short. At last Algorithm 1 by itself, as it runs between epochs, as a share of an epoch
of 50,000 images.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags, logging

from benchmarks import cases, ours
from benchmarks.cases import NETWORKS, Arrays, Case
from benchmarks.contest import Spread
from benchmarks.memory import table
from cpng_jax.models.inputs import network_input
from cpng_jax.nn.losses import mean_output_cross_entropy
from cpng_jax.runtime import command
from cpng_jax.training import set_beta, setup
from cpng_jax.training.setup import Setup
from cpng_jax.training.step import compiler_options

EPOCH_IMAGES = 50_000


@dataclasses.dataclass(frozen=True)
class Cost:
    """What CPNG costs a network.

    Attributes:
      case: the network.
      without_s: seconds of a step without statistics.
      statistics: what they add, as a share of that step.
      every_batch: what Algorithm 1 in each step adds, as a share of a step with statistics.
      update_s: seconds of Algorithm 1 between two epochs.
      epoch_share: the same as a share of an epoch.
    """

    case: Case
    without_s: Spread
    statistics: Spread
    every_batch: Spread
    update_s: Spread
    epoch_share: float


def step_without_statistics(work: Setup, inputs: Arrays) -> Callable[[], None]:
    """Compiles a training step that measures nothing, not even the loss.

    Args:
      work: the experiment.
      inputs: `images` and `labels` of a batch.

    Returns:
      Trains for a step, on the same batch each time, and returns when the next state is there.
    """
    start = work.initial_state()
    carried = (start.params, start.batch_stats, start.opt_state)
    surrogate = start.surrogate
    images, labels = jnp.asarray(inputs['images']), jnp.asarray(inputs['labels'])

    @jax.jit(donate_argnums=0, compiler_options=compiler_options(work.mesh))
    def train(carried: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, batch_stats, opt_state = carried
        x = network_input(images, work.dataset.mean, work.dataset.std, work.config.dtype)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            variables = {'params': params, 'batch_stats': batch_stats, 'surrogate': surrogate}
            logits, updates = work.model.apply(variables, x, train=True, mutable=['batch_stats'])
            return jnp.mean(mean_output_cross_entropy(logits, labels)), updates.get('batch_stats', {})

        gradients, batch_stats = jax.grad(loss, has_aux=True)(params)
        changes, opt_state = work.optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, changes), batch_stats, opt_state

    return ours.stepping(train, carried, images, labels)


def algorithm_1(work: Setup) -> Callable[[], None]:
    """Makes a function that runs Algorithm 1 on a state as the loop does between epochs, and waits for beta."""
    state = work.initial_state()
    # Statistics of an ordinary layer, and a first call that has recorded a smaller chi: now there is a beta to find.
    ordinary = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.3), state.epoch.observed)
    recorded = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.25), state.control)
    state = state.replace(epoch=state.epoch.replace(observed=ordinary), control=recorded)
    return lambda: jax.block_until_ready(set_beta.update(work.controller, state, updates=2)[0].surrogate)


def seconds_of(work: Callable[[], None], times: int) -> float:
    """Median seconds of a call."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def measure(case: Case, *, rounds: int, steps: int) -> Cost:
    """Measures a network.

    Args:
      case: of a network.
      rounds: in which the three steps take turns.
      steps: of each in a round.

    Returns:
      The `Cost`.
    """
    works = {}
    for every in ('epoch', 'batch'):
        config = ours.config_of(case)
        config.cpng.every = every
        works[every] = setup.build(config)
    inputs = cases.network_inputs(case)
    contenders = [
        step_without_statistics(works['epoch'], inputs),
        ours.training_step(works['epoch'], inputs),
        ours.training_step(works['batch'], inputs),
    ]
    for contender in contenders:
        seconds_of(contender, 2)  # the first one compiles
    turns = [[seconds_of(contender, steps) for contender in contenders] for _ in range(rounds)]
    update = algorithm_1(works['epoch'])
    seconds_of(update, 2)
    updates = Spread.of([seconds_of(update, 10) for _ in range(rounds)])
    epoch = EPOCH_IMAGES / case.batch * statistics.median(turn[1] for turn in turns)
    return Cost(
        case,
        Spread.of([turn[0] for turn in turns]),
        Spread.of_median([turn[1] / turn[0] - 1 for turn in turns]),
        Spread.of_median([turn[2] / turn[1] - 1 for turn in turns]),
        updates,
        updates.median / epoch,
    )


def percent(spread: Spread) -> str:
    """Writes a share with its spread."""
    return f'{spread.median:+.1%} ({spread.least:+.1%} to {spread.most:+.1%})'


def cost_table(costs: list[Cost]) -> str:
    """Lays the costs out in Markdown."""
    rows = [
        [
            cost.case.name,
            cost.case.size,
            f'{1000 * cost.without_s.median:.3g} ms',
            percent(cost.statistics),
            percent(cost.every_batch),
            f'{1000 * cost.update_s.median:.2f} ms',
            f'{cost.epoch_share:.5%}',
        ]
        for cost in costs
    ]
    heading = ['network', 'size', 'step without', 'statistics', 'every batch', 'Algorithm 1', 'of an epoch']
    return table(heading, rows)


def main(_: list[str]) -> None:
    """Measures and prints."""
    logging.set_verbosity(logging.WARNING)  # JAX names each backend that is not there
    values = flags.FLAGS
    costs = []
    for name in values.networks:
        case = cases.network_case(name, values.batch, values.width)
        costs.append(measure(case, rounds=values.rounds, steps=values.steps))
    print(cost_table(costs))


if __name__ == '__main__':
    flags.DEFINE_multi_enum('networks', ['vgg16', 'resnet19'], list(NETWORKS), 'Which.')
    flags.DEFINE_integer('batch', 0, 'Examples in a step; 0 for those of benchmarks.race.', lower_bound=0)
    flags.DEFINE_float('width', 1.0, 'Factor on all channels.', lower_bound=0.01)
    flags.DEFINE_integer('rounds', 40, 'Rounds in which the steps take turns.', lower_bound=6)
    flags.DEFINE_integer('steps', 1, 'Of each in a round.', lower_bound=1)
    command.run(main)
