"""CPNG in a training loop of Flax NNX, through its bridge to linen. `python -m examples.nnx_training`."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cpng_jax import LIF, cpng, mean_output_cross_entropy
from examples import digits

TIME_STEPS, HIDDEN = 4, 64

# The types that the bridge gives to variables of linen's collections, by which NNX tells them apart.
Beta, Membrane = (nnx.variable_type_from_name(name, allow_register=True) for name in ('surrogate', 'membrane'))


class Network(nnx.Module):
    """Two dense layers with neurons between."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(digits.PIXELS, HIDDEN, rngs=rngs)
        self.neurons = nnx.bridge.ToNNX(LIF(), rngs=rngs).lazy_init(jnp.zeros((1, 1, HIDDEN)))
        self.output = nnx.Linear(HIDDEN, digits.CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images `[B, PIXELS]` to outputs `[T, B, CLASSES]`; the neurons keep what they measure as variables."""
        spikes = self.neurons(self.hidden(images)[None], time_steps=TIME_STEPS, mutable=['membrane'])
        return self.output(spikes)


@nnx.jit
def step(network: Network, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> None:
    """Trains on a batch."""
    loss_of = lambda network: jnp.mean(mean_output_cross_entropy(network(images), labels))
    optimizer.update(network, nnx.grad(loss_of)(network))


def train(epochs: int = 20, seed: int = 0) -> tuple[float, dict]:
    """Trains, prints a line an epoch, and returns the test accuracy and the final beta."""
    (images, labels), test = digits.load()
    network = Network(nnx.Rngs(seed))
    network(images[:1])  # makes the variables of the measurements, so that no step adds any
    optimizer = nnx.Optimizer(network, optax.adam(3e-3), wrt=nnx.Param)
    beta = nnx.to_pure_dict(nnx.state(network, Beta))
    cpng_state, accuracy = cpng.init(beta), 0.0
    for epoch in range(epochs):
        for batch in digits.batches(images, labels, seed=epoch):
            step(network, optimizer, *batch)
        beta, cpng_state, report = cpng.update(nnx.to_pure_dict(nnx.state(network, Membrane)), beta, cpng_state)
        state = nnx.state(network, Beta)
        nnx.replace_by_pure_dict(state, beta)
        nnx.update(network, state)
        accuracy = digits.accuracy(network(test[0]), test[1])
        chi, width = report.chi['neurons']['beta'], beta['neurons']['beta']
        print(f'epoch {epoch + 1}: accuracy {accuracy:.1%}, chi {chi:.3f}, beta {width:.3f}')
    return accuracy, beta


if __name__ == '__main__':
    train()
