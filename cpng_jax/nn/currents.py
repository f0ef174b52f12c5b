"""What neurons are given, checked: pre-synaptic currents, the number of time steps, the decay, a state."""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Float

from cpng_jax.nn.packing import Unpacked
from cpng_jax.nn.statistics import MembraneStats, membrane_stats, pooled
from cpng_jax.nn.surrogate import Array, ArrayLike
from cpng_jax.nn.terms import Affine, Normalised, Terms, Whole, sum_of

# Pre-synaptic input of a layer: one term, or several of one shape that are added.
Term = Float[ArrayLike, '_T *neurons'] | Normalised | Whole
Currents = Term | Sequence[Term]


def as_terms(currents: Currents) -> Terms:
    """Makes pre-synaptic currents a tuple of terms, checked.

    Args:
      currents: floating, `[T, ...]`; or `Normalised`, or `Whole`; or a sequence of such terms of one shape.

    Returns:
      The terms, a plain array as one with nothing to apply, all without what else a norm says.

    Raises:
      TypeError: a term is not floating.
      ValueError: a term has no time step, or the shapes differ.
    """
    terms = tuple(map(_term, _listed(currents)))
    shapes = {term.shape for term in terms}
    if len(shapes) != 1:
        raise ValueError(f'currents must be terms of one shape, got {sorted(shapes)}.')
    return terms


def as_kept(currents: Currents, terms: Terms) -> tuple[Unpacked, ...]:
    """What makes numbers of what is kept of terms, for `Neurons.kept`.

    Args:
      currents: as for `as_terms`, before that.
      terms: all that are added, after that.

    Returns:
      One for each term; () where all are kept as they are.
    """
    units = [term.unit if isinstance(term, Whole) else None for term in _listed(currents)]
    units += [None] * (len(terms) - len(units))
    return tuple(map(Unpacked, units, (term.values.dtype for term in terms))) if any(units) else ()


def _listed(currents: Currents) -> Sequence[Term]:
    # `Normalised` is itself a tuple.
    one = isinstance(currents, Normalised) or not isinstance(currents, tuple | list)
    return cast(Any, [currents] if one else currents)


def deviation(currents: Currents) -> Array | None:
    """The standard deviation that the norms before neurons give their currents in training, one for the layer.

    That of a term is the mean over its channels; of several normalised terms, which count as independent, it is the
    root of the sum of their squares. Terms without a norm are left out.

    Args:
      currents: as for `as_terms`, before that.

    Returns:
      A scalar, without gradient; None where no term says.
    """
    known = [term.deviation for term in _listed(currents) if isinstance(term, Normalised)]
    squares = [jnp.square(jnp.mean(jax.lax.stop_gradient(each))) for each in known if each is not None]
    return jnp.sqrt(sum(squares[1:], squares[0])) if squares else None


def stats_by_norm(currents: Currents, terms: Terms, per_channel: bool = False) -> MembraneStats | None:
    """Mean and variance of the currents of a layer, where the norm before it leaves nothing to measure.

    Args:
      currents: as for `as_terms`, before that.
      terms: all that are added, after that.
      per_channel: of each channel by itself.

    Returns:
      Scalars, or `[C]` per channel, without gradient; None where there is more than one term, or one without a norm or
      with a norm that goes by other values.
    """
    term = _listed(currents)[0]
    if len(terms) > 1 or not isinstance(term, Normalised) or term.affine is None or term.variance is None:
        return None
    of_channels = MembraneStats(term.affine.bias, jnp.square(term.affine.gain) * term.variance)
    return jax.lax.stop_gradient(of_channels) if per_channel else pooled(of_channels)


def currents_stats(currents: Currents, terms: Terms, per_channel: bool = False) -> MembraneStats:
    """Mean and variance of the currents of a layer.

    Args:
      currents: as for `as_terms`, before that.
      terms: all that are added, after that.
      per_channel: of each channel by itself.

    Returns:
      Scalars, or `[C]` per channel, without gradient.
    """
    return stats_by_norm(currents, terms, per_channel) or membrane_stats(sum_of(terms), per_channel)


def _term(term: Term) -> Normalised:
    """A term, checked, with its map in a form that lets devices which share the examples sum its gradient alone."""
    term = term.values if isinstance(term, Whole) else term
    values, affine, *_ = term if isinstance(term, Normalised) else (term, None)
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f'currents must be floating, got dtype {values.dtype}.')
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f'currents must be [T, ...] with at least one time step, got shape {values.shape}.')
    if affine is not None:
        affine = Affine(*jnp.broadcast_arrays(*affine))
        if values.ndim > 2 and jax.device_count() > 1:
            # One row for each example. Their sum over the examples, and so over devices, then comes after the loop: a
            # sum inside it would have the devices wait for each other at every step.
            row = affine.gain.shape[2 - values.ndim :]  # all of it, or what follows a first axis of examples
            ones = (1,) * (values.ndim - 2 - len(row))
            affine = Affine(*(jnp.broadcast_to(x, (values.shape[1], *ones, *row)) for x in affine))
    return Normalised(values, affine)


def number_of_steps(terms: Terms, time_steps: int | None) -> int:
    """Returns T: `time_steps`, or that of the currents where it is None.

    Args:
      terms: of the currents.
      time_steps: T, or None.

    Returns:
      T.

    Raises:
      ValueError: the currents have neither 1 nor `time_steps`.
    """
    given = len(terms[0].values)
    time_steps = given if time_steps is None else time_steps
    if given not in (1, time_steps):
        raise ValueError(f'currents must have 1 or {time_steps} time steps, got {given}.')
    return time_steps


def as_state(state: ArrayLike | None, terms: Terms) -> Array | None:
    """Makes a state an array in the dtype of the membrane potential, checked.

    Args:
      state: what the reset has left of the potentials, `[...]`; or None.
      terms: of the currents, `[T, ...]`.

    Returns:
      The state, in at least float32; or None.

    Raises:
      TypeError: the state is not floating.
      ValueError: it has another shape than a time step of the currents.
    """
    if state is None:
        return None
    state, expected = jnp.asarray(state), terms[0].shape[1:]
    if not jnp.issubdtype(state.dtype, jnp.floating):
        raise TypeError(f'initial_state must be floating, got dtype {state.dtype}.')
    if state.shape != expected:
        raise ValueError(f'initial_state must have the shape of a time step, {expected}, got {state.shape}.')
    return state.astype(jax.eval_shape(sum_of, terms).dtype)


def check_decay(tau: ArrayLike) -> None:
    """Raises ValueError where a decay that is a number, not an array, lies outside 0 to 1."""
    if isinstance(tau, int | float) and not 0 <= tau <= 1:
        raise ValueError(f'tau must lie in 0 to 1, got {tau}.')
