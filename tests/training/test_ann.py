"""Runs of ANNs: the same network with neurons that answer with real numbers; what only spikes have is absent."""

import math

import jax
import numpy as np
import pytest

from cpng_jax.analysis import report
from cpng_jax.analysis.run import Run, check_spikes
from cpng_jax.experiments import grid
from cpng_jax.models.summary import summarise
from cpng_jax.runtime import metrics
from cpng_jax.runtime.config import validate
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import keys
from cpng_jax.training.activity import activity
from cpng_jax.training.evaluate import restore
from cpng_jax.training.setup import build
from tests.runs import run_shared, run_with_pictures


@pytest.fixture(scope='module', params=['relu', 'qcfs'])
def run(request, shrink, tmp_path_factory):
    """A finished run of an ANN: its configuration, its folder, what it returned."""
    from configs import digits

    config = shrink(digits.get_config())
    config.neuron.kind, config.model.time_steps = request.param, 1
    workdir = tmp_path_factory.mktemp(request.param)
    return config, workdir, run_with_pictures(config, workdir)


def test_it_learns_and_is_evaluated_and_goes_on(run):
    config, workdir, result = run
    assert result['test_accuracy'] > 0.5
    assert run_shared(config, workdir, 'eval')['test_accuracy'] == result['test_accuracy']
    assert run_shared(config, workdir) == result  # which is finished


def test_what_spikes_alone_have_is_absent(run):
    config, workdir, _ = run
    spiking = {'beta', 'scale', 'chi', 'gain', 'firing_rate', 'chi_min', 'skipped', 'chi_limit', 'beta_init'}
    for row in metrics.read_epochs(workdir):
        assert not spiking & row.keys()
    assert [path.name for path in (workdir / 'plots').iterdir()] == ['accuracy_and_loss.png']
    measured = grid.measured(workdir)
    assert all(math.isnan(measured[f'{what}_mean']) for what in ('beta', 'scale', 'chi', 'gain'))
    setup = build(config)
    found = activity(setup, restore(setup, workdir))
    assert found.firing_rate is found.operations is None
    assert found.multiply_adds == summarise(setup.model, setup.example).multiply_adds
    shown = str(summarise(setup.model, setup.example))
    assert 'spiking' not in shown and 'analog' in shown


def test_the_report_has_no_empty_columns(run):
    _, workdir, _ = run
    (page,) = report.analyse(Run(workdir))
    text = page.read_text()
    assert 'an ANN' in text and 'χ median' not in text


def test_no_spikes_are_measured(run):
    config, workdir, _ = run
    with pytest.raises(UserError, match=f'neuron.kind={config.neuron.kind}, an ANN, which has no spikes for chi'):
        check_spikes(Run(workdir), ['chi'], ['report'])
    check_spikes(Run(workdir), [], ['report'])


def test_an_ann_answers_once(tiny_config):
    tiny_config.neuron.kind = 'relu'
    with pytest.raises(UserError, match=r'config\.model\.time_steps is 2, expected 1'):
        build(tiny_config)


@pytest.mark.parametrize(('key', 'value'), [('neuron.tau', 0.25), ('cpng.rule', 'gain'), ('neuron.levels', 8)])
def test_keys_of_spikes_have_no_effect(tiny_config, tmp_path, key, value):
    tiny_config.neuron.kind, tiny_config.model.time_steps = 'relu', 1
    with tiny_config.unlocked():
        tiny_config.update_from_flattened_dict({key: value})
    validate(tiny_config, keys.table())
    with pytest.raises(UserError, match=f'config.{key} is .*, which has no effect with config.neuron.kind'):
        run_shared(tiny_config, tmp_path)


def test_activity_is_the_mean_over_all_neurons(tiny_config, tmp_path):
    setup = build(tiny_config)
    state = setup.initial_state()
    found = activity(setup, state, images=8)
    images = setup.prepare(np.stack([setup.dataset.test[i]['image'] for i in range(8)]))
    _, seen = setup.model.apply(state.variables, images, mutable=['firing_rate', 'potentials'])
    spikes = [np.asarray(leaf) >= 1.0 for leaf in jax.tree.leaves(seen['potentials'])]
    assert found.firing_rate == pytest.approx(sum(map(np.sum, spikes)) / sum(map(np.size, spikes)), rel=1e-5)
    assert 0 < found.operations < found.multiply_adds
