"""From a configuration to the parts of a run: data, mesh, network, optimiser, steps."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cpng_jax import data
from cpng_jax.control import rules
from cpng_jax.control.controller import Controller, Settings
from cpng_jax.control.layer_tree import layer_paths
from cpng_jax.data import mixing
from cpng_jax.data.pipeline import TrainBatches, steps_per_epoch
from cpng_jax.models import registry
from cpng_jax.nn import losses
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime import metrics, sharding
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import optim, set_beta
from cpng_jax.training.state import EpochTotals, TrainState, create
from cpng_jax.training.step import EvalStep, Loss, Mix, Prepare, make_eval_step, make_train_step, network_input


class Setup(NamedTuple):
    """What a configuration describes, built and checked, before any step is made.

    Attributes:
      config: what it was built from.
      dataset: training and test examples.
      mesh: devices that share a batch.
      model: the network.
      optimizer: from optax.
      settings: what rules that set beta are made from.
      controller: what sets beta.
      steps_per_epoch: training steps in an epoch.
      steps: of the whole training.
    """

    config: Config
    dataset: data.Dataset
    mesh: jax.sharding.Mesh
    model: nn.Module
    optimizer: optax.GradientTransformation
    settings: Settings
    controller: Controller
    steps_per_epoch: int
    steps: int

    def epoch(self, step: int) -> int:
        """The epoch, counted from 1, that contains or ends with a step."""
        return -(-step // self.steps_per_epoch)

    @property
    def prepare(self) -> Prepare:
        """Brings images into the form that the network takes."""
        dataset = self.dataset
        return functools.partial(network_input, mean=dataset.mean, std=dataset.std, dtype=self.config.dtype)

    @property
    def statistics(self) -> str:
        """The collection that chi is taken from."""
        return 'distances' if self.settings.counted else 'membrane'

    @property
    def observe(self) -> tuple[str, ...]:
        """The collections of statistics that are measured: for chi, and for what sets beta."""
        return set_beta.collections(self.controller, self.statistics)


def build(config: Config) -> Setup:
    """Builds all that a configuration describes; shapes are checked without computing.

    Args:
      config: a valid configuration.

    Returns:
      The setup.

    Raises:
      UserError: the parts do not fit together.
    """
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
    settings = _settings(config, model, dataset, per_epoch)
    try:
        controller = rules.make(config.cpng.rule, settings)  # checked, even where it is off
        if not config.cpng.enabled:
            controller = rules.make('fixed', settings)
    except ValueError as error:
        raise UserError(str(error)) from error
    optimizer = optim.make_optimizer(config.optim, steps)
    return Setup(config, dataset, mesh, model, optimizer, settings, controller, per_epoch, steps)


def _settings(config: Config, model: nn.Module, dataset: data.Dataset, per_epoch: int) -> Settings:
    """What the configuration says to every rule that sets beta."""
    return Settings(
        surrogate=config.neuron.surrogate,
        v_th=config.neuron.v_th,
        beta_init=config.cpng.beta_init,
        interval=config.cpng.interval,
        counted=config.cpng.chi == 'counted',
        every=config.cpng.every,
        updates_per_epoch=per_epoch if config.cpng.every == 'batch' else 1,
        decay_learnt=config.neuron.learn_tau,
        options=dict(config.cpng.items()),
        beta_of_run=functools.partial(beta_of_run, model=model, dataset=dataset),
    )


def beta_of_run(folder: str, model: nn.Module, dataset: data.Dataset) -> Mapping[str, float]:
    """Reads the beta that each layer had at the end of a run (A.4).

    Args:
      folder: of the run, `config.cpng.beta_from`.
      model: the network that takes it.
      dataset: its data.

    Returns:
      Beta by layer.

    Raises:
      UserError: there is no finished epoch in that folder, or its layers are not those of the network.
    """
    rows = metrics.read_epochs(folder)
    if not rows:
        raise UserError(
            f'config.cpng.beta_from is {folder!r}, expected the folder of a run that has finished an '
            f'epoch: there is no such row in its {metrics.FILE_NAME}.'
        )
    beta = rows[-1]['beta']
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_input(dataset))
    layers = layer_paths(shapes['surrogate'])
    if sorted(beta) != sorted(layers):
        raise UserError(
            f'config.cpng.beta_from is {folder!r}, a run with the layers {", ".join(beta)}; '
            f'expected those of this network, {", ".join(layers)}.'
        )
    return beta


def initial_state(setup: Setup) -> TrainState:
    """Initialises the state of a run, each part where it will live."""
    state = jax.jit(lambda: _create(setup), out_shardings=state_sharding(setup))()
    return set_beta.start(setup.controller, state)


def state_sharding(setup: Setup) -> TrainState:
    """The sharding of each array of a run's state: with `config.mesh.fsdp` the devices share weights and optimiser."""
    shapes, mesh = jax.eval_shape(lambda: _create(setup)), setup.mesh
    whole = jax.tree.map(lambda _: sharding.replicated(mesh), shapes)
    if not setup.config.mesh.fsdp:
        return whole
    shared = lambda tree: jax.tree.map(lambda leaf: sharding.along_longest_axis(leaf.shape, mesh), tree)
    return whole.replace(params=shared(shapes.params), opt_state=shared(shapes.opt_state))


