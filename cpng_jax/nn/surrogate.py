"""Surrogate gradients of the spike (Eq. 3 and 4) and the spike itself."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float, Real

from cpng_jax.nn.varying import varying_alike

Array = jax.Array
ArrayLike = jax.typing.ArrayLike


@dataclasses.dataclass(frozen=True)
class Surrogate:
    """The shape that replaces the derivative of the step function in the backward pass.

    An instance is static under `jit`: define one at module level and reuse it, since two
    instances with different functions are different shapes and compile separately.

    Attributes:
      name: what messages call it.
      gradient: `f(x, beta)`, the surrogate derivative at distance `x = u - v_th` from the
        threshold; both arguments are arrays of one dtype and broadcast. It should integrate to
        1 over x for every beta, as the delta function does; `spike` and `lif` take a factor besides.
      support: half the width, in units of 1/beta, of the interval outside of which `gradient`
        is 0; `math.inf` where it never is.
      half_width: half the width, in units of 1/beta, of the effective domain that chi counts.
        The paper takes 1 for every shape (Sec. 5.2).
      reach: distance from the threshold, in units of the potential, beyond which `gradient` is 0 whatever beta is;
        `math.inf` where there is none. The effective domain ends there at the latest.
    """

    name: str
    gradient: Callable[[Array, Array], Array]
    support: float
    half_width: float = 1.0
    reach: float = math.inf

    def __post_init__(self) -> None:
        if not callable(self.gradient):
            raise TypeError(f'Surrogate {self.name!r}: gradient must be a function f(x, beta), got {self.gradient!r}.')
        for field in ('support', 'half_width', 'reach'):
            value = getattr(self, field)
            if not value > 0:
                raise ValueError(f'Surrogate {self.name!r}: {field} must be greater than 0, got {value!r}.')
        if math.isinf(self.half_width):
            raise ValueError(f'Surrogate {self.name!r}: half_width must be finite, or chi would always be 1.')

    @property
    def extent(self) -> float:
        """`support` where that is finite, `half_width` where the gradient is non-zero everywhere."""
        return self.half_width if math.isinf(self.support) else self.support


def _triangular(x: Array, beta: Array) -> Array:
    return beta * jnp.maximum(1 - beta * jnp.abs(x), 0)


def _rectangular(x: Array, beta: Array) -> Array:
    return jnp.where(jnp.abs(x) < 0.5 / beta, beta, 0)


def _arctan(x: Array, beta: Array) -> Array:
    return beta / (1 + jnp.square(math.pi * beta * x))


def _dspike(x: Array, beta: Array) -> Array:
    # sech^2 by an exponential that can only vanish: 1 - tanh^2 has few digits far from the threshold.
    fall = jnp.exp(-2 * beta * jnp.abs(x))
    inside = jnp.abs(x) <= _DSPIKE_REACH
    return jnp.where(inside, 2 * beta * fall / (jnp.tanh(_DSPIKE_REACH * beta) * jnp.square(1 + fall)), 0)


# Of the potential: the sides of a unit interval around the threshold, as Li et al. have it.
_DSPIKE_REACH = 0.5

TRIANGULAR = Surrogate('triangular', _triangular, support=1.0)
RECTANGULAR = Surrogate('rectangular', _rectangular, support=0.5)
ARCTAN = Surrogate('arctan', _arctan, support=math.inf)

# Li et al., "Differentiable Spike", NeurIPS 2021: the derivative of a scaled tanh, whose temperature is beta here. From
# a rectangle of width 1 at beta = 0 it narrows within that interval; from beta = 6 on its peak is beta / 2, so that
# one over it, which is the half-width of the domain of the paper's shapes, is 2 / beta.
DSPIKE = Surrogate('dspike', _dspike, support=math.inf, half_width=2.0, reach=_DSPIKE_REACH)

SURROGATES = {surrogate.name: surrogate for surrogate in (TRIANGULAR, RECTANGULAR, ARCTAN, DSPIKE)}


def get_surrogate(surrogate: str | Surrogate) -> Surrogate:
    """Looks a surrogate gradient up by name.

    Args:
      surrogate: 'triangular', 'rectangular', 'arctan', 'dspike', or a `Surrogate`, which is returned as is.

    Returns:
      The `Surrogate`.

    Raises:
      ValueError: no surrogate has that name.
      TypeError: neither a name nor a `Surrogate` was given.
    """
    if isinstance(surrogate, Surrogate):
        return surrogate
    if not isinstance(surrogate, str):
        raise TypeError(f'surrogate must be a name or a cpng_jax.Surrogate, got {surrogate!r}.')
    if surrogate not in SURROGATES:
        raise ValueError(
            f'surrogate must be one of {", ".join(SURROGATES)} or a cpng_jax.Surrogate, got {surrogate!r}.'
        )
    return SURROGATES[surrogate]


def beta_of_width(width: ArrayLike, surrogate: str | Surrogate) -> Array:
    """The width parameter at which a surrogate gradient is non-zero in an interval of a given width.

    That of arctan is non-zero everywhere: it gets the beta of the triangular one. That of Dspike is non-zero in one
    interval whatever beta is, and has none.

    Args:
      width: of the interval around the threshold, greater than 0, any shape.
      surrogate: 'triangular', 'rectangular', 'arctan', 'dspike' or a `Surrogate`.

    Returns:
      beta, at least float32, of the same shape.

    Raises:
      ValueError: unknown surrogate, or one whose gradient is non-zero in an interval that does not depend on beta.
    """
    shape = get_surrogate(surrogate)
    if not math.isinf(shape.reach):
        raise ValueError(
            f'surrogate is {shape.name}, which is non-zero within {shape.reach:g} of the threshold whatever beta is: '
            'no beta makes that another width.'
        )
    width = jnp.asarray(width)
    return 2 * shape.extent / width.astype(at_least_float32(width.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _spike(x: Array, beta: Array, scale: Array, surrogate: Surrogate) -> Array:
    del beta, scale, surrogate
    return (x >= 0).astype(x.dtype)


_Residuals = tuple[Array, Array, Array]


def _spike_forward(x: Array, beta: Array, scale: Array, surrogate: Surrogate) -> tuple[Array, _Residuals]:
    return _spike(x, beta, scale, surrogate), (x, beta, scale)


def _spike_backward(surrogate: Surrogate, residuals: _Residuals, cotangent: Array) -> _Residuals:
    x, beta, scale = residuals
    # At least float32: squares of potentials overflow float16, and 8 bits of bfloat16 blur the edge of the domain.
    compute = at_least_float32(x.dtype)
    # asarray: under jit JAX may hand a constant back as a Python number.
    derivative = surrogate.gradient(jnp.asarray(x, compute), jnp.asarray(beta, compute)) * jnp.asarray(scale, compute)
    return (cotangent.astype(compute) * derivative).astype(x.dtype), jnp.zeros_like(beta), jnp.zeros_like(scale)


_spike.defvjp(_spike_forward, _spike_backward)


def spike(
    u: Float[ArrayLike, '*neurons'],
    beta: Real[ArrayLike, '*#neurons'],
    v_th: Real[ArrayLike, '*#neurons'] = 1.0,
    surrogate: str | Surrogate = 'triangular',
    scale: Real[ArrayLike, '*#neurons'] = 1.0,
) -> Float[Array, '*neurons']:
    """Emits a spike where the membrane potential reaches the threshold; backward, the surrogate gradient.

    Forward `H(u - v_th)` with `H(0) = 1` (Eq. 2), backward `scale * f(u - v_th)` (Eq. 3 and 4), computed in
    at least float32 and returned in the dtype of `u`. `beta` and `scale` are ordinary array arguments:
    changing them never recompiles, and their cotangents are zero. `v_th` gets the gradient of `u - v_th`.
    It can be differentiated backwards alone, see `lif`: forwards JAX raises a TypeError.

    Args:
      u: membrane potential, floating, any shape.
      beta: width parameter, greater than 0; scalar or of a shape that broadcasts to that of `u`.
      v_th: threshold; scalar or of a shape that broadcasts to that of `u`.
      surrogate: 'triangular', 'rectangular', 'arctan', 'dspike' or a `Surrogate`.
      scale: factor of the surrogate gradient: its height apart from its width; scalar or of a shape that broadcasts to
        that of `u`. 1 is the paper's.

    Returns:
      Spikes, 0 or 1, with the shape and dtype of `u`.

    Raises:
      TypeError: `u` is not floating.
      ValueError: unknown surrogate, or `beta`, `scale` or `v_th` does not broadcast to the shape of `u`.
    """
    u = jnp.asarray(u)
    if not jnp.issubdtype(u.dtype, jnp.floating):
        raise TypeError(f'u must be floating, got dtype {u.dtype}.')
    surrogate = get_surrogate(surrogate)
    beta = broadcastable('beta', beta, u)
    scale = broadcastable('scale', scale, u)
    v_th = broadcastable('v_th', v_th, u)
    return _spike(*varying_alike((u - v_th.astype(u.dtype), beta, scale)), surrogate)


def broadcastable(name: str, value: ArrayLike, u: Array) -> Array:
    """Makes a value a floating array, checked to broadcast to the shape of membrane potentials.

    Args:
      name: what messages call the value.
      value: the value.
      u: the potentials.

    Returns:
      The array.

    Raises:
      ValueError: the shapes do not fit.
    """
    array = jnp.asarray(value)
    try:
        fits = jnp.broadcast_shapes(array.shape, u.shape) == u.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f'{name} has shape {array.shape}, which does not broadcast to that of u, {u.shape}.')
    return of_rank(array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.float32), u.ndim)


def at_least_float32(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Names the dtype to compute in: float64 for float64, float32 for what is less; also where JAX promotes nothing."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def of_rank(array: Array, rank: int) -> Array:
    """Writes out the axes of size 1 that broadcasting adds in front, as JAX can be told to ask; a scalar stays one."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape) if array.ndim else array
