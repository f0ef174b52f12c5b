"""CPNG in three training loops that are not ours: plain JAX, Flax NNX, Equinox."""
