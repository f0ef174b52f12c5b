"""What an inference costs by its spikes, and what the ANN of the same shape would: is it less at all?

Spikes are measured on test images, with the network as in the evaluation. `operations` counts, `energy_model` has the
energies of 45 nm, and the memory traffic by three models between which dataflows lie: without it a comparison flatters
spikes (Dampfhoffer et al., "Are SNNs really more energy-efficient than ANNs?", IEEE TETCI 2023; Yan et al., 2024,
arXiv:2409.08290).
"""

import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cpng_jax.analysis import energy_model, operations
from cpng_jax.analysis.compared import check_options, spread_examples
from cpng_jax.analysis.energy_model import MEMORIES, Comparison, Constants, Energy, Layer
from cpng_jax.analysis.run import Run
from cpng_jax.models.blocks import unit_of
from cpng_jax.nn.kinds import KINDS
from cpng_jax.runtime import plots, tables
from cpng_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DEFAULT = Constants()
# Short names of arithmetic alone and of the memory models.
_SHORT = {
    None: 'arithmetic alone',
    'inference': 'with memory, each array once an image',
    'step': 'with memory, each array once a step',
    'operation': 'with memory, without reuse',
}
_MICRO = 1e-6  # pJ in µJ
_PARTS = {
    'multiply-adds': plots.QUIET,
    'accumulates': plots.ACCENT,
    'neurons': '#e9b44c',
    'weights': '#4f6d7a',
    'potentials': '#7a9e7e',
    'activations, spikes': '#c9c5ba',
}
_NOTE = (
    'For one image, the mean of {images} test images. Counts: an accumulate is a spike times an output that it '
    'reaches; a spike below an average pool is one of the weights behind it, divided by the window. Real-valued inputs '
    'are multiplied: a static image once for all time steps, of events the pixels that hold any. Norms are folded into '
    'weights and biases. A neuron costs a multiply-add a step, without a leak an addition. Pools, shortcuts, resets '
    'and comparisons are left out on both sides. ANN: the same layers with ReLU, one pass, no zero skipped; of events, '
    'the sum of the frames. An ANN that skips zeros would need the arithmetic of this SNN if {density} of its '
    'activations were not zero; how many would be is not known here, nor how well it would do.'
)
_CONSTANTS = (
    'Energies: 45 nm, 0.9 V (Horowitz, ISSCC 2014) unless an option says otherwise: multiply-add {mac:g} pJ, addition '
    '{ac:g} pJ; 64 bits in SRAM of 8 KiB {sram_8kb:g}, of 32 KiB {sram_32kb:g}, of 1 MiB {sram_1mb:g}, in DRAM '
    '{dram:g} pJ, an array in the smallest that holds it. Weights, potentials and activations have {bits} bits, a '
    'spike has one. Memory: {memories}. Addresses of events, control, leakage and the way between cores are left out.'
)


def analyse(
    run: Run,
    *,
    images: int = 256,
    mac: float = _DEFAULT.mac,
    ac: float = _DEFAULT.ac,
    bits: int = _DEFAULT.bits,
    sram_8kb: float = _DEFAULT.sram_8kb,
    sram_32kb: float = _DEFAULT.sram_32kb,
    sram_1mb: float = _DEFAULT.sram_1mb,
    dram: float = _DEFAULT.dram,
) -> list[pathlib.Path]:
    """Counts the operations of a run by its spikes, and compares their energy with that of the ANN of the same shape.

    Args:
      run: with a checkpoint, and its data at hand.
      images: of the test split, at even distances; all of them, if they are fewer.
      mac: pJ of a multiply-add.
      ac: pJ of an accumulate.
      bits: of a weight, a potential and an activation.
      sram_8kb: pJ of an access of 64 bits where an array has up to 8 KiB.
      sram_32kb: up to 32 KiB.
      sram_1mb: up to 1 MiB.
      dram: more.

    Returns:
      `energy.png`, `energy.csv` and `energy.md`.

    Raises:
      UserError: there is no run or no checkpoint, the data or matplotlib are missing, or an option is out of range.
    """
    constants = Constants(mac, ac, bits, sram_8kb, sram_32kb, sram_1mb, dram)
    check_options(images=(images, 1), bits=(bits, 1))
    for name, value in constants._asdict().items():
        if not 0 <= value < math.inf:
            raise UserError(f'{name} is {value:g}, expected a finite number of at least 0.')
    plots.new_figure(1, 1)  # Raises without matplotlib, before the counting takes its time.
    kind = run.config.neuron.kind
    if unit_of(KINDS[kind].module) is None:
        raise UserError(
            f'config.neuron.kind of the run is {kind}, whose neurons answer with their threshold: energy counts spikes '
            'of size 1 alone.'
        )
    examples = spread_examples(run.setup.dataset, 'test', images)
    layers = operations.count(run.setup.model, run.state.variables, run.setup.prepare, examples.images)
    found = {memory: energy_model.compare(layers, constants, memory) for memory in _SHORT}
    return [
        _picture(run, layers, constants, found, run.folder / 'energy.png'),
        *tables.write(
            run.folder / 'energy',
            by_layer(layers, constants),
            title='Energy of an inference: is it less at all?',
            note=_note(run, layers, constants, found, len(examples)),
        ),
    ]


