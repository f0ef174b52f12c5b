"""What neurons add up: the terms of their currents, each with its normalisation still to be applied."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from cpng_jax.nn.packing import Unpacked, packed
from cpng_jax.nn.surrogate import Array, at_least_float32, of_rank


class Affine(NamedTuple):
    """A map of each channel, `(values - mean) * gain + bias`, of arrays that are broadcastable to the values of a step.

    In the time loop, `currents.as_terms` has seen to it, all three are of one shape.
    """

    mean: Array
    gain: Array
    bias: Array


class Normalised(NamedTuple):
    """An array whose normalisation is still to be applied, as `TdBN.deferred` gives it.

    Neurons apply it step by step, so that neither they nor the norm keep a normalised copy for the backward pass.

    Attributes:
      values: `[T, B, ...]`, or `[1, B, ...]` where all are the same at every step.
      affine: what to apply; None leaves the values as they are.
      deviation: the standard deviation of each channel that a norm gives the values in training; None where nobody
        says. Neurons whose width follows it ask `currents.deviation`; the loop knows nothing of it.
      variance: of each channel of the values, `[C]`, where a norm has taken that and `affine.mean` from these very
        values; None elsewhere. It saves measuring the currents, see `currents.currents_stats`.
    """

    values: Array
    affine: Affine | None
    deviation: Array | None = None
    variance: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return self.values.shape

    def array(self) -> Array:
        """Applies the normalisation; the result has the dtype of the values."""
        return sum_of((self,)).astype(self.values.dtype)


@functools.partial(jax.tree_util.register_dataclass, data_fields=['values'], meta_fields=['unit'])
@dataclasses.dataclass(frozen=True)
class Whole:
    """Currents that are whole multiples of a unit, such as spikes on a shortcut: a `LIF` keeps a byte for each.

    Attributes:
      values: `[T, B, ...]`.
      unit: what they are multiples of, 0 to 255 times.
    """

    values: Array
    unit: float


# Terms of one sum, all with T time steps or all with one; and their values of one step or of all.
Terms = tuple[Normalised, ...]
Values = tuple[Array, ...]


def sum_of(terms: Terms) -> Array:
    """Applies the normalisations and adds the terms, in at least float32."""
    total: Any = None
    for values, affine, *_ in terms:
        term = values.astype(at_least_float32(values.dtype))
        if affine is not None:
            mean, gain, bias = (of_rank(value, term.ndim) for value in affine)
            term = (term - mean) * gain + bias
        total = term if total is None else total + term
    return total


def with_values(terms: Terms, values: Values) -> Terms:
    """The terms with other values under their normalisations.

    Args:
      terms: the terms.
      values: one for each.

    Returns:
      Terms without what else a norm says of them.
    """
    return tuple(Normalised(array, term.affine) for array, term in zip(values, terms, strict=True))


def packed_terms(terms: Terms, kept: Sequence[Unpacked]) -> Terms:
    """The terms as they are kept for a backward pass.

    Args:
      terms: as they are added.
      kept: what makes numbers again of the values of each; none where all are kept as they are.

    Returns:
      The terms, with bytes as values where these have a unit.
    """
    if not kept:
        return terms
    pack = lambda x, unpack: x if unpack.unit is None else packed(x, unpack.unit)
    return with_values(terms, tuple(map(pack, (term.values for term in terms), kept)))


def unpacked_terms(terms: Terms, kept: Sequence[Unpacked]) -> Terms:
    """The terms again, of what `packed_terms` has made of them.

    Args:
      terms: as they are kept.
      kept: as for `packed_terms`.

    Returns:
      The terms as they are added.
    """
    if not kept:
        return terms
    return with_values(terms, tuple(unpack(term.values) for term, unpack in zip(terms, kept, strict=True)))
