"""A graph of NIR as a network in JAX: ours back from its file, or that of another library.

Neurons are stepped by forward Euler and run by `lif`, so that gradients flow through them, too.
"""

import graphlib
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cpng_jax.nn.neuron import lif
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate
from cpng_jax.runtime.errors import UserError, reason
from cpng_jax.runtime.packages import needed
from cpng_jax.runtime.paths import local

# What is read, as `nir` calls it.
KINDS = ('Input', 'Output', 'Conv2d', 'Affine', 'Linear', 'Scale', 'SumPool2d', 'AvgPool2d', 'Flatten', 'LIF', 'IF')


class Ran(NamedTuple):
    """What a network did.

    Attributes:
      outputs: at each time step, `[T, B, ...]`.
      spikes: 0 or 1, of each layer of neurons by the name of its node, `[T, B, ...]`.
    """

    outputs: Array
    spikes: dict[str, Array]


class Network:
    """A network that a graph of NIR describes; it can be called within `jax.jit` and `jax.grad`.

    Attributes:
      graph: the `nir.NIRGraph`.
      metadata: what it says of itself.
      dt: time step in seconds.
      input_shape: of the input at a time step, of one example; of a map `(C, H, W)`.
    """

    def __init__(self, graph: Any, dt: float | None = None) -> None:
        """Takes a graph of NIR apart.

        Args:
          graph: a `nir.NIRGraph` without loops, of the kinds `KINDS`.
          dt: time step in seconds; None for that of its metadata.

        Raises:
          UserError: it has a node of another kind, a loop, or not one input and one output; or nothing tells dt.
        """
        self.graph, self.metadata = graph, dict(graph.metadata)
        order = _order(graph)
        dt = self.metadata.get('dt') if dt is None else dt
        neurons = [name for name in order if type(graph.nodes[name]).__name__ in ('LIF', 'IF')]
        if dt is None and neurons:
            raise UserError(
                f'The graph does not tell the time step that {neurons[0]} is to be run with: give dt, in seconds; '
                'snnTorch and SpikingJelly write for 1e-4, Norse for 1e-3, spyx for 1.'
            )
        self.dt = float(1 if dt is None else dt)
        self._steps = [(name, graph.nodes[name], _sources(graph, name)) for name in order]
        self.input_shape = tuple(int(size) for size in self._steps[0][1].input_type['input'])

    def __call__(self, frames: ArrayLike, *, beta: ArrayLike = 1.0, surrogate: str | Surrogate = 'triangular') -> Ran:
        """Runs the network from rest.

        Args:
          frames: floating, `[T, B, *input_shape]`; `frames_of` makes them of what our networks take.
          beta: width of the surrogate gradient, which spikes do not depend on.
          surrogate: its shape, as of `lif`.

        Returns:
          Outputs and spikes.

        Raises:
          ValueError: the frames have another shape.
        """
        frames = jnp.asarray(frames)
        if frames.ndim < 2 or frames.shape[2:] != self.input_shape:
            raise ValueError(f'frames must be [T, B, {", ".join(map(str, self.input_shape))}], got {frames.shape}.')
        values: dict[str, Array] = {}
        spikes: dict[str, Array] = {}
        x = frames
        for name, node, sources in self._steps:
            if sources:
                first, *rest = sources
                x = values[first]
                for source in rest:
                    x = x + values[source]
            kind = type(node).__name__
            if kind in ('LIF', 'IF'):
                x = spikes[name] = _fire(node, x, self.dt, beta, surrogate)
            elif kind not in ('Input', 'Output'):
                x = _apply(kind, node, x)
            values[name] = x
        return Ran(x, spikes)


def read(path: str | os.PathLike[str], dt: float | None = None) -> Network:
    """Reads a network from a file of NIR.

    Args:
      path: of the file.
      dt: time step in seconds; None for that of its metadata.

    Returns:
      The network.

    Raises:
      UserError: the file cannot be read, or has what is not read here; or nir is not installed.
    """
    nir, file = needed('nir', 'NIR'), local(path, 'path')
    if not file.is_file():
        raise UserError(f'There is no file {file}.')
    try:
        graph = nir.read(file)
    except Exception as error:  # h5py and nir raise many types for what is no such file.
        raise UserError(f'{file} cannot be read ({reason(error)}); expected a file of NIR.') from error
    return Network(graph, dt)


