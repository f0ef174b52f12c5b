"""CPNG on the width and the gain held by the height, so that sharpening does not make gradients explode."""

from cpng_jax.control import cpng, gain
from cpng_jax.control.controller import Rule

RULE = Rule(
    'CPNG sets the width (Algorithm 1), and the height holds the gain',
    make=lambda settings: gain.held_behind(cpng.RULE.make(settings), settings),
    options=(*cpng.RULE.options, gain.TARGET),
    conflict=gain.conflict,
)
