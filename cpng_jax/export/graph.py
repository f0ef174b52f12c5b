"""A network as a graph of its layers, found by watching it run on an example.

Layers are the modules that a network calls: `Conv`, `Dense`, `TdBN` and `LIF`. What lies between them, pools and
flattening, is read from the program that JAX traces. There is no second description of any network, and one from
outside works as well; what is met that has no place in such a graph is told by name.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Literal, Primitive

from cpng_jax.nn.currents import as_terms
from cpng_jax.nn.kinds import KINDS
from cpng_jax.nn.layers import Conv, Dense, TdBN
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.surrogate import Array
from cpng_jax.nn.terms import Normalised
from cpng_jax.runtime.errors import UserError

Shape = tuple[int, ...]

# Examples of the batch that is traced: more than one, so that the axis is not taken for another.
_BATCH = 2

# What a sentence calls operations that have no node.
_NAMES = {
    'reduce_window_max': 'a max pool',
    '_max_pool': 'a max pool',
    'add': 'a sum',
    'add_any': 'a sum',
    'mul': 'a product',
    'sub': 'a difference',
}

# Stands for a layer in the traced program.
_layer = Primitive('cpng_jax_layer')
_layer.def_abstract_eval(lambda *inputs, index, shape: inputs[0].update(shape=shape))


class Flow(NamedTuple):
    """What goes from a node to another.

    Attributes:
      source: name of the node that it comes from.
      shape: of one example at one time step, `(H, W, C)` or `(features,)`.
      factor: that the output of the node is multiplied by.
    """

    source: str
    shape: Shape
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Node:
    """A layer, or what lies between two.

    Attributes:
      name: a module's path; of what is no module, the node before it and what it does.
      kind: 'input', 'conv', 'dense', 'norm', 'lif', 'pool', which sums over windows, or 'flatten'.
      inputs: what goes in; the terms of a sum for neurons, one for all else.
      shape: of its output, of one example at one time step.
      module: the layer; None for what is none.
      window: edges of the windows of a pool, in H and W.
    """

    name: str
    kind: str
    inputs: tuple[Flow, ...]
    shape: Shape
    module: Any = None
    window: tuple[int, int] = (1, 1)


class Graph(NamedTuple):
    """The layers of a network and how they hang together.

    Attributes:
      nodes: by name, in an order in which each comes after those that it takes from; the first is the input.
      output: what the network returns at each time step.
    """

    nodes: dict[str, Node]
    output: Flow


class _Unknown(NamedTuple):
    """A value that no graph has: what made it, and the node before that."""

    primitive: str
    after: str


class _Call(NamedTuple):
    """A layer that has been called."""

    kind: str
    module: nn.Module


def trace(module: nn.Module, variables: Mapping[str, Any], image_shape: Shape) -> Graph:
    """Finds the layers of a network and how they hang together; nothing is computed.

    Args:
      module: takes `[B, H, W, C]`, or `[T, B, H, W, C]`, and returns `[T, B, classes]`.
      variables: its collections; shapes and dtypes will do.
      image_shape: `(H, W, C)` of an image, or `(T, H, W, C)` of a recording.

    Returns:
      The graph.

    Raises:
      UserError: something between the layers, or a kind of neuron, has no place in such a graph; named by its layer.
    """
    calls: list[_Call] = []

    def apply(x: Array, variables: Mapping[str, Any]) -> Array:
        with nn.intercept_methods(_watch(calls)):
            return module.apply(variables, x, train=False)  # pyright: ignore[reportReturnType]

    shape = (*image_shape[:-3], _BATCH, *image_shape[-3:])
    traced = jax.make_jaxpr(apply)(jax.ShapeDtypeStruct(shape, jnp.float32), variables)
    reader = _Reader(calls, image_shape[-3:])
    no_signals = [None] * (len(traced.jaxpr.invars) - 1)
    (out,) = reader.run(traced.jaxpr, [Flow('input', image_shape[-3:]), *no_signals])
    output = reader.known(out, 'the output')
    # What the layers do themselves is still in the program, with pools and the like that lead nowhere.
    used, wanted = set(), {output.source}
    while wanted:
        used |= wanted
        wanted = {flow.source for name in wanted for flow in reader.nodes[name].inputs} - used
    return Graph({name: node for name, node in reader.nodes.items() if name in used | {'input'}}, output)


def _watch(calls: list[_Call]) -> Callable[..., Any]:
    """Makes what puts a mark into the program in the place of each layer."""

    def mark(kind: str, module: nn.Module, inputs: list[Array], shape: Shape) -> Array:
        calls.append(_Call(kind, module))
        return _layer.bind(*inputs, index=len(calls) - 1, shape=shape)

    def watch(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, method = context.module, context.method_name
        if isinstance(module, LIF) and method == '__call__':
            if type(module) is not LIF:
                raise UserError(_moving(module))
            terms = as_terms(args[0])
            if any(term.affine is not None for term in terms):
                raise UserError(f'{_path(module)}: its currents are normalised by something else than a TdBN.')
            if kwargs.get('initial_state') is not None or kwargs.get('return_state'):
                raise UserError(f'{_path(module)} takes or returns a state: in other programs neurons start from rest.')
            out = next_function(*args, **kwargs)
            return mark('lif', module, [term.values for term in terms], out.shape)
        out = next_function(*args, **kwargs)
        if isinstance(module, Conv) and method == 'packed':
            return mark('conv', module, [args[0]], out.shape)
        if isinstance(module, Dense) and method == '__call__':
            return mark('dense', module, [args[0]], out.shape)
        if isinstance(module, TdBN) and method == 'deferred':
            return Normalised(mark('norm', module, [args[0]], out.shape), None)
        return out

    return watch


def _path(module: nn.Module) -> str:
    return '/'.join(module.path)


def _moving(module: nn.Module) -> str:
    kind = next((name for name, known in KINDS.items() if known.module is type(module)), type(module).__name__)
    return (
        f'{_path(module)} has neurons of the kind {kind}, which other programs have no node for: '
        'take neuron.kind=lif, or --to=stablehlo, which takes any network.'
    )


class _Reader:
    """Goes through a traced program and gathers the nodes."""

    def __init__(self, calls: list[_Call], image_shape: Shape) -> None:
        self._calls = calls
        self.nodes: dict[str, Node] = {'input': Node('input', 'input', (), image_shape)}

    def add(self, name: str, kind: str, inputs: tuple[Flow, ...], shape: Shape, **fields: Any) -> Flow:
        """Adds a node, under a name that no other has; returns what comes out of it."""
        while name in self.nodes:
            name += '_'
        self.nodes[name] = Node(name, kind, inputs, shape, **fields)
        return Flow(name, shape)

    def known(self, value: Any, into: str) -> Flow:
        """A value that goes into a layer."""
        if isinstance(value, Flow):
            return value
        if value is None:
            raise UserError(f'{into} takes something that does not come from the images.')
        what = _NAMES.get(value.primitive, f'the operation {value.primitive}')
        raise UserError(
            f'{value.after} goes through {what} to {into}, for which NIR has no node: take a network without it, such '
            'as vgg or resnet18, or --to=stablehlo, which takes any network.'
        )

    def run(self, jaxpr: Any, inputs: list[Any]) -> list[Any]:
        """Runs a program on what is known of its inputs: a `Flow`, a `_Unknown`, or None for all that is no signal."""
        known: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
        look_up = lambda atom: None if isinstance(atom, Literal) else known.get(atom)
        for equation in jaxpr.eqns:
            values = [look_up(atom) for atom in equation.invars]
            signals = [value for value in values if value is not None]
            if signals:
                known.update(zip(equation.outvars, self._outputs(equation, values, signals), strict=True))
        return [look_up(atom) for atom in jaxpr.outvars]

    def _outputs(self, equation: Any, values: list[Any], signals: list[Any]) -> list[Any]:
        name = equation.primitive.name
        if name == _layer.name:
            return [self._layer(equation, values)]
        if name in ('jit', 'pjit', 'checkpoint'):
            inner = equation.params['jaxpr']
            return self.run(getattr(inner, 'jaxpr', inner), values)
        if name == 'custom_vjp_call':
            name = equation.params['call_jaxpr'].jaxpr.debug_info.func_name
        lost = next((signal for signal in signals if isinstance(signal, _Unknown)), None)
        out = None if lost or len(signals) > 1 else self._between(name, equation, signals[0])
        return [out or lost or _Unknown(name, self._layer_before(signals[0]))] * len(equation.outvars)

    def _layer(self, equation: Any, values: list[Any]) -> Flow:
        kind, module = self._calls[equation.params['index']]
        path = _path(module)
        inputs = tuple(self.known(value, path) for value in values)
        rank = len(inputs[0].shape)
        return self.add(path, kind, inputs, equation.params['shape'][-rank:], module=module)

    def _layer_before(self, flow: Flow) -> str:
        """The layer that something comes from, past pools."""
        node = self.nodes[flow.source]
        return node.name if node.module is not None or not node.inputs else self._layer_before(node.inputs[0])

    def _between(self, name: str, equation: Any, flow: Flow) -> Flow | None:
        """What an operation between layers makes of a signal; None for an operation that there is no node for."""
        shape = equation.outvars[0].aval.shape
        rank = len(flow.shape)
        leading = len(equation.invars[0].aval.shape) - rank
        if name in ('reshape', 'broadcast_in_dim', 'squeeze', 'convert_element_type', 'transpose', 'stop_gradient'):
            if name == 'transpose' and equation.params['permutation'][-rank:] != tuple(range(leading, leading + rank)):
                return None
            floating = jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating)
            if shape[-rank:] == flow.shape and floating:
                return flow  # Time and batch are joined and parted.
            if name == 'reshape' and rank == 3 and shape[-1] == math.prod(flow.shape):
                return self._passed(flow, 'flatten', (shape[-1],))
        by = _scalar(name, equation.invars)
        if by is not None:
            return flow._replace(factor=flow.factor * by)
        if name == 'reduce_window_sum' and rank == 3 and leading == 1:
            window = equation.params['window_dimensions']
            steps_alike = equation.params['window_strides'] == window
            if window[0] == window[3] == 1 and steps_alike and not any(map(any, equation.params['padding'])):
                return self._passed(flow, 'pool', shape[-3:], window=window[1:3])
        if name == 'reduce_sum' and rank == 3 and equation.params['axes'] == (leading, leading + 1):
            pooled = self._passed(flow, 'pool', (1, 1, flow.shape[2]), window=flow.shape[:2])
            return self._passed(pooled, 'flatten', (flow.shape[2],))
        return None

    def _passed(self, flow: Flow, kind: str, shape: Shape, **fields: Any) -> Flow:
        """Adds a node that is no layer: it sums or lays out, and a factor waits for the layer after it."""
        passed = self.add(f'{flow.source}/{kind}', kind, (flow._replace(factor=1.0),), shape, **fields)
        return passed._replace(factor=flow.factor)


def _scalar(name: str, atoms: Sequence[Any]) -> float | None:
    """The number that an operation multiplies by; None where it does something else."""
    if name == 'div' and isinstance(atoms[1], Literal):
        return 1 / float(atoms[1].val)
    numbers = [float(atom.val) for atom in atoms if isinstance(atom, Literal)]
    return numbers[0] if name == 'mul' and numbers else None
