"""The time loop of LIF neurons as one Pallas kernel forward and one backward, with the membrane statistics on the way.

An alternative to `time_loop.integrate`, and what a run on one GPU uses by default. The potential stays in registers
from step to step, and the statistics are taken while it is there, so that the potentials are written once for the
backward pass (not at all where nothing is differentiated) and read by it alone.

Compiled by Triton on GPUs, where it takes 1.3 times what its memory traffic needs and the scan 1.6 to 5.5 times
(docs/performance.md); elsewhere interpreted by JAX, which is for tests and slow.

XLA cannot split a kernel: under `jit` with a batch shared over devices call it inside `jax.shard_map` (with
`check_vma=False`). Its statistics are then those of one shard: over shards of one size, `mean = pmean(m)` and
`variance = pmean(v + (m - mean)**2)`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from cpng_jax.nn.surrogate import Array, ArrayLike, at_least_float32
from cpng_jax.nn.time_loop import Neurons

# Neurons of one program of the grid, a power of two as Triton asks: 8 for each of the 128 threads of 4 warps.
_BLOCK = 1024


def integrate(
    currents: ArrayLike,
    beta: ArrayLike,
    tau: float,
    v_th: float,
    neurons: Neurons,
    *,
    scale: ArrayLike = 1.0,
    interpret: bool | None = None,
) -> tuple[Array, Array, Array]:
    """Runs the neurons over time (Eq. 2) and measures their potentials; backward Eq. 7 and 8.

    Args:
      currents: floating, `[T, ...]`, or `[1, ...]` for the same at every step.
      beta: width of the surrogate gradient, a scalar. It may be traced: changing it never recompiles. Its cotangent
        is zero.
      tau: decay, 0 to 1, a Python number: it is part of the kernel and gets no gradient.
      v_th: threshold, a Python number for the same reason.
      neurons: the rest of the description. The function of its surrogate runs inside the kernel: it may use
        `jax.numpy` and Python numbers, but no arrays from outside.
      scale: factor of the surrogate gradient, a scalar, which may be traced like beta.
      interpret: let JAX interpret the kernels; by default wherever there is no GPU.

    Returns:
      `(spikes, mean, variance)`: spikes `[T, ...]` in the dtype of `currents`, and the mean and the biased variance of
      the membrane potential before the reset over all T and all neurons, in at least float32 like the potential.
      No gradient flows through mean and variance: they are measurements.

    Raises:
      TypeError: `currents` is not floating.
      ValueError: `beta` or `scale` is no scalar, `tau` or `v_th` no number, tau lies outside 0 to 1, or `currents` has
        no element or neither 1 nor T time steps.
    """
    currents, beta, scale = jnp.asarray(currents), jnp.asarray(beta), jnp.asarray(scale)
    if not jnp.issubdtype(currents.dtype, jnp.floating):
        raise TypeError(f'currents must be floating, got dtype {currents.dtype}.')
    if currents.ndim == 0 or currents.size == 0:
        raise ValueError(f'currents must be [T, ...] with at least one element, got shape {currents.shape}.')
    if len(currents) not in (1, neurons.time_steps):
        raise ValueError(f'currents must have 1 or {neurons.time_steps} time steps, got {len(currents)}.')
    for name, value in (('beta', beta), ('scale', scale)):
        if value.ndim:
            raise ValueError(f'{name} must be a scalar, got shape {value.shape}: only the reference lif takes arrays.')
    for name, value in (('tau', tau), ('v_th', v_th)):
        if isinstance(value, jax.Array) or np.ndim(value):
            raise ValueError(f'{name} must be a Python number, got {value!r}: only the reference lif takes arrays.')
    if not 0 <= tau <= 1:
        raise ValueError(f'tau must lie in 0 to 1, got {tau}.')
    if interpret is None:
        interpret = jax.default_backend() != 'gpu'
    shape = tuple(
        value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(jnp.float32) for value in (beta, scale)
    )
    return _integrate(currents, shape, float(tau), float(v_th), neurons, interpret)


_Shape = tuple[Array, ...]
"""Width and height of the surrogate gradient."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _integrate(
    currents: Array, shape: _Shape, tau: float, v_th: float, neurons: Neurons, interpret: bool
) -> tuple[Array, Array, Array]:
    del shape  # Only the backward pass has a use for it.
    return _run_forward(currents, tau, v_th, neurons, interpret, keep=False)[0]


