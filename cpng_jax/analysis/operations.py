"""What the layers of a network compute for an image, counted on images: multiply-adds, and accumulates by spikes.

Inputs of a layer are spikes, sums of spikes, or averages of spikes over windows and maps: whole multiples of 1/n. An
average is folded into the weights of the layer that takes it, divided by n, so that each spike in its window is an
accumulate for each output that it reaches. Inputs that are no such multiples are real values, and multiplied: images.
Counts leave out the zeros around an image.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cpng_jax.analysis.energy_model import Layer
from cpng_jax.nn.neuron_layer import LIF
from cpng_jax.nn.surrogate import Array

# Images of a batch.
_BATCH = 64
# How far an input times n may lie from a whole number: bfloat16 rounds multiples of 1/49.
_ROUNDING = 0.1
# Edges of the windows that spikes may be averaged over, beside whole maps.
_WINDOWS = (1, 2, 3, 4)


@dataclasses.dataclass
class _Call:
    """A layer as it runs, for one image.

    Attributes:
      name: its path.
      weights: numbers of its kernel, and a bias for each channel.
      inputs: values a step.
      outputs: values a step.
      steps: how many.
      fan_out: outputs that an input reaches, by its place in the map, `[H, W]`; or `[]`.
      channels: inputs at a place.
      parts: each n that inputs may be multiples of 1/n of.
      neurons: behind it.
      leaky: whether these leak.
    """

    name: str
    weights: int
    inputs: int
    outputs: int
    steps: int
    fan_out: np.ndarray
    channels: int
    parts: list[int]
    neurons: int = 0
    leaky: bool = False


class _Seen(NamedTuple):
    """What a layer is handed and its neurons do in a batch; sums over images and steps, at each place of the map.

    Attributes:
      total: of the inputs.
      multiples: whether all inputs are multiples of 1/n, for each n.
      largest: input.
      events: inputs of the first layer that hold events, and those that do in any step; zeros for static images.
      spikes: of the neurons.
    """

    total: Array
    multiples: Array
    largest: Array
    events: tuple[Array, Array]
    spikes: Array


def fan_out(size: int, kernel: int, stride: int) -> np.ndarray:
    """Counts the outputs along an axis that each input reaches, by a convolution padded with kernel // 2 zeros.

    Args:
      size: number of inputs.
      kernel: taps, odd.
      stride: step.

    Returns:
      Integers `[size]`.
    """
    first = stride * np.arange(-(-size // stride)) - kernel // 2
    place = np.arange(size)[:, None]
    return np.sum((first <= place) & (place < first + kernel), axis=1)


def count(
    model: nn.Module, variables: Mapping[str, Any], prepare: Callable[[Array], Array], images: np.ndarray
) -> list[Layer]:
    """Counts the operations of each convolution and dense layer of a network, in evaluation.

    Args:
      model: the network.
      variables: its variables.
      prepare: brings images into the form that the network takes, such as `Setup.prepare`.
      images: uint8 `[N, H, W, C]`, or events `[N, T, H, W, C]`.

    Returns:
      A `Layer` for each, in the order that they run in; numbers are means over the images.
    """
    calls: list[_Call] = []  # which the tracing fills in
    steps = 0

    @jax.jit
    def look(variables: Mapping[str, Any], images: Array) -> list[_Seen]:
        nonlocal steps
        calls.clear()
        seen: list[_Seen] = []
        pixels = 1

        def record(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            nonlocal pixels
            result, module = next_function(*args, **kwargs), context.module
            if context.method_name == '__call__' and isinstance(module, nn.Conv | nn.Dense):
                calls.append(_call(module, args[0].shape, result.shape, len(images), pixels))
                seen.append(_look_at(args[0], calls[-1], images if len(calls) == 1 else None))
            elif context.method_name == '__call__' and isinstance(module, LIF):
                pixels = math.prod(result.shape[2:-1])
                calls[-1].neurons, calls[-1].leaky = math.prod(result.shape[2:]), module.tau != 1 or module.learn_tau
                seen[-1] = seen[-1]._replace(spikes=jnp.sum(result, dtype=jnp.float32))
            return result

        with nn.intercept_methods(record):
            outputs: Any = model.apply(variables, prepare(images))
        steps = len(outputs)
        return seen

    batches = np.split(images, range(_BATCH, len(images), _BATCH))
    seen = [*zip(*(jax.device_get(look(variables, batch)) for batch in batches), strict=True)]
    layers = [
        _layer(call, _added(each), steps, len(images), first=index == 0, events=images.ndim == 5)
        for index, (call, each) in enumerate(zip(calls, seen, strict=True))
    ]
    # The last one adds its outputs up over the steps.
    return [*layers[:-1], layers[-1]._replace(neurons=layers[-1].outputs)]


def _call(module: Any, inputs: tuple[int, ...], outputs: tuple[int, ...], batch: int, pixels: int) -> _Call:
    """What the shapes of a call say, in which time steps and images are one axis; `pixels` of the map before."""
    taps = 1
    if isinstance(module, nn.Conv):
        (edge, _), stride = cast(tuple[int, int], module.kernel_size), cast(int, module.strides)
        taps, axes = edge**2, [fan_out(size, edge, stride) for size in inputs[1:3]]
        reached = np.multiply.outer(*axes) * module.features
    else:
        reached = np.array(module.features)
    return _Call(
        name='/'.join(module.path).removesuffix('/conv').removesuffix('/dense').removesuffix('/conv'),
        weights=taps * inputs[-1] * module.features + module.features,
        inputs=math.prod(inputs[1:]),
        outputs=math.prod(outputs[1:]),
        steps=inputs[0] // batch,
        fan_out=reached,
        channels=math.prod(inputs[1:]) // reached.size,
        parts=sorted({*(window**2 for window in _WINDOWS), pixels}),
    )


def _look_at(x: Array, call: _Call, images: Array | None) -> _Seen:
    """Sums up the inputs of a layer; `images` are given with the first."""

    def at_places(x: Array) -> Array:
        return jnp.sum(x, (0, 3) if call.fan_out.ndim else None, dtype=jnp.float32)

    multiples = [jnp.all(jnp.abs(n * x - jnp.round(n * x)) < _ROUNDING) for n in call.parts]
    events = (jnp.zeros(()), jnp.zeros(()))
    if images is not None and images.ndim == 5:
        held = images != 0
        place = lambda held: at_places(held.reshape(-1, *x.shape[1:]))
        events = place(held), place(jnp.any(held, axis=1))
    x = x.astype(jnp.float32)
    return _Seen(at_places(x), jnp.stack(multiples), jnp.max(x), events, jnp.zeros(()))


def _added(batches: tuple[_Seen, ...]) -> _Seen:
    """What all batches show, sums in float64."""
    add = lambda *arrays: np.sum(np.stack(arrays).astype(np.float64), axis=0)
    total, multiples, largest, events, spikes = zip(*batches, strict=True)
    return _Seen(add(*total), np.all(multiples, axis=0), np.max(largest), jax.tree.map(add, *events), add(*spikes))


def _layer(call: _Call, seen: _Seen, time_steps: int, images: int, *, first: bool, events: bool) -> Layer:
    """Makes counts for one image of the sums over all images."""
    reached = lambda inputs: float(np.sum(inputs * call.fan_out)) / images
    dense = float(np.sum(call.fan_out)) * call.channels
    spikes = bool(np.any(seen.multiples))
    n = call.parts[int(np.argmax(seen.multiples))]  # the least of which it holds
    macs, ann_macs = dense * call.steps, dense
    if first and events:
        macs, ann_macs = (reached(inputs) for inputs in seen.events)
    return Layer(
        name=call.name,
        weights=call.weights,
        inputs=call.inputs,
        outputs=call.outputs,
        steps=call.steps,
        time_steps=time_steps,
        macs=0.0 if spikes else macs,
        acs=n * reached(seen.total) if spikes else 0.0,
        input_bits=max(1, round(n * float(seen.largest)).bit_length()) if spikes else None,
        neurons=call.neurons,
        leaky=call.leaky,
        spiking=call.neurons > 0,
        spikes=float(seen.spikes) / images,
        ann_macs=ann_macs,
        first=first,
    )
