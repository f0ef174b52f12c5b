"""What tests of exports compare with: NIR as its definition reads, in float64 by NumPy, and networks that fire."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def run(graph, frames, dt):
    """Steps a graph through time by forward Euler, node by node.

    Args:
      graph: a `nir.NIRGraph` whose nodes stand in an order in which each comes after those it takes from.
      frames: `[T, B, ...]`.
      dt: time step in seconds.

    Returns:
      Outputs `[T, B, ...]`; spikes by name; and how near the potentials came to the threshold.
    """
    potentials, spikes, outputs, nearest = {}, {}, [], np.inf
    for frame in np.asarray(frames, np.float64):
        values = {}
        for name, node in graph.nodes.items():
            sources = [values[source] for source, target in graph.edges if target == name]
            x = sum(sources) if sources else frame
            kind = type(node).__name__
            if kind in ('LIF', 'IF'):
                v = potentials.get(name, np.broadcast_to(np.asarray(node.v_reset, np.float64), x.shape))
                v = v + dt * node.r * x if kind == 'IF' else v + dt / node.tau * (node.v_leak - v + node.r * x)
                fires = v > node.v_threshold
                nearest = min(nearest, np.abs(v - node.v_threshold).min())
                potentials[name] = np.where(fires, node.v_reset, v)
                x = fires.astype(np.float64)
                spikes.setdefault(name, []).append(x)
            elif kind not in ('Input', 'Output'):
                x = apply(kind, node, x)
            values[name] = x
        outputs.append(values['output'])
    return np.stack(outputs), {name: np.stack(each) for name, each in spikes.items()}, nearest


def apply(kind, node, x):
    if kind in ('Affine', 'Linear'):
        return x @ node.weight.T.astype(np.float64) + (node.bias if kind == 'Affine' else 0)
    if kind == 'Scale':
        return x * node.scale
    if kind == 'Flatten':
        return x.reshape(len(x), -1)
    height, width = np.broadcast_to(node.padding, 2)
    x = np.pad(x, ((0, 0), (0, 0), (height, height), (width, width)))
    down, right = np.broadcast_to(node.stride, 2)
    if kind == 'Conv2d':
        windows = sliding_window_view(x, node.weight.shape[2:], axis=(2, 3))[:, :, ::down, ::right]
        convolved = np.einsum('bchwij,ocij->bohw', windows, node.weight.astype(np.float64))
        return convolved + node.bias[:, None, None]
    windows = sliding_window_view(x, tuple(node.kernel_size), axis=(2, 3))[:, :, ::down, ::right]
    return windows.mean((-2, -1)) if kind == 'AvgPool2d' else windows.sum((-2, -1))


def firing(module, shape, seed=0):
    """Variables of a network whose layers fire, norms and biases of all sizes, and images of its shape."""
    images = jax.random.normal(jax.random.key(seed), (*shape[:-3], 3, *shape[-3:]))
    variables = jax.jit(module.init)(jax.random.key(seed), images)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == 'var':
            return jnp.asarray(rng.uniform(0.2, 1.5, leaf.shape), jnp.float32)
        if name in ('mean', 'bias', 'scale') and leaf.ndim:
            return leaf + jnp.asarray(rng.normal(0.2, 0.3, leaf.shape), jnp.float32)
        return leaf

    return jax.tree_util.tree_map_with_path(draw, variables), images


def outputs_and_spikes(module, variables, images):
    """What a network of ours does: outputs `[T, B, classes]`, and spikes by name with the channels first."""
    is_neuron = lambda layer, method: hasattr(layer, 'v_th') and hasattr(layer, 'tau') and method == '__call__'
    apply_ = lambda x: module.apply(variables, x, capture_intermediates=is_neuron, mutable=['intermediates'])
    outputs, captured = jax.jit(apply_)(images)
    spikes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(captured['intermediates']):
        name = '.'.join(key.key for key in path[:-2])
        spikes[name] = np.moveaxis(np.asarray(leaf), -1, 2) if leaf.ndim == 5 else np.asarray(leaf)
    return np.asarray(outputs), spikes