_Residuals = tuple[Array, _Shape, Array]


def _forward(
    currents: Array, shape: _Shape, tau: float, v_th: float, neurons: Neurons, interpret: bool
) -> tuple[tuple[Array, Array, Array], _Residuals]:
    results, (potentials,) = _run_forward(currents, tau, v_th, neurons, interpret, keep=True)
    # Of the currents, their number of time steps alone, as the length of an array without elements: residuals are
    # arrays.
    return results, (potentials, shape, jnp.zeros((len(currents), 0)))


def _backward(
    tau: float,
    v_th: float,
    neurons: Neurons,
    interpret: bool,
    residuals: _Residuals,
    cotangents: tuple[Array, Array, Array],
) -> tuple[Array, _Shape]:
    # asarray: under jit JAX may hand a constant back as a Python number.
    potentials, (beta, scale), given = jax.tree.map(jnp.asarray, residuals)
    upstream, *_ = cotangents  # Those of mean and variance are dropped: they are measurements.
    time_steps, size = potentials.shape
    block, scalar = _block(time_steps), pl.BlockSpec((1,), lambda i: (0,))
    d_currents = pl.pallas_call(
        functools.partial(_backward_kernel, tau=tau, v_th=v_th, neurons=neurons, size=size),
        name='lif_backward',
        grid=(pl.cdiv(size, _BLOCK),),
        in_specs=[block, block, scalar, scalar],
        out_specs=_block(len(given)),
        out_shape=jax.ShapeDtypeStruct((len(given), size), upstream.dtype),
        compiler_params=plt.CompilerParams(),
        interpret=interpret,
    )(
        upstream.reshape(time_steps, size),
        potentials,
        *(value.astype(potentials.dtype).reshape(1) for value in (beta, scale)),
    )
    return d_currents.reshape(len(given), *upstream.shape[1:]), (jnp.zeros_like(beta), jnp.zeros_like(scale))


_integrate.defvjp(_forward, _backward)


def _block(steps: int) -> pl.BlockSpec:
    """All time steps of the neurons of one program."""
    return pl.BlockSpec((steps, _BLOCK), lambda i: (0, i))


def _run_forward(
    currents: Array, tau: float, v_th: float, neurons: Neurons, interpret: bool, *, keep: bool
) -> tuple[tuple[Array, Array, Array], list[Array]]:
    """Spikes, mean and variance; and the potentials `[T, N]` before the reset in a list, empty unless `keep`."""
    flat = currents.reshape(len(currents), -1)
    size, blocks = flat.shape[1], pl.cdiv(flat.shape[1], _BLOCK)
    dtype = at_least_float32(currents.dtype)
    # A kernel that runs once cannot take sums about the mean, and sums of squares about 0 lose digits where the mean is
    # large. So they are about the mean potential of the first step, cheap to have beforehand: at most sqrt(T) standard
    # deviations from the mean of all, little is lost when they are corrected below.
    shift = jnp.mean(flat[0], dtype=dtype)
    shape = (neurons.time_steps, size)
    # Each program writes sums of its own: no order of additions between programs, and the same result every time.
    partial_sum, scalar = pl.BlockSpec((1,), lambda i: (i,)), pl.BlockSpec((1,), lambda i: (0,))
    spikes, sums, squares, *potentials = pl.pallas_call(
        functools.partial(_forward_kernel, tau=tau, v_th=v_th, time_steps=neurons.time_steps, size=size),
        name='lif_forward',
        grid=(blocks,),
        in_specs=[_block(len(flat)), scalar],
        out_specs=[_block(shape[0]), partial_sum, partial_sum] + [_block(shape[0])] * keep,
        out_shape=[
            jax.ShapeDtypeStruct(shape, currents.dtype),
            *[jax.ShapeDtypeStruct((blocks,), dtype)] * 2,
            *[jax.ShapeDtypeStruct(shape, dtype)] * keep,
        ],
        compiler_params=plt.CompilerParams(),
        interpret=interpret,
    )(flat, shift.reshape(1))
    # Divided first: as a float the number of potentials may be rounded, but then alike in both.
    count = neurons.time_steps * size
    correction = jnp.sum(sums) / count
    variance = jnp.sum(squares) / count - jnp.square(correction)
    spikes = spikes.reshape(neurons.time_steps, *currents.shape[1:])
    # jnp.maximum hands NaN on, so a layer that diverged does not look constant.
    return (spikes, shift + correction, jnp.maximum(variance, 0)), potentials


