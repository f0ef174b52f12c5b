"""The cases of `benchmarks.race` with this project.

A training step is the one that `train.py` compiles, from uint8 images to the next state, with the statistics of all
membrane potentials; a layer of neurons is `lif()` alone, forward and backward, without them, as the peers have none.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from benchmarks import cases
from benchmarks.cases import NETWORKS, Arrays, Case
from benchmarks.worker import Work
from cpng_jax import lif
from cpng_jax.models.inputs import network_input
from cpng_jax.nn.losses import mean_output_cross_entropy
from cpng_jax.runtime import sharding
from cpng_jax.runtime.config import Config
from cpng_jax.training import setup
from cpng_jax.training.setup import Setup

VERSIONS = {'jax': jax.__version__}
DIFFERS = ''


@functools.partial(jax.jit, static_argnames='implementation')
def lif_forward_backward(
    currents: jax.Array, cotangent: jax.Array, implementation: str = ''
) -> tuple[jax.Array, jax.Array]:
    """Spikes of a layer with triangular surrogate, beta = 1, and the gradient of the currents.

    Args:
      currents: `[T, ...]`.
      cotangent: of the spikes.
      implementation: see `lif`; '' for the scan, its default.

    Returns:
      `(spikes, gradient)`, both like `currents`.
    """
    spikes, pull = jax.vjp(lambda c: lif(c, 1.0, implementation=implementation or 'scan')[0], currents)
    return spikes, pull(cotangent)[0]


def config_of(case: Case) -> Config:
    """The configuration of a network's experiment at the size of a case, on random images."""
    network = NETWORKS[case.name]
    config: Config = importlib.import_module(f'configs.{network.config}').get_config()
    config.data.fake = True
    config.data.fake_examples = 4 * case.batch
    config.data.image_size = case.image_size
    config.batch_size = case.batch
    config.model.width = case.width
    config.model.time_steps = case.time_steps
    config.neuron.surrogate = network.surrogate
    config.dtype = case.dtype
    if case.implementation:
        config.neuron.implementation = case.implementation
    return config


def build(case: Case) -> Work:
    """Builds a case.

    Args:
      case: of any name.

    Returns:
      The `Work`.
    """
    device = jax.devices()[0]

    def peak_bytes() -> int | None:
        return (device.memory_stats() or {}).get('peak_bytes_in_use')

    make = {'lif': _lif_step, 'copy': _copy_step}.get(case.name, _network_step)
    return Work(make(case), device.device_kind, peak_bytes)


def _copy_step(case: Case) -> Callable[[], None]:
    add, array = jax.jit(lambda x: x + 1), jnp.zeros(case.neurons, case.dtype)

    def step() -> None:
        jax.block_until_ready(add(array))

    return step


def _lif_step(case: Case) -> Callable[[], None]:
    inputs = {name: jnp.asarray(array, case.dtype) for name, array in cases.lif_inputs(case).items()}

    def step() -> None:
        jax.block_until_ready(lif_forward_backward(**inputs, implementation=case.implementation))

    return step


def _network_step(case: Case) -> Callable[[], None]:
    return training_step(setup.build(config_of(case)), cases.network_inputs(case))


def training_step(work: Setup, inputs: Arrays) -> Callable[[], None]:
    """Compiles the training step of an experiment.

    Args:
      work: the experiment.
      inputs: `images` and `labels` of a batch.

    Returns:
      Trains for a step, on the same batch each time, and returns when the next state is there.
    """
    state, train = work.initial_state(), work.train_step
    batch = sharding.put_batch({'image': inputs['images'], 'label': inputs['labels']}, work.mesh)
    return stepping(train, state, batch)


def stepping(train: Callable[..., Any], state: Any, *batch: Any) -> Callable[[], None]:
    """Makes a function that goes a step on from where the last call has left the state, and waits for it.

    Args:
      train: maps a state and the batch to the next state.
      state: to begin with.
      *batch: the same for each step.

    Returns:
      The function.
    """

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(train(state, *batch))

    return step


def weights(case: Case) -> Arrays:
    """Draws inputs and weights for `check`.

    Args:
      case: of a network. The scales of norms and all biases are drawn, so that an error in them shows, and dense
        kernels are enlarged, so that a narrow network spikes up to its last layer.

    Returns:
      `images`, `labels`, and each parameter as `params/PATH`, in flax's layout.
    """
    work = setup.build(config_of(case))
    params = work.initial_state().params
    rng = np.random.default_rng(1)
    given = cases.network_inputs(case)
    for path, leaf in traverse_util.flatten_dict(params, sep='/').items():
        array = np.array(leaf)
        if array.ndim == 1:
            array += rng.normal(0.5, 0.1, array.shape)
        elif array.ndim == 2:
            array *= 4
        given[f'params/{path}'] = array
    return given


def check(case: Case, given: Arrays) -> Arrays:
    """Computes what the peers' results are compared with.

    Args:
      case: of any name.
      given: `currents` and `cotangent`, or what `weights` draws.

    Returns:
      `spikes`, `gradient` and `first_spikes`; or `logits` and the gradient of each parameter as `gradient/PATH`.
    """
    with jax.default_matmul_precision('highest'):
        if case.name == 'lif':
            spikes, gradient = map(np.asarray, lif_forward_backward(**given, implementation=case.implementation))
            return {'spikes': spikes, 'gradient': gradient, 'first_spikes': cases.first_spikes(spikes)}
        return _check_network(case, given)


def _check_network(case: Case, given: Arrays) -> Arrays:
    work = setup.build(config_of(case))
    state = work.initial_state()
    images = network_input(jnp.asarray(given['images']), work.dataset.mean, work.dataset.std)
    flat = {path.removeprefix('params/'): array for path, array in given.items() if path.startswith('params/')}

    @jax.jit
    def gradients(params: Any) -> Any:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            variables = {'params': params, 'batch_stats': state.batch_stats, 'surrogate': state.surrogate}
            logits: Any = work.model.apply(variables, images, train=True, mutable=['batch_stats'])[0]
            return jnp.mean(mean_output_cross_entropy(logits, jnp.asarray(given['labels']))), logits

        return jax.grad(loss, has_aux=True)(params)

    gradient, logits = gradients(traverse_util.unflatten_dict(flat, sep='/'))
    results = {f'gradient/{path}': leaf for path, leaf in traverse_util.flatten_dict(gradient, sep='/').items()}
    return {name: np.asarray(array) for name, array in {'logits': logits, **results}.items()}
