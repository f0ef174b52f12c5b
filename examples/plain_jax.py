"""CPNG in a training loop of plain JAX and optax, with parameters in a dictionary. `python -m examples.plain_jax`."""

import jax
import jax.numpy as jnp
import optax

from cpng_jax import cpng, lif, mean_output_cross_entropy
from examples import digits

TIME_STEPS, HIDDEN = 4, 64


def init(key: jax.Array) -> dict[str, jax.Array]:
    """Draws the weights of two layers."""
    draw = jax.nn.initializers.he_normal()
    first, second = jax.random.split(key)
    return {
        'hidden': draw(first, (digits.PIXELS, HIDDEN)),
        'bias': jnp.zeros(HIDDEN),
        'output': draw(second, (HIDDEN, digits.CLASSES)),
    }


def network(params: dict[str, jax.Array], beta: dict[str, jax.Array], images: jax.Array):
    """Maps images `[B, PIXELS]` to outputs `[T, B, CLASSES]` and the statistics of the spiking layer."""
    currents = images @ params['hidden'] + params['bias']
    # A still image gives the same currents at every time step: one is handed over.
    spikes, stats = lif(currents[None], beta['hidden'], time_steps=TIME_STEPS)
    return spikes @ params['output'], {'hidden': stats}


def train(epochs: int = 20, seed: int = 0) -> tuple[float, dict[str, jax.Array]]:
    """Trains, prints a line an epoch, and returns the test accuracy and the final beta."""
    (images, labels), test = digits.load()
    params, beta = init(jax.random.key(seed)), {'hidden': jnp.ones(())}
    optimizer = optax.adam(3e-3)
    opt_state, cpng_state = optimizer.init(params), cpng.init(beta)

    @jax.jit
    def step(params, opt_state, beta, images, labels):
        def loss_of(params):
            logits, stats = network(params, beta, images)
            return jnp.mean(mean_output_cross_entropy(logits, labels)), stats

        gradients, stats = jax.grad(loss_of, has_aux=True)(params)
        changes, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, changes), opt_state, stats

    accuracy = 0.0
    for epoch in range(epochs):
        for batch in digits.batches(images, labels, seed=epoch):
            params, opt_state, stats = step(params, opt_state, beta, *batch)
        # Between epochs: beta is an argument of the step, so that a new one compiles nothing again.
        beta, cpng_state, report = cpng.update(stats, beta, cpng_state)
        accuracy = digits.accuracy(network(params, beta, test[0])[0], test[1])
        print(f'epoch {epoch + 1}: accuracy {accuracy:.1%}, chi {report.chi["hidden"]:.3f}, beta {beta["hidden"]:.3f}')
    return accuracy, beta


if __name__ == '__main__':
    train()
