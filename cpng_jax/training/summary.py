"""The summary of a run (`--mode=summary`): builds its network and has `models.summary` count the layers."""

import pathlib

import jax.numpy as jnp

from cpng_jax.data.pipeline import eval_batches
from cpng_jax.models.inputs import network_input
from cpng_jax.models.summary import Summary, input_density, summarise
from cpng_jax.runtime.config import Config
from cpng_jax.runtime.workdir import check
from cpng_jax.training import keys
from cpng_jax.training.evaluate import restore
from cpng_jax.training.setup import Setup, build
from cpng_jax.training.state import TrainState

# Test images on which the share of nonzero inputs is measured.
_MEASURED = 16


def summarise_run(config: Config, workdir: pathlib.Path) -> Summary:
    """Summarises the network of a configuration; where it has been trained, with its spiking operations on test images.

    Args:
      config: a valid configuration; without a checkpoint its data set need not be there.
      workdir: folder of a run. If it holds checkpoints, the one that `config.eval.checkpoint` names is measured.

    Returns:
      The `Summary`.

    Raises:
      UserError: the parts of the configuration do not fit, or the workdir belongs to another one.
    """
    trained = (workdir / 'checkpoints').is_dir()
    if trained:
        check(workdir, config, keys.table())
    config = config.copy_and_resolve_references()
    config.remat = 'none'  # matters only for the backward pass, and would hide the layers within a block
    if not trained:
        config.data.fake = True
        config.data.fake_examples = 4 * config.batch_size
    setup = build(config)
    state = restore(setup, workdir) if trained else None
    density = None if state is None else measured_density(setup, state)
    return summarise(setup.model, setup.example, density)


def measured_density(setup: Setup, state: TrainState) -> dict[str, float]:
    """Measures the share of nonzero inputs of each convolution and dense layer on a few test images.

    Args:
      setup: from `build`.
      state: of the trained network.

    Returns:
      Shares by path of the layer, for `summarise`.
    """
    dataset = setup.dataset
    batch = next(eval_batches(dataset.test, min(_MEASURED, len(dataset.test)), prepare=dataset.prepare))
    images = network_input(jnp.asarray(batch['image']), dataset.mean, dataset.std)
    return input_density(setup.model, state.variables, images)
