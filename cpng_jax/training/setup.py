"""From a configuration to the parts of a run, in one go: data, mesh, network, what sets beta, steps.

Whoever trains, evaluates or analyses is handed the `Setup`, and need not come back here.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import linen as nn

from cpng_jax import data
from cpng_jax.control import rules
from cpng_jax.control.controller import Controller, Settings
from cpng_jax.control.layer_tree import layer_paths
from cpng_jax.data.pipeline import TrainBatches, steps_per_epoch
from cpng_jax.models import registry
from cpng_jax.models.inputs import network_input
from cpng_jax.nn.initial import drawn_at_once
from cpng_jax.nn.kinds import KINDS
from cpng_jax.nn.surrogate import Array
from cpng_jax.runtime import compiled, metrics, paths, sharding
from cpng_jax.runtime.config import Config, flatten
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import objective, optim, set_beta, weights
from cpng_jax.training.state import TrainState, begin
from cpng_jax.training.step import EvalStep, Prepare, make_eval_step, make_train_step


class Setup(NamedTuple):
    """What a configuration describes, built and checked, before any step is made. Steps compile when first called.

    Attributes:
      config: what it was built from.
      dataset: training, test and maybe validation examples.
      mesh: devices that share a batch.
      model: the network.
      example: one black image, or a recording without events, as the network takes it.
      prepare: brings images into the form that the network takes.
      optimizer: from optax.
      learning_rate: step to learning rate.
      settings: what rules that set beta are made from.
      controller: what sets beta.
      observe: collections of statistics that are measured: for chi, and for what sets beta.
      state_shapes: shape, dtype and sharding of each array of the state, which says where it will live.
      initial_state: makes the state at step 0, with weights of its own or, by name, given ones (`training.weights`).
      start: lets what sets the surrogate gradients look at a batch before the first step.
      train_step: maps a state, whose memory is reused, and a batch to the next state.
      eval_step: maps a state and a batch to sums over its examples.
      end_of_epoch: sets beta between epochs, and says what became of it.
      train_batches: opens the training batches, from `first_step` on.
      steps_per_epoch: training steps in an epoch.
      steps: of the whole training.
    """

    config: Config
    dataset: data.Dataset
    mesh: jax.sharding.Mesh
    model: nn.Module
    example: Array
    prepare: Prepare
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    settings: Settings
    controller: Controller
    observe: tuple[str, ...]
    state_shapes: TrainState
    initial_state: Callable[..., TrainState]
    start: set_beta.Start
    train_step: jax.stages.Wrapped
    eval_step: EvalStep
    end_of_epoch: set_beta.EndOfEpoch
    train_batches: Callable[..., TrainBatches]
    steps_per_epoch: int
    steps: int

    @property
    def rated_by(self) -> str:
        """The split that is measured each epoch, and that the best epoch is chosen on: validation, or else test."""
        return 'test' if self.dataset.validation is None else 'validation'

    def epoch(self, step: int) -> int:
        """The epoch, counted from 1, that contains or ends with a step."""
        return -(-step // self.steps_per_epoch)


Build = Callable[[Config], Setup]
"""Maps a valid configuration to what it describes."""


def build(config: Config) -> Setup:
    """Builds all that a configuration describes; shapes are checked without computing.

    Args:
      config: a valid configuration.

    Returns:
      The setup.

    Raises:
      UserError: the parts do not fit together.
    """
    compiled.keep(config.compilation_cache)
    dataset = data.load(config.data)
    classes = len(dataset.class_names)
    mesh = sharding.make_mesh(config.batch_size, config.optim.accumulate)
    if config.neuron.implementation == 'pallas' and mesh.size > 1:
        raise UserError(
            f'config.neuron.implementation is pallas, whose kernels {mesh.size} devices cannot share: '
            'take scan, or one device.'
        )
    model = registry.build(config, classes)
    per_epoch = steps_per_epoch(dataset, config.batch_size)
    steps = per_epoch * config.epochs
    if steps >= 2**31:
        raise UserError(f'config.epochs is {config.epochs}, which are {steps:,} steps: expected fewer than 2**31.')
    example = network_input(np.zeros((1, *dataset.image_shape), np.uint8), dataset.mean, dataset.std)
    prepare = functools.partial(network_input, mean=dataset.mean, std=dataset.std, dtype=config.dtype)

    # Traced once, for the shapes and for the weights. Not `model.init` itself: others look on as that runs.
    @functools.partial(jax.jit, inline=True)
    @compiled.traced
    def init(key: Array, example: Array) -> Mapping[str, Any]:
        return drawn_at_once(model.init, key, example)

    shapes = _shapes(config, dataset, init, example)
    time_steps = example.shape[0] if example.ndim == 5 else config.model.time_steps
    settings = _settings(config, layer_paths(shapes.get('surrogate', {})), per_epoch, time_steps)
    controller = _controller(config, settings)
    gain = ('currents', 'firing_rate') if settings.fixed_threshold else ()
    observe = set_beta.collections(controller, settings.statistics, *gain)
    learning_rate = optim.learning_rate(config.optim, steps, per_epoch)
    optimizer = optim.make_optimizer(config.optim, steps, per_epoch)
    loss = objective.make_loss(config.loss, classes)
    accumulate = config.optim.accumulate

    started = functools.partial(begin, optimizer=optimizer, controller=controller, observe=observe)
    state_shapes = _placed(jax.eval_shape(started, shapes), mesh, fsdp=config.mesh.fsdp)
    home = jax.tree.map(lambda leaf: leaf.sharding, state_shapes)

    # A program of its own, which rounds alike whatever becomes of the weights; the key from outside, so that this one
    # program, kept on disk, is that of every seed.
    draw = jax.jit(init, out_shardings={name: home.variables[name] for name in shapes})

    @functools.partial(jax.jit, out_shardings=home, donate_argnums=0)
    def fresh(variables: Mapping[str, Any], given: Mapping[str, Array]) -> TrainState:
        return started(weights.replaced(variables, given))

    def initial_state(given: Mapping[str, np.ndarray] | None = None, *, seed: int) -> TrainState:
        state = fresh(draw(jax.random.key(seed), example), given or {})
        # They run once, and what JAX keeps of them is as much as a layer of weights.
        for program in (draw, fresh):
            program.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]
        return state

    each_batch = functools.partial(set_beta.after_step, controller) if config.cpng.every == 'batch' else None
    return Setup(
        config=config,
        dataset=dataset,
        mesh=mesh,
        model=model,
        example=example,
        prepare=prepare,
        optimizer=optimizer,
        learning_rate=learning_rate,
        settings=settings,
        controller=controller,
        observe=observe,
        state_shapes=state_shapes,
        initial_state=functools.partial(initial_state, seed=config.seed),
        start=set_beta.make_start(controller, model, mesh, prepare, accumulate),
        train_step=make_train_step(
            model,
            optimizer,
            mesh,
            prepare,
            state_sharding=home,
            loss=loss,
            mix=objective.make_mix(config.data, config.seed, classes),
            noise=objective.make_noise(model, config.seed),
            accumulate=accumulate,
            observe=observe,
            pool_statistics=config.cpng.statistics == 'epoch_mean',
            update_beta=each_batch,
        ),
        eval_step=make_eval_step(model, mesh, prepare),
        end_of_epoch=set_beta.make_end_of_epoch(
            controller,
            settings,
            model,
            example,
            mesh,
            steps_per_epoch=per_epoch,
            prepare=prepare,
            loss=loss,
            accumulate=accumulate,
        ),
        train_batches=functools.partial(
            TrainBatches,
            dataset.train,
            dataset.augment,
            batch_size=config.batch_size,
            seed=config.seed,
            threads=config.data.threads,
            workers=config.data.workers,
            shard=jax.process_index(),
            shards=jax.process_count(),
        ),
        steps_per_epoch=per_epoch,
        steps=steps,
    )


def build_for_seeds(most: int = 16) -> Build:
    """Makes what builds as `build` does, and lets configurations that differ in their seed alone share what compiles.

    Short runs of many seeds otherwise trace, and load, the same programs once each.

    Args:
      most: setups that are kept: those used last.

    Returns:
      Maps a valid configuration to its setup.
    """
    kept: dict[str, Setup] = {}

    def build_or_reuse(config: Config) -> Setup:
        # By random numbers from the seed, see `make_mix` and `make_noise`.
        drawn = any(config.data[key] for key in ('mixup_alpha', 'cutmix_alpha'))
        drawn = drawn or any(config.model.get(key) for key in ('dropout', 'head_dropout'))
        name = json.dumps({**flatten(config), 'seed': config.seed if drawn else None})
        built = kept.pop(name, None) or build(config)
        kept[name] = built
        if len(kept) > most:
            del kept[next(iter(kept))]
        return built._replace(
            config=config,
            initial_state=functools.partial(built.initial_state, seed=config.seed),
            train_batches=functools.partial(built.train_batches, seed=config.seed),
        )

    return build_or_reuse


def _shapes(config: Config, dataset: data.Dataset, init: Callable[..., Any], example: Array) -> Mapping[str, Any]:
    """Shapes of the variables of the network, once it is known to fit the images."""
    try:
        return jax.eval_shape(init, jax.eval_shape(jax.random.key, 0), example)
    except (ValueError, TypeError) as error:
        shape = ' x '.join(map(str, dataset.image_shape))
        raise UserError(f'config.model does not fit {config.data.name} images of {shape}: {error}') from error


def _settings(config: Config, layers: Sequence[str], per_epoch: int, time_steps: int) -> Settings:
    """What the configuration says to every rule that sets beta."""
    return Settings(
        surrogate=config.neuron.surrogate,
        v_th=config.neuron.v_th,
        tau=config.neuron.tau,
        time_steps=time_steps,
        detach_reset=config.neuron.detach_reset,
        beta_init=config.cpng.beta_init,
        interval=config.cpng.interval,
        counted=config.cpng.chi == 'counted',
        every=config.cpng.every,
        updates_per_epoch=per_epoch if config.cpng.every == 'batch' else 1,
        decay_learnt=config.neuron.learn_tau,
        fixed_threshold=KINDS[config.neuron.kind].fixed_threshold,
        options=dict(config.cpng.items()),
        beta_of_run=functools.partial(beta_of_run, layers=layers),
    )


def _controller(config: Config, settings: Settings) -> Controller:
    """What sets beta; the rule is checked even where it is off."""
    try:
        controller = rules.make(config.cpng.rule, settings)
        sets = config.cpng.enabled and KINDS[config.neuron.kind].spikes
        return controller if sets else rules.make('fixed', settings)
    except ValueError as error:
        raise UserError(str(error)) from error


def beta_of_run(folder: str, layers: Sequence[str]) -> Mapping[str, float]:
    """Reads the beta that each layer had at the end of a run (A.4).

    Args:
      folder: of the run, `config.cpng.beta_from`.
      layers: of the network that takes it.

    Returns:
      Beta by layer.

    Raises:
      UserError: there is no finished epoch in that folder, or its layers are not those of the network.
    """
    rows = metrics.read_epochs(paths.local(folder, 'config.cpng.beta_from'))
    if not rows:
        raise UserError(
            f'config.cpng.beta_from is {folder!r}, expected the folder of a run that has finished an '
            f'epoch: there is no such row in its {metrics.FILE_NAME}.'
        )
    beta = rows[-1]['beta']
    if sorted(beta) != sorted(layers):
        raise UserError(
            f'config.cpng.beta_from is {folder!r}, a run with the layers {", ".join(beta)}; '
            f'expected those of this network, {", ".join(layers)}.'
        )
    return beta


def _placed(shapes: TrainState, mesh: jax.sharding.Mesh, *, fsdp: bool) -> TrainState:
    """The shapes of a state with where each array lives: with fsdp the devices share weights and optimiser."""
    at = lambda place: lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf))
    whole = jax.tree.map(at(lambda _: sharding.replicated(mesh)), shapes)
    if not fsdp:
        return whole
    shared = at(lambda leaf: sharding.along_longest_axis(leaf.shape, mesh))
    shared_out = {name: jax.tree.map(shared, getattr(shapes, name)) for name in ('params', 'opt_state')}
    return whole.replace(**shared_out)
