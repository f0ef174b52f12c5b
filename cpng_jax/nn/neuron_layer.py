"""Leaky integrate-and-fire neurons as a linen module, with the width and the height of their surrogate gradient."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast, overload

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from cpng_jax.nn import time_loop
from cpng_jax.nn.currents import Currents, as_kept, as_state, as_terms, currents_stats, number_of_steps, stats_by_norm
from cpng_jax.nn.neuron import as_arrays, run_layer
from cpng_jax.nn.scheduling import after
from cpng_jax.nn.statistics import MembraneDistances, MembraneStats, firing_rate
from cpng_jax.nn.surrogate import Array, ArrayLike, Surrogate, get_surrogate
from cpng_jax.nn.terms import Normalised, Terms
from cpng_jax.nn.time_loop import Neurons, Parameters

# Name of the parameter that a learnt decay is the sigmoid of.
DECAY = 'decay'


class LIF(nn.Module):
    """A layer of LIF neurons with a surrogate gradient of its own width and height.

    The width is the variable `beta` of the mutable collection `surrogate`, float32, a scalar or one for each channel;
    the height is a factor, `scale`, of that shape, in the mutable collection `scale`, and `scale_init` where a network
    is applied without that collection.
    When the collections `membrane`, `currents`, `distances` and `firing_rate` are mutable, the layer writes there the
    `MembraneStats` of its potentials, those of its currents, its `MembraneDistances`, which are counted only then, and
    the share of neurons and time steps that spiked; when `potentials` is, all potentials before the reset,
    `[T, B, ...]`. Each is a variable by the name of its collection, next to where `beta` is in `surrogate`, so that
    NNX, where all are attributes of one object, can tell them apart. `cpng.update` takes such a collection as it is;
    `like_beta` puts its leaves in the place of the betas, for `jax.tree.map`.

    When the collection `probes` is mutable the layer makes `probe_currents` and `probe_spikes` there, zeros that it
    adds to its currents and to its spikes: the gradient of a loss by them is its gradient by the currents and spikes.

    Give every activation a LIF of its own: two activations that share one would share one beta.

    Attributes:
      tau: decay of the membrane potential per time step; 1 is integrate-and-fire.
      v_th: threshold.
      surrogate: 'triangular', 'rectangular', 'arctan', 'dspike' or a `Surrogate`.
      beta_init: width at initialisation.
      detach_reset: drop the gradient through the reset.
      implementation: 'auto', 'scan' or 'pallas', see `lif`.
      per_channel: a width and `MembraneStats` for each channel, the last axis, instead of for the layer.
      learn_tau: learn the decay: it is the sigmoid of the parameter `decay`, a float32 scalar, and starts at `tau`.
      scale_init: height at initialisation, as a factor of the surrogate gradient.
    """

    tau: float = 0.5
    v_th: float = 1.0
    surrogate: str | Surrogate = 'triangular'
    beta_init: float = 1.0
    detach_reset: bool = False
    implementation: str = 'scan'
    per_channel: bool = False
    learn_tau: bool = False
    scale_init: float = 1.0

    # What its answers are whole multiples of, see `layers.Conv.packed`.
    unit: ClassVar[float | None] = 1.0

    @overload
    def __call__(
        self,
        currents: Currents,
        time_steps: int | None = None,
        *,
        initial_state: Float[ArrayLike, '*neurons'] | None = None,
        return_state: Literal[False] = False,
    ) -> Float[Array, 'T *neurons']: ...
    @overload
    def __call__(
        self,
        currents: Currents,
        time_steps: int | None = None,
        *,
        initial_state: Float[ArrayLike, '*neurons'] | None = None,
        return_state: Literal[True],
    ) -> tuple[Float[Array, 'T *neurons'], Float[Array, '*neurons']]: ...
    @nn.compact
    def __call__(
        self,
        currents: Currents,
        time_steps: int | None = None,
        *,
        initial_state: Float[ArrayLike, '*neurons'] | None = None,
        return_state: bool = False,
    ) -> Float[Array, 'T *neurons'] | tuple[Float[Array, 'T *neurons'], Float[Array, '*neurons']]:
        """Computes the spikes of the layer.

        Args:
          currents: pre-synaptic, `[T, B, ...]`, or `[1, B, ...]` where they are the same at each of `time_steps`; or
            `Normalised`, as `TdBN.deferred` gives it, or `Whole`; or a sequence of such terms, which are added.
          time_steps: T, if it is not that of `currents`.
          initial_state: what the reset has left of the membrane potentials before the first step, `[B, ...]`: the state
            that the chunk of a stream before this one returned; 0 if not given.
          return_state: also return the state after the last step.

        Returns:
          Spikes `[T, B, ...]`, in the dtype of `currents`; with `return_state` `(spikes, state)`, the state `[B, ...]`
          in at least float32.
        """
        terms = self.probed(as_terms(currents))
        parameters = Parameters(self.width(terms), self.decay(), self.v_th, self.height(terms))
        known = stats_by_norm(currents, terms, self.per_channel) if self.measures('currents') else None
        neurons = Neurons(
            get_surrogate(self.surrogate),
            self.detach_reset,
            number_of_steps(terms, time_steps),
            count=self.measures('distances'),
            per_channel=self.per_channel,
            currents=self.measures('currents') and known is None,
            rate=self.measures('firing_rate'),
            kept=as_kept(currents, terms),
        )
        state, streams = as_state(initial_state, terms), return_state or initial_state is not None
        ran = run_layer(terms, parameters, neurons, self.implementation, state, streams=streams)
        u = lambda: time_loop.potentials(terms, as_arrays(parameters, terms), neurons, state)
        self.report(ran.rate, ran.stats, ran.distances, known or ran.currents, u)
        spikes = self.probe('probe_spikes', ran.spikes)
        return (spikes, cast(Array, ran.state)) if return_state else spikes

    # Helpers are not methods that Flax wraps: whoever captures the values of methods has the spikes alone.

    @nn.nowrap
    def decay(self) -> ArrayLike:
        """The decay of the membrane potential: `tau`, or what has been learnt."""
        if not self.learn_tau:
            return self.tau
        if not 0 < self.tau < 1:
            raise ValueError(f'tau must lie strictly between 0 and 1 to be learnt, got {self.tau}.')
        logit = math.log(self.tau / (1 - self.tau))
        return nn.sigmoid(self.param(DECAY, nn.initializers.constant(logit), (), jnp.float32))

    @nn.nowrap
    def width(self, terms: Terms) -> Array:
        """The width parameter beta, a scalar or one for each channel of the currents."""
        if not self.beta_init > 0:
            raise ValueError(f'beta_init must be greater than 0, got {self.beta_init}.')
        shape = terms[0].shape[-1:] if self.per_channel else ()
        return self.variable('surrogate', 'beta', lambda: jnp.full(shape, self.beta_init, jnp.float32)).value

    @nn.nowrap
    def height(self, terms: Terms) -> Array:
        """The factor of the surrogate gradient, of the shape of `width`."""
        if not self.scale_init > 0:
            raise ValueError(f'scale_init must be greater than 0, got {self.scale_init}.')
        initial = lambda: jnp.full(terms[0].shape[-1:] if self.per_channel else (), self.scale_init, jnp.float32)
        # Those who know of beta alone, or have weights from before there was a height, need not hand one in.
        if not (self.has_variable('scale', 'scale') or self.is_mutable_collection('scale')):
            return initial()
        return self.variable('scale', 'scale', initial).value

    @nn.nowrap
    def measures(self, collection: str) -> bool:
        """Whether what belongs into a collection is asked for."""
        return self.is_mutable_collection(collection) and not self.is_initializing()

    @nn.nowrap
    def of_currents(self, currents: Currents, terms: Terms) -> MembraneStats | None:
        """Mean and variance of the currents, where they are asked for."""
        return currents_stats(currents, terms, self.per_channel) if self.measures('currents') else None

    @nn.nowrap
    def probe(self, name: str, x: Array) -> Array:
        """Adds zeros that a gradient can be taken by, where the collection `probes` is asked for."""
        if not (self.measures('probes') or self.has_variable('probes', name)):
            return x
        return x + self.variable('probes', name, jnp.zeros_like, x).value

    @nn.nowrap
    def probed(self, terms: Terms) -> Terms:
        """The terms of the currents, with the probe as one more where it is asked for."""
        zeros = jnp.zeros_like(terms[0].values)
        probe = self.probe('probe_currents', zeros)
        return terms if probe is zeros else (*terms, Normalised(probe, None))

    @nn.nowrap
    def rate(self, spikes: Array) -> Array | None:
        """The share of spikes, where it is asked for."""
        return firing_rate(spikes, self.per_channel) if self.measures('firing_rate') else None

    @nn.nowrap
    def report(
        self,
        rate: Array | None,
        stats: MembraneStats,
        distances: MembraneDistances | None,
        currents: MembraneStats | None,
        u: Callable[[], Array],
    ) -> dict[str, Any]:
        """Writes what is asked for into the collections of measurements, and returns it by their names.

        `u` computes the potentials.
        """
        asked: dict[str, Any] = {}
        if self.measures('membrane'):
            asked['membrane'] = stats
        if distances is not None:
            asked['distances'] = distances
        if currents is not None:
            asked['currents'] = currents
        if rate is not None:
            asked['firing_rate'] = rate
        for name, value in asked.items():
            self.put_variable(name, name, value)
        if self.measures('potentials'):
            self.put_variable('potentials', 'potentials', u())
        return asked

    @nn.nowrap
    def answer(self, spikes: Array, reported: dict[str, Any]) -> Array:
        """What the layer hands on, once what it has reported is computed, with the probe where it is asked for."""
        return self.probe('probe_spikes', after(spikes, reported))
