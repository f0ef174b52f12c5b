"""Shapes in the annotations of public functions hold in calls, also of traced arrays; what they exclude is refused."""

import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from beartype.door import is_bearable
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import cpng_jax
from cpng_jax import LIF, VGG, Conv, Dense, MembraneDistances, MembraneStats, TdBN
from cpng_jax.nn.losses import temporal_efficient_training
from cpng_jax.nn.neuron import potentials
from cpng_jax.nn.statistics import DISTANCES

T, B, H, C, CLASSES = 3, 2, 4, 5, 7
FEW = st.integers(1, 3)


def untrue(target: Any, /, *args: Any, **kwargs: Any) -> list[str]:
    """Calls a function, or a linen module, and names what its annotations do not allow: arguments, and `return`.

    Names of axes stand for one size in a call, as jaxtyping has it. The fields of statistics are held against the
    annotations of their class.
    """
    values, hints = given_to(target, *args, **kwargs), typing.get_type_hints(declared(target))
    with jaxtyping.jaxtyped('context'):
        wrong = [name for name, value in values.items() if not is_bearable(value, hints[name])]
        values['return'] = run(target, *args, **kwargs)
        if not is_bearable(values['return'], hints['return']):
            wrong.append('return')
    return wrong + [f'{name}.{field}' for name, value in values.items() for field in untrue_fields(value)]