def _create(setup: Setup) -> TrainState:
    return create(
        setup.model,
        setup.optimizer,
        setup.controller,
        example_input(setup.dataset),
        setup.config.seed,
        observe=setup.observe,
    )


def start_epoch(setup: Setup, state: TrainState) -> TrainState:
    """Sets the sums of the running epoch to 0."""
    zeros = jax.jit(EpochTotals.zeros, static_argnums=1, out_shardings=sharding.replicated(setup.mesh))
    return state.replace(epoch=zeros(state.surrogate, setup.observe))


def example_input(dataset: data.Dataset) -> Array:
    """One black image, or a recording without events, as the network takes it.

    Args:
      dataset: the data set.

    Returns:
      `[1, H, W, C]` or `[T, 1, H, W, C]`, float32.
    """
    batch = jnp.zeros((1, *dataset.image_shape), jnp.uint8)
    return network_input(batch, dataset.mean, dataset.std)


def compile_steps(setup: Setup) -> tuple[jax.stages.Wrapped, EvalStep]:
    """Makes the jitted training step and evaluation step of a run."""
    config, classes = setup.config, len(setup.dataset.class_names)
    update_beta = None
    if config.cpng.every == 'batch':
        update_beta = lambda state: set_beta.update(setup.controller, state, state.step)[0]
    step_function = make_train_step(
        setup.model,
        setup.optimizer,
        setup.mesh,
        setup.prepare,
        state_sharding=state_sharding(setup),
        loss=_loss(config, classes),
        mix=_mix(config, classes),
        accumulate=config.optim.accumulate,
        observe=setup.observe,
        pool_statistics=config.cpng.statistics == 'epoch_mean',
        update_beta=update_beta,
    )
    return step_function, make_eval_step(setup.model, setup.mesh, setup.prepare)


def make_update_beta(setup: Setup) -> set_beta.UpdateBeta:
    """Makes what sets beta between epochs.

    Args:
      setup: from `build`.

    Returns:
      Maps the state at the end of an epoch, and a batch that tells what the training data are like, to the state with
      the new beta, and a report.
    """
    config, dataset = setup.config, setup.dataset
    return set_beta.make_update(
        setup.controller,
        setup.model,
        example_input(dataset),
        setup.mesh,
        steps_per_update=setup.steps_per_epoch // setup.settings.updates_per_epoch,
        prepare=setup.prepare,
        loss=_loss(config, len(dataset.class_names)),
        accumulate=config.optim.accumulate,
    )


def _loss(config: Config, classes: int) -> Loss:
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


def _mix(config: Config, classes: int) -> Mix | None:
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
