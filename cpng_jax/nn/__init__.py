"""What networks are made of: neurons over time, surrogate gradients, layers, losses. Needs jax, flax and optax."""