def _inside(size: int) -> Array:
    """Which neurons of this program's block there are: the last block may stick out."""
    return pl.program_id(0) * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32) < size


def _first() -> Array:
    """Index 0 as an array: interpreted, a masked load takes no Python number."""
    return pl.program_id(0) * 0


def _forward_kernel(currents, shift, spikes, sums, squares, *potentials, tau, v_th, time_steps, size) -> None:
    dtype = shift.dtype
    inside, about = _inside(size), shift[0]
    constant = currents.shape[0] < time_steps

    def current(t: int | Array) -> Array:
        return plt.load(currents.at[t, :], mask=inside, other=0).astype(dtype)

    same = current(_first()) if constant else None

    def step(t: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        kept, total, total_square = carry
        u = tau * kept + (current(t) if same is None else same)
        spike = u - v_th >= 0
        plt.store(spikes.at[t, :], spike.astype(spikes.dtype), mask=inside)
        for ref in potentials:
            plt.store(ref.at[t, :], u, mask=inside)
        # Nothing of the neurons that there are not: their potentials are 0, which is not the mean.
        deviation = jnp.where(inside, u - about, 0)
        return jnp.where(spike, 0, u), total + deviation, total_square + jnp.square(deviation)

    zeros = jnp.zeros(_BLOCK, dtype)
    _, total, total_square = jax.lax.fori_loop(0, time_steps, step, (zeros, zeros, zeros))
    sums[0], squares[0] = jnp.sum(total), jnp.sum(total_square)


def _backward_kernel(upstream, potentials, beta, scale, d_currents, *, tau, v_th, neurons: Neurons, size) -> None:
    dtype = potentials.dtype
    inside, width, height = _inside(size), beta[0], scale[0]
    constant = d_currents.shape[0] < neurons.time_steps

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        later, total = carry
        t = neurons.time_steps - 1 - i
        u = plt.load(potentials.at[t, :], mask=inside, other=0)
        d_spike = plt.load(upstream.at[t, :], mask=inside, other=0).astype(dtype)
        if not neurons.detach_reset:
            d_spike = d_spike - later * tau * u  # Eq. 8
        x = u - v_th
        d_u = d_spike * (height * neurons.surrogate.gradient(x, width)) + jnp.where(x >= 0, 0, later * tau)  # Eq. 7
        if constant:
            return d_u, total + d_u
        plt.store(d_currents.at[t, :], d_u.astype(d_currents.dtype), mask=inside)
        return d_u, total

    zeros = jnp.zeros(_BLOCK, dtype)
    _, total = jax.lax.fori_loop(0, neurons.time_steps, step, (zeros, zeros))
    if constant:
        plt.store(d_currents.at[_first(), :], total.astype(d_currents.dtype), mask=inside)