def by_layer(layers: Sequence[Layer], constants: Constants) -> list[dict[str, tables.Value]]:
    """Lists counts and energies of each layer, and of all.

    Args:
      layers: of a network.
      constants: energies.

    Returns:
      Rows of a table, energies in µJ.
    """
    rows: list[dict[str, Any]] = []
    for layer in layers:
        snn, ann = energy_model.of_snn(layer, constants), energy_model.of_ann(layer, constants)
        row: dict[str, Any] = {
            'layer': layer.name,
            'firing rate': energy_model.firing_rate([layer]) if layer.spiking else None,
            'multiply-adds': layer.macs,
            'accumulates': layer.acs,
            'neuron updates': layer.neurons * layer.time_steps,
            'arithmetic, µJ': snn.arithmetic * _MICRO,
        }
        row |= {f'memory by {memory}, µJ': sum(snn.memory[memory]) * _MICRO for memory in MEMORIES}
        row |= {'ANN: multiply-adds': layer.ann_macs, 'ANN: arithmetic, µJ': ann.arithmetic * _MICRO}
        # One pass: once an image is once a step.
        row |= {f'ANN: memory by {name}, µJ': sum(ann.memory[name]) * _MICRO for name in ('inference', 'operation')}
        rows.append(row)
    total = {name: sum(row[name] for row in rows) for name in rows[0] if name not in ('layer', 'firing rate')}
    return [*rows, {'layer': 'all', 'firing rate': energy_model.firing_rate(layers), **total}]


def in_words(ratio: float) -> str:
    """Says how much less or more the SNN needs, from the energy of the ANN divided by its own."""
    if 0.95 < ratio < 1.05:
        return 'as much'
    return f'{ratio:.1f} times less' if ratio > 1 else f'{1 / ratio:.1f} times more' if ratio > 0 else 'more'


def verdict(found: dict[str | None, Comparison], rate: float) -> str:
    """Answers whether it is less at all.

    Args:
      found: the comparison of arithmetic alone, under None, and with each of `MEMORIES`.
      rate: firing rate that was measured.

    Returns:
      Two sentences.
    """
    alone = found[None]
    with_memory = ', '.join(
        f'{in_words(found[memory].ratio)} {text}'
        for memory, text in (
            ('inference', 'where each array passes once an image'),
            ('step', 'where it passes once a time step'),
            ('operation', 'where nothing is reused'),
        )
    )
    return (
        f'The arithmetic of an image takes {alone.snn * _MICRO:.4g} µJ, that of the ANN of the same shape '
        f'{alone.ann * _MICRO:.4g} µJ: the SNN needs {in_words(alone.ratio)}. With the memory traffic it needs '
        f'{with_memory}. {rate:.1%} of neurons and time steps spike.'
    )


def break_even(comparison: Comparison, rate: float) -> str:
    """Says at which firing rate both networks would need the same, if all layers fired more or less by one factor.

    Args:
      comparison: of both.
      rate: firing rate that was measured.

    Returns:
      A percentage, or 'none' or 'any' where no rate from 0 to 1 is it.
    """
    if comparison.factor < 0:
        return 'none: the ANN needs less without a spike'
    even = comparison.factor * rate if math.isfinite(comparison.factor) else math.inf
    return f'{even:.1%}' if even <= 1 else 'any: the SNN needs less'


