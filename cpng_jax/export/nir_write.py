"""A network as a graph of NIR, the Neuromorphic Intermediate Representation (Pedersen et al., 2024).

Neurons of Eq. 2 are NIR's LIF, `tau dv/dt = v_leak - v + r I`, stepped by forward Euler: with tau = dt / (1 - decay) a
step is `v = decay v + (1 - decay) r I`. Here r = 1, which every reader knows, and the weights before the neurons carry
1 / (1 - decay). NIR's neurons spike at v > v_threshold and ours at u >= v_th, so the threshold is the float32 number
just below v_th. Pools are sums, and the division is in the weights after them. Norms are in the weights before the
neurons, folded in float64.
"""

import io
import json
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from cpng_jax.export.graph import Flow, Graph, Node, Shape, trace
from cpng_jax.nn.neuron_layer import DECAY, LIF
from cpng_jax.runtime import files
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.packages import needed

# Seconds: the step of NIR's other users, and the only one that snnTorch reads.
DT = 1e-4

_AFFINE = ('conv', 'dense', 'norm')


def to_nir(
    module: nn.Module,
    variables: Mapping[str, Any],
    image_shape: Shape,
    metadata: Mapping[str, Any] | None = None,
    dt: float = DT,
) -> Any:
    """Makes the graph of a network.

    Args:
      module: takes images `[B, H, W, C]` or events `[T, B, H, W, C]` and returns `[T, B, classes]`.
      variables: its collections, float32.
      image_shape: `(H, W, C)` of an image, or `(T, H, W, C)` of a recording.
      metadata: of the graph; numbers, texts, arrays and lists, which become JSON.
      dt: time step that its readers are to take, in seconds.

    Returns:
      A `nir.NIRGraph` from frames `[C, H, W]` to the outputs of a time step; their mean over time is the reader's.

    Raises:
      UserError: NIR cannot say what the network has, named by its layer; or nir is not installed.
    """
    nir = needed('nir', 'NIR')
    builder = _Builder(nir, trace(module, variables, image_shape), variables, dt)
    nodes, edges = builder.build()
    plain = {key: json.dumps(value) if isinstance(value, list) else value for key, value in (metadata or {}).items()}
    return nir.NIRGraph(nodes, edges, {**plain, 'dt': dt})


def write(path: pathlib.Path, graph: Any) -> pathlib.Path:
    """Writes a graph of NIR into a file, in one go; returns its path."""
    contents = io.BytesIO()
    needed('nir', 'NIR').write(contents, graph)
    return files.replace(path, contents.getvalue())