def frames_of(images: ArrayLike, time_steps: int) -> Array:
    """Makes frames of what our networks take, as graphs of NIR take them: channels first, an image at each time step.

    Args:
      images: floating, `[B, H, W, C]`, or events `[T, B, H, W, C]`.
      time_steps: T for images.

    Returns:
      `[T, B, C, H, W]`.
    """
    images = jnp.moveaxis(jnp.asarray(images), -1, -3)
    return jnp.broadcast_to(images, (time_steps, *images.shape)) if images.ndim == 4 else images


def _order(graph: Any) -> list[str]:
    """The nodes in an order in which each comes after those it takes from: the input first, the output last."""
    for name, node in graph.nodes.items():
        if type(node).__name__ not in KINDS:
            raise UserError(
                f'{name} is a node of the kind {type(node).__name__}, which is not read here: expected only '
                f'{", ".join(KINDS)}.'
            )
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UserError(
            f'The graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, expected one of each.'
        )
    before = {name: _sources(graph, name) for name in graph.nodes}
    try:
        order = list(graphlib.TopologicalSorter(before).static_order())
    except graphlib.CycleError as error:
        raise UserError(
            f'The graph has a loop, {" -> ".join(error.args[1])}: expected one that goes forward.'
        ) from error
    (start,), (end,) = graph.inputs, graph.outputs
    idle = [name for name in order if name != start and not before[name]]
    if idle or not before[end]:
        raise UserError(f'Nothing goes into {(idle or [end])[0]}: expected a node that comes from the input.')
    return [start, *(name for name in order if name not in (start, end)), end]


def _sources(graph: Any, name: str) -> list[str]:
    return [source for source, target in graph.edges if target == name]


def _fire(node: Any, x: Array, dt: float, beta: ArrayLike, surrogate: str | Surrogate) -> Array:
    """Runs neurons: their potential above the reset follows Eq. 2."""
    exact = lambda value: np.asarray(value, np.float64)
    r, v_reset = exact(node.r), exact(node.v_reset)
    share = np.float64(dt) if type(node).__name__ == 'IF' else dt / exact(node.tau)
    decay = np.ones_like(r) if type(node).__name__ == 'IF' else 1 - share
    leak = 0.0 if type(node).__name__ == 'IF' else share * (exact(node.v_leak) - v_reset)
    float32 = lambda value: jnp.asarray(np.asarray(value, np.float32))
    # NIR's neurons spike above the threshold, ours at it.
    above = np.nextafter(np.float32(exact(node.v_threshold) - v_reset), np.float32(np.inf))
    currents = x if np.all(share * r == 1) else x * float32(share * r)
    currents = currents if np.all(leak == 0) else currents + float32(leak)
    return lif(currents, beta, tau=float32(decay), v_th=float32(above), surrogate=surrogate)[0]


def _apply(kind: str, node: Any, x: Array) -> Array:
    """Runs a node without a state, over all time steps at once."""
    if kind in ('Affine', 'Linear'):
        y = jnp.matmul(x, jnp.asarray(node.weight, x.dtype).T)
        return y + jnp.asarray(node.bias, x.dtype) if kind == 'Affine' else y
    if kind == 'Scale':
        return x * jnp.asarray(node.scale, x.dtype)
    if kind == 'Flatten':
        # The axes of an example are those that the node counts.
        return x.reshape(*x.shape[:2], *(int(size) for size in np.atleast_1d(node.output_type['output'])))
    merged = x.reshape(-1, *x.shape[2:])
    y = _convolve(node, merged) if kind == 'Conv2d' else _pool(node, merged, mean=kind == 'AvgPool2d')
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _convolve(node: Any, x: Array) -> Array:
    padding = node.padding
    padding = padding.upper() if isinstance(padding, str) else [(size, size) for size in _pair(padding)]
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(node.weight, x.dtype),
        window_strides=_pair(node.stride),
        padding=padding,
        rhs_dilation=_pair(node.dilation),
        feature_group_count=int(node.groups),
        dimension_numbers=('NCHW', 'OIHW', 'NCHW'),
    )
    return y if node.bias is None else y + jnp.asarray(node.bias, x.dtype)[:, None, None]


def _pool(node: Any, x: Array, *, mean: bool) -> Array:
    window = _pair(node.kernel_size)
    padding = [(0, 0), (0, 0), *((size, size) for size in _pair(node.padding))]
    y = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 1, *window), (1, 1, *_pair(node.stride)), padding)
    return y / (window[0] * window[1]) if mean else y


def _pair(value: Any) -> tuple[int, int]:
    height, width = np.broadcast_to(np.asarray(value), (2,))
    return int(height), int(width)
