"""From a configuration to the parts of a run: data, mesh, network, optimiser, steps."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cpng_jax import data
from cpng_jax.control import cpng, dspike, rules
from cpng_jax.control.layer_tree import layer_paths
from cpng_jax.data import mixing
from cpng_jax.data.pipeline import TrainBatches, steps_per_epoch
from cpng_jax.models import registry
from cpng_jax.nn import losses
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime import metrics, sharding
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import optim
from cpng_jax.training import state as train_state
from cpng_jax.training import step as train_step
from cpng_jax.training.state import TrainState

Controller = Callable[[TrainState, train_step.Batch], tuple[TrainState, cpng.CPNGReport]]


class Setup(NamedTuple):
    """What a configuration describes, built and checked, before any step is made."""

    config: Config
    dataset: data.Dataset
    mesh: jax.sharding.Mesh
    model: nn.Module
    optimizer: optax.GradientTransformation
    cpng_config: cpng.CPNGConfig
    rule: rules.Rule | None
    found_beta: dict[str, float] | None
    steps_per_epoch: int
    steps: int

    def epoch(self, step: int) -> int:
        """The epoch, counted from 1, that contains or ends with a step."""
        return -(-step // self.steps_per_epoch)


def build(config: Config) -> Setup:
    """Builds all that a configuration describes; shapes are checked without computing.

    Args:
      config: a valid configuration.

    Returns:
      The setup.

    Raises:
      UserError: the parts do not fit together.
    """
    _check_options(config)
    dataset = data.load(config.data)
    mesh = sharding.make_mesh(config.batch_size, config.optim.accumulate)
    if config.neuron.implementation == 'pallas' and mesh.size > 1:
        raise UserError(
            f'config.neuron.implementation is pallas, whose kernels {mesh.size} devices cannot share: '
            'take scan, or one device.'
        )
    model = registry.build(config, classes=len(dataset.class_names))
    per_epoch = steps_per_epoch(dataset, config.batch_size)
    steps = per_epoch * config.epochs
    try:
        jax.eval_shape(model.init, jax.random.key(0), example_input(dataset))
    except (ValueError, TypeError) as error:
        shape = ' x '.join(map(str, dataset.image_shape))
        raise UserError(f'config.model does not fit {config.data.name} images of {shape}: {error}') from error
    cpng_config = cpng.CPNGConfig(
        chi_limit=config.cpng.chi_limit,
        limit_mode=config.cpng.limit_mode,
        interval=config.cpng.interval,
        surrogate=config.neuron.surrogate,
        v_th=config.neuron.v_th,
    )
    rule = None
    if config.cpng.rule in rules.RULES:
        rule = rules.make_rule(
            config.cpng.rule,
            surrogate=config.neuron.surrogate,
            v_th=config.neuron.v_th,
            beta_init=config.cpng.beta_init,
        )
    optimizer = optim.make_optimizer(config.optim, steps)
    found = found_beta(config, model, dataset) if config.cpng.beta_from else None
    return Setup(config, dataset, mesh, model, optimizer, cpng_config, rule, found, per_epoch, steps)


def _check_options(config: Config) -> None:
    """Refuses options that do not go together, by a sentence on each pair."""
    neuron, controller = config.neuron, config.cpng
    counted, channel, lsg = controller.chi == 'counted', controller.per == 'channel', controller.rule == 'lsg'
    if neuron.implementation == 'pallas' and (counted or channel or neuron.learn_tau or neuron.ds_atgo):
        raise UserError(
            'config.neuron.implementation is pallas, whose kernels know a fixed tau and threshold and measure mean and '
            'variance of whole layers: take scan, or cpng.chi gaussian, cpng.per layer, neuron.learn_tau False and '
            'neuron.ds_atgo False.'
        )
    if neuron.ds_atgo and counted:
        raise UserError(
            'config.neuron.ds_atgo is True and config.cpng.chi is counted, expected gaussian with it: '
            'distances are counted from a fixed threshold.'
        )
    if counted and channel:
        raise UserError(
            'config.cpng.chi is counted and config.cpng.per is channel, expected gaussian or layer with it: '
            'counts of each channel would need more memory than the potentials.'
        )
    if counted and controller.rule in ('mpd_agl', 'ds_atgo'):
        raise UserError(
            f'config.cpng.chi is counted and config.cpng.rule is {controller.rule}, which goes by mean and variance: '
            'expected gaussian with it.'
        )
    if controller.rule == 'dspike' and controller.every == 'batch':
        raise UserError(
            'config.cpng.rule is dspike and config.cpng.every is batch, expected epoch with it: its finite differences '
            'compute the loss twice for each weight of the first layer.'
        )
    if neuron.learn_tau and not 0 < neuron.tau < 1:
        raise UserError(f'config.neuron.tau is {neuron.tau}, expected a number between 0 and 1 for it to be learnt.')
    if lsg and not neuron.learn_tau:
        raise UserError(
            'config.cpng.rule is lsg, whose width follows a decay that is learnt: set config.neuron.learn_tau to True.'
        )


def found_beta(config: Config, model: nn.Module, dataset: data.Dataset) -> dict[str, float]:
    """Reads the beta that each layer had at the end of the run `config.cpng.beta_from` (A.4).

    Args:
      config: of the run that takes it.
      model: its network.
      dataset: its data.

    Returns:
      Beta by layer.

    Raises:
      UserError: there is no finished epoch in that folder, or its layers are not those of the network.
    """
    rows = metrics.read_epochs(config.cpng.beta_from)
    if not rows:
        raise UserError(
            f'config.cpng.beta_from is {config.cpng.beta_from!r}, expected the folder of a run that has finished an '
            f'epoch: there is no such row in its {metrics.FILE_NAME}.'
        )
    beta = rows[-1]['beta']
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_input(dataset))
    layers = list(layer_paths(shapes['surrogate']))
    if sorted(beta) != sorted(layers):
        raise UserError(
            f'config.cpng.beta_from is {config.cpng.beta_from!r}, a run with the layers {", ".join(beta)}; '
            f'expected those of this network, {", ".join(layers)}.'
        )
    return beta


def with_found_beta(setup: Setup, state: TrainState) -> TrainState:
    """Sets the beta of another run, where the configuration asks for it, once its epoch has come.

    Args:
      setup: from `build`.
      state: at the start, or at the end of an epoch.

    Returns:
      The state, changed at the end of epoch `config.cpng.beta_from_epoch` alone.
    """
    found = setup.found_beta
    if found is None or int(state.step) != setup.config.cpng.beta_from_epoch * setup.steps_per_epoch:
        return state
    leaves, structure = jax.tree.flatten(state.surrogate)
    layers = layer_paths(state.surrogate)
    new = [
        jax.device_put(jnp.full_like(leaf, found[layer]), leaf.sharding)
        for leaf, layer in zip(leaves, layers, strict=True)
    ]
    return state.replace(surrogate=jax.tree.unflatten(structure, new))


def initial_state(setup: Setup) -> TrainState:
    """Initialises the state of a run, each part where it will live."""
    state = jax.jit(_create(setup), out_shardings=state_sharding(setup))()
    return with_found_beta(setup, state)


def state_sharding(setup: Setup) -> TrainState:
    """Tells where each part of the state of a run lives, as a state of shardings."""
    shapes = jax.eval_shape(_create(setup))
    return sharding.of_state(shapes, setup.mesh, fsdp=setup.config.mesh.fsdp)


def _create(setup: Setup) -> Callable[[], TrainState]:
    example = example_input(setup.dataset)
    config = setup.config
    return lambda: train_state.create(
        setup.model, setup.optimizer, example, config.seed, counted=config.cpng.chi == 'counted'
    )


def example_input(dataset: data.Dataset) -> Array:
    """One black image, or a recording without events, as the network takes it.

    Args:
      dataset: the data set.

    Returns:
      `[1, H, W, C]` or `[T, 1, H, W, C]`, float32.
    """
    batch = jnp.zeros((1, *dataset.image_shape), jnp.uint8)
    return train_step.network_input(batch, dataset.mean, dataset.std)


def compile_steps(setup: Setup) -> tuple[jax.stages.Wrapped, train_step.EvalStep]:
    """Makes the jitted training step and evaluation step of a run."""
    config, dataset = setup.config, setup.dataset
    every_batch = config.cpng.enabled and config.cpng.every == 'batch'
    step_function = train_step.make_train_step(
        setup.model,
        setup.optimizer,
        setup.mesh,
        state_sharding=state_sharding(setup),
        mean=dataset.mean,
        std=dataset.std,
        dtype=config.dtype,
        loss=_loss(config, len(dataset.class_names)),
        mix=_mix(config, len(dataset.class_names)),
        accumulate=config.optim.accumulate,
        pool_statistics=config.cpng.statistics == 'epoch_mean',
        counted=config.cpng.chi == 'counted',
        cpng_every_batch=setup.cpng_config if every_batch else None,
        rule=setup.rule,
    )
    evaluate = train_step.make_eval_step(
        setup.model, setup.mesh, mean=dataset.mean, std=dataset.std, dtype=config.dtype
    )
    return step_function, evaluate


def make_controller(setup: Setup) -> Controller:
    """Makes what `config.cpng` sets beta by between epochs, whether or not it is enabled.

    Args:
      setup: from `build`.

    Returns:
      Maps the state at the end of an epoch, and a batch that tells what the training data are like, to the state with
      the new beta, and a report.
    """
    config, dataset = setup.config, setup.dataset
    settings, rule = setup.cpng_config, setup.rule
    if config.cpng.rule != 'dspike' or not config.cpng.enabled:
        return lambda state, _: train_step.cpng_step(state, settings, rule)
    rule_of = dspike.make_rule_of_batch(
        setup.model,
        example_input(dataset),
        setup.mesh,
        mean=dataset.mean,
        std=dataset.std,
        dtype=config.dtype,
        loss=_loss(config, len(dataset.class_names)),
        accumulate=config.optim.accumulate,
        epsilon=config.cpng.dspike_epsilon,
        step=config.cpng.dspike_step,
    )
    return lambda state, batch: train_step.cpng_step(state, settings, rule_of(state, batch))


def _loss(config: Config, classes: int) -> train_step.Loss:
    """The training loss that `config.loss` describes."""
    if config.loss.name == 'tet':
        loss = functools.partial(
            losses.temporal_efficient_training, weight=config.loss.tet_weight, target=config.loss.tet_target
        )
    else:
        loss = losses.mean_output_cross_entropy
    smoothing = config.loss.label_smoothing
    if not smoothing:
        return loss
    return lambda logits, labels: loss(logits, optax.losses.smooth_labels(_distribution(labels, classes), smoothing))


def _mix(config: Config, classes: int) -> train_step.Mix | None:
    """Mixup and CutMix as `config.data` has them; the same in each run, since its randomness is seed and step alone."""
    alphas = {'mixup_alpha': config.data.mixup_alpha, 'cutmix_alpha': config.data.cutmix_alpha}
    if not any(alphas.values()):
        return None

    def mix(images: Array, labels: Array, step: Array) -> tuple[Array, Array]:
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        return mixing.mix(images, _distribution(labels, classes), key, **alphas)

    return mix


def _distribution(labels: Array, classes: int) -> Array:
    """Class indices as one-hot float32 `[B, classes]`; what is a distribution already stays."""
    return labels if labels.ndim == 2 else jax.nn.one_hot(labels, classes)


def train_batches(setup: Setup, first_step: int) -> TrainBatches:
    """Opens the training batches of a run from a step on."""
    config, dataset = setup.config, setup.dataset
    return TrainBatches(
        dataset.train,
        dataset.augment,
        batch_size=config.batch_size,
        seed=config.seed,
        first_step=first_step,
        threads=config.data.threads,
        workers=config.data.workers,
        shard=jax.process_index(),
        shards=jax.process_count(),
    )