class _Builder:
    """Makes nodes and edges of NIR, layer by layer."""

    def __init__(self, nir: Any, graph: Graph, variables: Mapping[str, Any], dt: float) -> None:
        self._nir, self._graph, self._variables, self._dt = nir, graph, variables, dt
        self._nodes: dict[str, Any] = {}
        self._edges: list[tuple[str, str]] = []
        flows = [flow for node in graph.nodes.values() for flow in node.inputs]
        self._uses = Counter(flow.source for flow in [*flows, graph.output])

    def build(self) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Returns the nodes by name, and the edges."""
        for node in self._graph.nodes.values():
            if node.kind not in _AFFINE:  # These are made where they are used, with the factor that is asked for.
                self._plain(node)
        out = self._sent(self._graph.output, 1.0, 'output')
        self._add('output', self._nir.Output({'output': np.array(self._graph.output.shape)}), out)
        return self._nodes, self._edges

    def _add(self, name: str, node: Any, *sources: str) -> str:
        self._nodes[name] = node
        self._edges += [(source, name) for source in sources]
        return name

    def _plain(self, node: Node) -> None:
        """Adds what has no weights."""
        name = _name(node.name)
        if node.kind == 'input':
            self._add('input', self._nir.Input({'input': np.array(_channels_first(node.shape))}))
        elif node.kind == 'lif':
            if any(self._permutes(flow) for flow in node.inputs):
                raise UserError(f'{node.name} fires on a flattened map: put a fully connected layer between.')
            decay = self._decay(node.module)
            gain = 1.0 if decay == 1 else 1 / (1 - decay)
            sources = [self._sent(flow, gain, name) for flow in node.inputs]
            self._add(name, self._neurons(node, decay), *sources)
        else:
            (flow,) = node.inputs
            source = self._sent(flow, 1.0, name)
            self._add(name, self._pool(node) if node.kind == 'pool' else self._flatten(flow), source)

    def _pool(self, node: Node) -> Any:
        window = np.array(node.window)
        return self._nir.SumPool2d(kernel_size=window, stride=window, padding=np.zeros(2, int))

    def _flatten(self, flow: Flow) -> Any:
        # The axes are counted from the end, for readers that have the batch among them.
        return self._nir.Flatten({'input': np.array(_channels_first(flow.shape))}, start_dim=-3, end_dim=-1)

    def _decay(self, module: LIF) -> float:
        if not module.learn_tau:
            return float(module.tau)
        return float(1 / (1 + np.exp(-self._array('params', module, DECAY))))

    def _neurons(self, node: Node, decay: float) -> Any:
        shape = _channels_first(node.shape)
        full = lambda value: np.full(shape, value, np.float32)
        v_th = np.nextafter(np.float32(node.module.v_th), np.float32(-np.inf))
        ends = {'v_threshold': full(v_th), 'v_reset': full(0)}
        if decay == 1:
            return self._nir.IF(r=full(1 / self._dt), **ends)
        return self._nir.LIF(tau=full(self._dt / (1 - decay)), r=full(1), v_leak=full(0), **ends)

    def _sent(self, flow: Flow, gain: float, into: str) -> str:
        """Adds what it takes to send a signal on, times a gain; returns the node of NIR that sends it."""
        node, gain = self._graph.nodes[flow.source], gain * flow.factor
        if node.kind in _AFFINE:
            return self._affine(node, gain)
        if gain == 1:
            return _name(flow.source)
        return self._identity(flow, gain, into)

    def _identity(self, flow: Flow, gain: float, into: str) -> str:
        """Adds a layer that multiplies by a number alone, as a shortcut is one: all readers know its kind."""
        weight = gain * np.eye(flow.shape[-1])
        name = f'{into}.from.{_name(flow.source)}'
        bias = np.zeros(flow.shape[-1])
        if len(flow.shape) == 1:
            return self._add(name, self._dense(weight, bias), _name(flow.source))
        return self._add(name, self._conv(weight[:, :, None, None], bias, flow.shape, 1), _name(flow.source))

    def _affine(self, node: Node, gain: float) -> str:
        """Adds a convolution or a fully connected layer with the norm after it, all times a gain."""
        scale, bias = np.float64(gain), np.float64(0)
        if node.kind == 'norm':
            self._check_alone(node)
            scale, bias = (gain * value for value in self._norm(node.module))
            scale, node = scale * node.inputs[0].factor, self._graph.nodes[node.inputs[0].source]
            if node.kind not in ('conv', 'dense'):
                raise UserError(
                    f'{node.name} goes into a norm, which NIR has none for: put a layer with weights between.'
                )
        self._check_alone(node)
        (flow,) = node.inputs
        name = _name(f'{node.name}/{node.kind}')  # that of its weights, without their collection
        kernel = self._array('params', node.module, node.kind, 'kernel') * (scale * flow.factor)
        bias = bias * np.ones(kernel.shape[-1])
        source = self._sent(flow._replace(factor=1.0), 1.0, name)
        if node.kind == 'conv':
            weight = np.transpose(kernel, (3, 2, 0, 1))
            return self._add(name, self._conv(weight, bias, flow.shape, node.module.stride), source)
        if node.module.use_bias:
            bias = bias + scale * self._array('params', node.module, 'dense', 'bias')
        if self._permutes(flow):
            # NIR's maps have the channels first, so that their numbers come in another order.
            map_shape = self._graph.nodes[flow.source].inputs[0].shape
            kernel = np.transpose(kernel.reshape(*map_shape, -1), (2, 0, 1, 3)).reshape(kernel.shape)
        return self._add(name, self._dense(kernel.T, bias), source)

    def _check_alone(self, node: Node) -> None:
        if self._uses[node.name] > 1:
            raise UserError(
                f'{node.name} goes to several layers, which the export to NIR knows of images and neurons alone: take '
                '--to=stablehlo, which takes any network.'
            )

    def _permutes(self, flow: Flow) -> bool:
        """Whether a signal is a map that has been flattened, whose numbers NIR has in another order."""
        node = self._graph.nodes[flow.source]
        return node.kind == 'flatten' and max(node.inputs[0].shape[:2]) > 1

    def _norm(self, module: Any) -> tuple[np.ndarray, np.ndarray]:
        """Factor and summand of each channel in evaluation, with the running statistics."""
        mean, variance = (self._array('batch_stats', module, 'norm', name) for name in ('mean', 'var'))
        scale = module.alpha * module.v_th * self._array('params', module, 'scale') / np.sqrt(variance + module.epsilon)
        return scale, self._array('params', module, 'bias') - mean * scale

    def _array(self, collection: str, module: nn.Module, *names: str) -> np.ndarray:
        found: Any = self._variables[collection]
        for name in (*module.path, *names):
            found = found[name]
        return np.asarray(found, np.float64)

    def _conv(self, weight: np.ndarray, bias: np.ndarray, shape: Shape, stride: int) -> Any:
        padding = weight.shape[-1] // 2
        return self._nir.Conv2d(
            input_shape=shape[:2],
            weight=weight.astype(np.float32),
            stride=stride,
            padding=padding,
            dilation=1,
            groups=1,
            bias=bias.astype(np.float32),
        )

    def _dense(self, weight: np.ndarray, bias: np.ndarray) -> Any:
        return self._nir.Affine(weight=np.ascontiguousarray(weight, np.float32), bias=bias.astype(np.float32))


def _name(path: str) -> str:
    """A path as the name of a node: in a file of NIR a slash would part groups."""
    return path.replace('/', '.')


def _channels_first(shape: Shape) -> Shape:
    return (shape[2], *shape[:2]) if len(shape) == 3 else shape
