"""The paper's experiments over several seeds: `python -m cpng_jax.experiments NAME`."""
