"""No rule: beta stays what it is, the plain surrogate gradient that the paper compares with."""

from cpng_jax.control.controller import Rule, stateless

RULE = Rule('beta stays at `cpng.beta_init`', make=lambda _: stateless(lambda _, beta: beta), heeds=())
