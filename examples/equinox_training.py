"""CPNG in a training loop of Equinox: `pip install equinox`, then `python -m examples.equinox_training`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from cpng_jax import MembraneStats, cpng, lif, mean_output_cross_entropy
from examples import digits

TIME_STEPS, HIDDEN = 4, 64


class Network(eqx.Module):
    """Two dense layers with neurons between, whose beta is a field like any other."""

    hidden: eqx.nn.Linear
    output: eqx.nn.Linear
    beta: jax.Array

    def __init__(self, key: jax.Array) -> None:
        first, second = jax.random.split(key)
        self.hidden = eqx.nn.Linear(digits.PIXELS, HIDDEN, key=first)
        self.output = eqx.nn.Linear(HIDDEN, digits.CLASSES, key=second)
        self.beta = jnp.ones(())

    def __call__(self, images: jax.Array) -> tuple[jax.Array, MembraneStats]:
        """Maps images `[B, PIXELS]` to outputs `[T, B, CLASSES]` and the statistics of the neurons."""
        spikes, stats = lif(jax.vmap(self.hidden)(images)[None], self.beta, time_steps=TIME_STEPS)
        return jax.vmap(jax.vmap(self.output))(spikes), stats


def train(epochs: int = 20, seed: int = 0) -> tuple[float, jax.Array]:
    """Trains, prints a line an epoch, and returns the test accuracy and the final beta."""
    (images, labels), test = digits.load()
    network = Network(jax.random.key(seed))
    optimizer = optax.adam(3e-3)
    opt_state, cpng_state = optimizer.init(eqx.filter(network, eqx.is_inexact_array)), cpng.init(network.beta)

    @eqx.filter_jit
    def step(network, opt_state, images, labels):
        def loss_of(network):
            logits, stats = network(images)
            return jnp.mean(mean_output_cross_entropy(logits, labels)), stats

        # The gradient by beta is zero, as it should be: spikes do not depend on it. So the optimiser leaves it alone;
        # with weight decay, mask it.
        gradients, stats = eqx.filter_grad(loss_of, has_aux=True)(network)
        changes, opt_state = optimizer.update(gradients, opt_state)
        return eqx.apply_updates(network, changes), opt_state, stats

    accuracy = 0.0
    for epoch in range(epochs):
        for batch in digits.batches(images, labels, seed=epoch):
            network, opt_state, stats = step(network, opt_state, *batch)
        beta, cpng_state, report = cpng.update(stats, network.beta, cpng_state)
        network = eqx.tree_at(lambda network: network.beta, network, beta)
        accuracy = digits.accuracy(network(test[0])[0], test[1])
        print(f'epoch {epoch + 1}: accuracy {accuracy:.1%}, chi {report.chi:.3f}, beta {beta:.3f}')
    return accuracy, network.beta


if __name__ == '__main__':
    train()