def given_to(target: Any, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call that have annotations, by name."""
    call, leading = declared(target), ((target,) if isinstance(target, nn.Module) else ())
    bound = inspect.signature(call).bind(*leading, *args, **kwargs)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if name in typing.get_type_hints(call)}


def declared(target: Any) -> Any:
    """The function whose annotations count."""
    return inspect.unwrap(type(target).__call__ if isinstance(target, nn.Module) else target)


def run(target: Any, /, *args: Any, **kwargs: Any) -> Any:
    if isinstance(target, nn.Module):
        return target.init_with_output(jax.random.key(0), *args, **kwargs)[0]
    return target(*args, **kwargs)


def untrue_fields(value: Any) -> Iterator[str]:
    """Names the fields of statistics that are not as their class has them."""
    if isinstance(value, MembraneStats | MembraneDistances):
        hints = typing.get_type_hints(type(value))
        with jaxtyping.jaxtyped('context'):
            yield from [name for name, field in value._asdict().items() if not is_bearable(field, hints[name])]


def of(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.linspace(0.1, 0.9, int(np.prod(shape)), dtype=dtype).reshape(shape)


def stats(*layers: int) -> MembraneStats:
    return MembraneStats(of(*layers), 1 + of(*layers))


def distances(*layers: int) -> MembraneDistances:
    return MembraneDistances(jnp.broadcast_to(1 - jnp.exp(-DISTANCES), (*layers, len(DISTANCES))))


IMAGES = jnp.zeros((B, H, H, 2), jnp.uint8)
MEASURED = {'currents': of(4), 'firing_rate': 0.2}

# Calls that the annotations allow: what is called, its arguments, and its keyword arguments.
ALLOWED = {
    'spike': (cpng_jax.spike, (of(B, 4), 1), {}),
    'spike of arrays that broadcast': (cpng_jax.spike, (of(B, 4), of(4), of(B, 1)), {'scale': of(4)}),
    'spike of bfloat16': (cpng_jax.spike, (of(B, 4, dtype=jnp.bfloat16), 1.0), {}),
    'lif': (cpng_jax.lif, (of(T, B, 4), 1.0), {}),
    'lif of one step': (cpng_jax.lif, (of(1, B, 4), of(4)), {'time_steps': T}),
    'lif of terms': (cpng_jax.lif, ([of(T, B, 4), of(T, B, 4)], 1.0), {'tau': 1}),
    'lif of a stream': (cpng_jax.lif, (of(T, B, 4), 1.0), {'initial_state': of(B, 4), 'return_state': True}),
    'lif by channel': (cpng_jax.lif, (of(T, B, 4), of(4)), {'per_channel': True}),
    'potentials': (potentials, (of(T, B, 4),), {'v_th': of(4)}),
    'LIF': (LIF(), (of(T, B, 4),), {}),
    'LIF of a stream': (LIF(), (of(T, B, 4),), {'initial_state': of(B, 4), 'return_state': True}),
    'membrane_stats': (cpng_jax.membrane_stats, (of(T, B, 4),), {}),
    'membrane_stats by channel': (cpng_jax.membrane_stats, (of(T, B, 4), True), {}),
    'chi': (cpng_jax.chi, (stats(4), 1.0), {}),
    'chi of one layer': (cpng_jax.chi, (stats(), of(4)), {}),
    'chi of counts': (cpng_jax.chi, (distances(4), of(4)), {}),
    'beta_for_chi': (cpng_jax.beta_for_chi, (0.5, stats(2, 3)), {'v_th': of(3)}),
    'gain': (cpng_jax.gain, (stats(4), 1.0), MEASURED),
    'scale_for_gain': (cpng_jax.scale_for_gain, (1.0, stats(4), of(4)), MEASURED),
    'beta_for_gain': (cpng_jax.beta_for_gain, (1.0, stats(4)), MEASURED),
    'coherence': (cpng_jax.coherence, (stats(4), 2), {}),
    'beta_for_coherence': (cpng_jax.beta_for_coherence, (0.6, stats(4)), {}),
    'Conv': (Conv(6, stride=2), (of(T, B, H, H, 2),), {}),
    'Dense': (Dense(6), (of(T, B, 4),), {}),
    'TdBN': (TdBN(), (of(T, B, H, H, 2),), {'train': True}),
    'avg_pool': (cpng_jax.avg_pool, (of(T, B, H, H, 2), 2), {}),
    'mean_output_cross_entropy': (cpng_jax.mean_output_cross_entropy, (of(T, B, CLASSES), jnp.array([1, 2])), {}),
    'mean_output_cross_entropy of mixed labels': (
        cpng_jax.mean_output_cross_entropy,
        (of(T, B, CLASSES), of(B, CLASSES)),
        {},
    ),
    'TET': (temporal_efficient_training, (of(T, B, CLASSES), jnp.array([1, 2])), {'weight': 0.1, 'target': 1}),
    'network_input': (cpng_jax.network_input, (IMAGES, [0.5, 0.5], [0.2, 0.2]), {}),
    'network_input of events': (
        cpng_jax.network_input,
        (np.zeros((B, T, H, H, 2), np.uint8), [0.5, 0.5], [0.2, 0.2]),
        {},
    ),
    'VGG': (VGG(CLASSES, stages=((2,),), head=(3,)), (of(B, H, H, 2),), {}),
    'VGG of events': (VGG(CLASSES, stages=(), head=(3,)), (of(T, B, H, H, 2),), {'train': True}),
}

# What they exclude: the arguments that are not as annotated, and the calls, which raise an error that says so.
EXCLUDED = {
    'spike of integers': (['u'], cpng_jax.spike, (jnp.ones(4, int), 1.0), {}),
    'beta of another shape': (['beta'], cpng_jax.spike, (of(B, 4), of(3)), {}),
    'beta of more axes': (['beta'], cpng_jax.spike, (of(4), of(B, 4)), {}),
    'threshold of another shape': (['v_th'], cpng_jax.spike, (of(B, 4), 1.0, of(3)), {}),
    'height of another shape': (['scale'], cpng_jax.spike, (of(B, 4), 1.0), {'scale': of(3)}),
    'currents of integers': (['currents'], cpng_jax.lif, (jnp.ones((T, 4), int), 1.0), {}),
    'a number for currents': (['currents'], cpng_jax.lif, (1.0, 1.0), {}),
    'beta by neurons that are not': (['beta'], cpng_jax.lif, (of(T, B, 4), of(3)), {}),
    'state of integers': (['initial_state'], cpng_jax.lif, (of(T, 4), 1.0), {'initial_state': jnp.ones(4, int)}),
    'state of another shape': (['initial_state'], LIF(), (of(T, B, 4),), {'initial_state': of(B, 3)}),
    'threshold of other layers': (['v_th'], cpng_jax.chi, (stats(4), of(4)), {'v_th': of(3)}),
    'no map': (['x'], Conv(6), (of(B, H, H, 2),), {}),
    'no time': (['x'], Dense(6), (of(B, 4),), {}),
    'pool of no map': (['x'], cpng_jax.avg_pool, (of(B, H, H, 2), 2), {}),
    'logits averaged before': (['logits'], cpng_jax.mean_output_cross_entropy, (of(B, 4), jnp.array([1, 2])), {}),
    'other examples': (['labels'], cpng_jax.mean_output_cross_entropy, (of(T, B, 4), jnp.arange(3)), {}),
    'other classes': (['labels'], cpng_jax.mean_output_cross_entropy, (of(T, B, 4), of(B, 5)), {}),
    'images of bytes': (['x'], VGG(CLASSES, stages=((2,),)), (IMAGES,), {}),
    'images of one axis': (['x'], VGG(CLASSES, stages=((2,),)), (of(B, 4),), {}),
}


def public() -> dict[str, Any]:
    """What `cpng_jax` offers to call with arrays: functions, and the calls of its modules."""
    offered = {name: getattr(cpng_jax, name) for name in cpng_jax.__all__}
    functions = {name: each for name, each in offered.items() if isinstance(each, types.FunctionType)}
    modules = {
        name: each.__call__ for name, each in offered.items() if isinstance(each, type) and issubclass(each, nn.Module)
    }
    return {name: inspect.unwrap(each) for name, each in {**functions, **modules}.items()}


def bare(hint: Any) -> bool:
    """Whether an annotation holds an array of which nothing is said."""
    return hint in (jax.Array, np.ndarray) or any(map(bare, typing.get_args(hint)))


def test_every_public_function_says_what_its_arrays_are():
    of_arrays = {
        name: call
        for name, call in public().items()
        if any('jaxtyping' in repr(h) for h in typing.get_type_hints(call).values())
    }
    without = {
        name: [key for key, hint in typing.get_type_hints(call).items() if bare(hint)]
        for name, call in public().items()
    }
    assert {name: keys for name, keys in without.items() if keys} == {'network_input': ['mean', 'std']}  # statistics
    assert of_arrays.keys() == public().keys() - {'card', 'load', 'like_beta'}  # names; pytrees
    assert {declared(target) for target, *_ in ALLOWED.values()} >= {*of_arrays.values()}


@pytest.mark.parametrize('name', ALLOWED)
def test_annotations_hold(name):
    target, args, kwargs = ALLOWED[name]
    assert untrue(target, *args, **kwargs) == []


@pytest.mark.parametrize('name', EXCLUDED)
def test_what_annotations_exclude_is_refused(name):
    wrong, target, args, kwargs = EXCLUDED[name]
    hints = typing.get_type_hints(declared(target))
    with jaxtyping.jaxtyped('context'):
        values = given_to(target, *args, **kwargs)
        found = [name for name, value in values.items() if not is_bearable(value, hints[name])]
    assert found == wrong
    with pytest.raises((TypeError, ValueError)):
        run(target, *args, **kwargs)


@pytest.mark.parametrize('transform', [jax.jit, jax.vmap, jax.checkpoint, jax.grad])
def test_annotations_hold_of_traced_arrays(transform):
    seen = []

    def loss(currents):
        seen.append(untrue(cpng_jax.lif, currents, 1.0, initial_state=currents[0], return_state=True))
        seen.append(untrue(LIF(), currents))
        return jnp.sum(cpng_jax.lif(currents, 1.0)[0])

    transform(loss)(of(2, T, B, 4))
    assert seen
    assert not any(seen)


@settings(max_examples=30)
@given(st.lists(FEW, max_size=3), FEW, st.booleans())
def test_shapes_of_any_rank(neurons, steps, state):
    last, more = neurons[-1:], {'initial_state': of(*neurons), 'return_state': True} if state else {}

    def all_of_them(currents, u, beta, layers):
        assert untrue(cpng_jax.lif, currents, beta, **more) == []
        assert untrue(cpng_jax.spike, u, beta) == []
        assert untrue(cpng_jax.chi, layers, beta) == []

    # Traced alone: each shape would be compiled.
    jax.eval_shape(all_of_them, of(steps, *neurons), of(*neurons), of(*last), stats(*neurons))


def test_a_wrong_result_is_found():
    matrix = jaxtyping.Float[jax.Array, 'rows columns']

    def halves(x: matrix) -> matrix:
        return x[:, ::2]

    assert untrue(halves, of(2, 4)) == ['return']
    assert [*untrue_fields(MembraneStats(of(2), of(3)))] == ['variance']
