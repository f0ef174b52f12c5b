"""From a configuration to a trained network: setup, state, step, loop, evaluation."""
