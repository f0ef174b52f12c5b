"""The layers of a network with their shapes, parameters and operations, counted without computing anything."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from cpng_jax.nn.analog_neuron import ReLU
from cpng_jax.nn.layers import TdBN
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.surrogate import Array


class Layer(NamedTuple):
    """A layer, at the work of one image over all its time steps.

    Attributes:
      path: where it is in the network.
      kind: 'conv', 'dense', 'norm', 'lif', or 'analog' for the neurons of an ANN.
      shape: of its output, `(T, ...)`; T is 1 for what is computed once for a static image.
      parameters: trained numbers.
      multiply_adds: of dense arithmetic.
      operations: additions that are left if a zero input costs nothing: `multiply_adds` times the share of inputs that
        are not zero.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int = 0
    operations: float = 0.0


class Summary(NamedTuple):
    """The layers of a network, in the order they run in.

    Attributes:
      layers: what there is.
      measured: whether `operations` stem from measured inputs; otherwise every input counts, which bounds them above.
    """

    layers: list[Layer]
    measured: bool

    @property
    def parameters(self) -> int:
        """Trained numbers of the whole network."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the whole network for one image."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def operations(self) -> float:
        """Spiking operations of the whole network for one image."""
        return sum(layer.operations for layer in self.layers)

    @property
    def beta_layers(self) -> int:
        """Number of layers that have a beta."""
        return sum(layer.kind == 'lif' for layer in self.layers)

    @property
    def neurons(self) -> int:
        """Spiking neurons of the whole network."""
        return sum(math.prod(layer.shape[1:]) for layer in self.layers if layer.kind == 'lif')

    @property
    def statistics_operations(self) -> int:
        """Operations for mean and variance of all potentials (Sec. 4.3): four for each neuron and time step."""
        return 4 * sum(math.prod(layer.shape) for layer in self.layers if layer.kind == 'lif')

    def __str__(self) -> str:
        """The layers as a table, and the totals; of an ANN without what only spikes have."""
        spikes = self.beta_layers > 0
        heading = 'spiking operations' if self.measured else 'spiking op. (bound)'
        rows: list[tuple[str, ...]] = [('layer', 'kind', 'output', 'parameters', 'multiply-adds', heading)]
        for layer in self.layers:
            shape = ' x '.join(map(str, layer.shape))
            counts = (layer.parameters, layer.multiply_adds, round(layer.operations))
            rows.append((layer.path, layer.kind, shape, *(f'{count:,}' if count else '' for count in counts)))
        rows = rows if spikes else [row[:-1] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            '  '.join(
                cell.ljust(width) if place < 3 else cell.rjust(width) for place, (cell, width) in enumerate(pairs)
            )
            for pairs in (zip(row, widths, strict=True) for row in rows)
        ]
        totals = [f'{self.parameters:,} parameters', f'for one image: {self.multiply_adds / 1e9:.3f} G multiply-adds']
        if spikes:
            totals[0] += f', {self.beta_layers} beta layers, {self.neurons:,} spiking neurons'
            bound = '' if self.measured else ' at most'
            totals[1] += (
                f', {self.operations / 1e9:.3f} G spiking operations{bound}'
                f', {self.statistics_operations / 1e9:.5f} G operations for the statistics of the potentials'
            )
        return '\n'.join([*(line.rstrip() for line in lines), *totals])


def summarise(model: nn.Module, example: Array, density: Mapping[str, float] | None = None) -> Summary:
    """Counts what a network consists of and costs; shapes alone are worked out, so a large one takes seconds.

    Multiply-adds are those of convolutions and dense layers, with the zeros that pad an image. Pools, norms and
    neurons, a few operations an element, are left out.

    Args:
      model: takes `example`.
      example: one image `[1, H, W, C]`, or the frames of one recording `[T, 1, H, W, C]`; only the shape counts.
      density: share of inputs that are not zero for each layer, from `input_density`; 1 if not given.

    Returns:
      The `Summary`.
    """
    calls: list[tuple[nn.Module, tuple[int, ...]]] = []

    def record(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        result = next_function(*args, **kwargs)
        # Both ways to call a tdBN come through `deferred`, and so each of them is counted once.
        kinds = {'__call__': nn.Conv | nn.Dense | LIF | ReLU, 'deferred': TdBN}
        if isinstance(context.module, kinds.get(context.method_name, ())):
            calls.append((context.module, result.shape))
        return result

    # A function of its own: one that JAX has traced already would not run, and nothing would be recorded.
    def init(key: Array, example: Array) -> Mapping[str, Any]:
        return model.init(key, example)

    with nn.intercept_methods(record):
        variables = jax.eval_shape(init, jax.random.key(0), example)
    layers = [_layer(module, shape, variables['params'], density) for module, shape in calls]
    return Summary(layers, density is not None)


def input_density(model: nn.Module, variables: Mapping[str, Any], images: Array) -> dict[str, float]:
    """Measures the share of inputs that are not zero for each convolution and dense layer.

    Args:
      model: the network.
      variables: its variables.
      images: a batch in the form that the network takes.

    Returns:
      Shares by path of the layer.
    """

    def measure(variables: Mapping[str, Any], images: Array) -> dict[str, Array]:
        shares: dict[str, Array] = {}

        def record(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            if context.method_name == '__call__' and isinstance(context.module, nn.Conv | nn.Dense):
                shares['/'.join(context.module.path)] = jnp.mean(args[0] != 0)
            return next_function(*args, **kwargs)

        with nn.intercept_methods(record):
            model.apply(variables, images)
        return shares

    return {path: float(share) for path, share in jax.jit(measure)(variables, images).items()}


def _layer(
    module: nn.Module, shape: tuple[int, ...], params: Mapping[str, Any], density: Mapping[str, float] | None
) -> Layer:
    """Counts one layer from the shape of its output; conv and dense have T folded into the batch of 1."""
    own: Any = params
    for name in module.path:
        own = own.get(name, {})
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(own))
    path = '/'.join(module.path)
    if isinstance(module, nn.Conv | nn.Dense):
        # Each output takes as many multiply-adds as the kernel has weights for it.
        multiply_adds = math.prod(shape) * math.prod(own['kernel'].shape[:-1])
        kind = 'conv' if isinstance(module, nn.Conv) else 'dense'
        share = 1.0 if density is None else density[path]
        return Layer(path.rpartition('/')[0], kind, shape, parameters, multiply_adds, multiply_adds * share)
    kind = 'lif' if isinstance(module, LIF) else 'analog' if isinstance(module, ReLU) else 'norm'
    return Layer(path, kind, (shape[0], *shape[2:]), parameters)