def _note(
    run: Run, layers: Sequence[Layer], constants: Constants, found: dict[str | None, Comparison], images: int
) -> str:
    """The verdict, the totals as a table, and what was counted how."""
    rate, density = energy_model.firing_rate(layers), energy_model.density_at_break_even(layers, constants)
    totals = [
        {
            'what counts': name,
            'SNN, µJ': found[memory].snn * _MICRO,
            'ANN, µJ': found[memory].ann * _MICRO,
            'the SNN needs': in_words(found[memory].ratio),
            'even at a firing rate of': break_even(found[memory], rate),
        }
        for memory, name in _SHORT.items()
    ]
    counted = _NOTE.format(images=images, density=f'{density:.1%}' if 0 <= density <= 1 else 'no share')
    memories = '; '.join(f'by {name}, {text}' for name, text in MEMORIES.items())
    paragraphs = [
        f'{run.title()}, {run.checkpoint} checkpoint. {verdict(found, rate)}',
        tables.to_markdown(totals).strip(),
        counted,
        _CONSTANTS.format(**constants._asdict(), memories=memories),
    ]
    return '\n\n'.join(paragraphs)


def _picture(
    run: Run,
    layers: Sequence[Layer],
    constants: Constants,
    found: dict[str | None, Comparison],
    path: pathlib.Path,
) -> pathlib.Path:
    """Draws the arithmetic of each layer, and below it the totals with and without memory."""
    from matplotlib.patches import Patch

    names = [layer.name for layer in layers]
    upright = len(names) > 8
    # Names stand below the upper half: room for the longest.
    room = 0.07 * max(map(len, names)) if upright and len(names) <= plots.MOST_NAMES else 0.2
    figure = plots.new_figure(min(max(8.4, 0.42 * len(names) + 2), 14), 6 + room)
    upper, lower = cast(Any, figure.subfigures(2, 1, height_ratios=(3 + room, 3)))
    energies = [(energy_model.of_snn(each, constants), energy_model.of_ann(each, constants)) for each in layers]
    axes = upper.subplots()
    for place, pair in enumerate(energies):
        for side, energy in zip((-0.2, 0.2), pair, strict=True):
            _stack(axes, place + side, _parts([energy], None), 0.38, hatched=side > 0)
    if len(names) <= plots.MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0, fontsize=8)
    else:
        axes.set_xlabel('depth of the layer')
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_ylabel('arithmetic [µJ]')
    axes.set_title('By layer, left the SNN, right (hatched) the ANN of the same shape', fontsize=9)
    plots.tidy(axes)
    axes.grid(axis='x', visible=False)
    for axes, (memory, name) in zip(lower.subplots(1, len(_SHORT)), _SHORT.items(), strict=True):
        for side in (0, 1):
            _stack(axes, side, _parts([pair[side] for pair in energies], memory), 0.7, hatched=side > 0)
        axes.set_xticks([0, 1], ['SNN', 'ANN'])
        axes.set_xlim(-0.6, 1.6)
        lines = [*name.split(', '), in_words(found[memory].ratio)]
        axes.set_title('\n'.join(lines), fontsize=8)
        axes.tick_params(labelsize=8)
        plots.tidy(axes)
        axes.grid(axis='x', visible=False)
    lower.supylabel('energy of an image [µJ]', fontsize=9)
    handles = [Patch(color=colour, label=name) for name, colour in _PARTS.items()]
    figure.legend(handles=handles, loc='outside lower center', ncols=len(handles), frameon=False, fontsize=8)
    figure.suptitle(f'Energy of an inference, {run.title()}', fontsize=11)
    return plots.save(figure, path)


def _parts(energies: Sequence[Energy], memory: str | None) -> list[float]:
    """Energies by `_PARTS`, µJ, summed over layers."""
    arithmetic = np.array([each[:3] for each in energies])
    traffic = np.array([(0.0,) * 3 if memory is None else each.memory[memory] for each in energies])
    return [*(_MICRO * arithmetic.sum(axis=0)), *(_MICRO * traffic.sum(axis=0))]


def _stack(axes: 'Axes', place: float, parts: Sequence[float], width: float, *, hatched: bool) -> None:
    """Draws a bar of parts, one on top of the other."""
    bottom = 0.0
    for part, colour in zip(parts, _PARTS.values(), strict=True):
        if not part:
            continue  # of no height it would still hold the axis to where it stands
        hatch = {'hatch': '////', 'edgecolor': 'white', 'linewidth': 0} if hatched else {}
        axes.bar(place, part, width, bottom, color=colour, zorder=2.5, **hatch)
        bottom += part
