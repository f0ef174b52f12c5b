"""Spiking networks as flax.linen modules."""
