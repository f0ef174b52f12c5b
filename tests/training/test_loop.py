"""The program as a whole: training, stopping, being killed, going on, evaluating."""

import itertools
import json
import pathlib
import shutil
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpng_jax.control.gradient_gain import gain
from cpng_jax.nn.statistics import MembraneStats
from cpng_jax.runtime import sharding
from cpng_jax.runtime.checkpoint import Checkpoints
from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.signals import Stopped
from cpng_jax.training import loop, setup
from cpng_jax.training.setup import build
from tests.runs import assert_bitwise_equal, epoch_rows, final_state, run_shared, start, stopped_at, wait_for_checkpoint

STEPS = 33


@pytest.mark.trains
def test_a_run_leaves_what_it_promises(undisturbed, tiny_config):
    workdir, result = undisturbed
    assert json.loads((workdir / 'config.json').read_text()) == json.loads(tiny_config.to_json())
    assert json.loads((workdir / 'environment.json').read_text())
    assert list((workdir / 'tensorboard').iterdir())
    pictures = {'accuracy_and_loss.png', 'chi.png', 'beta.png', 'gain.png'}
    assert {path.name for path in (workdir / 'plots').iterdir()} == pictures
    rows = epoch_rows(workdir)
    assert [row['step'] for row in rows] == [11, 22, 33]
    assert [row['epoch'] for row in rows] == [1, 2, 3]
    assert result['step'] == STEPS
    assert result['test_accuracy'] == rows[-1]['test_accuracy']
    assert result['best_accuracy'] == max(row['test_accuracy'] for row in rows)
    for row in rows:
        assert list(row['beta']) == ['conv01/lif', 'conv02/lif']
        assert all(0 < value < 1 for value in row['chi'].values())
        assert all(0 < value < 1 for value in row['firing_rate'].values())
        assert set(row['scale'].values()) == {1.0}
        assert all(value > 0 for value in row['gain'].values())
        assert row['train_loss'] > 0
    assert rows[-1]['train_loss'] < rows[0]['train_loss']
    # The first call of Algorithm 1 only records.
    assert set(rows[0]['beta'].values()) == {1.0}
    assert rows[0]['chi_min'] == rows[0]['chi']


@pytest.mark.trains
def test_a_finished_run_is_not_trained_again(undisturbed, tiny_config, capsys):
    workdir, result = undisturbed
    before = epoch_rows(workdir)
    again = run_shared(tiny_config, workdir)
    assert again == result
    assert epoch_rows(workdir) == before
    assert 'is finished' in capsys.readouterr().out


@pytest.mark.trains
@pytest.mark.parametrize('batch_size', [1000, 100, 7])
def test_evaluation_counts_each_test_image_once(undisturbed, tiny_config, batch_size, capsys):
    workdir, result = undisturbed
    tiny_config.eval.batch_size = batch_size
    measured = run_shared(tiny_config, workdir, 'eval')
    assert measured['examples'] == 360
    assert measured['step'] == STEPS
    assert measured['test_accuracy'] == pytest.approx(result['test_accuracy'], abs=1e-9)
    assert f'({measured["correct"]} of 360)' in capsys.readouterr().out


@pytest.mark.trains
def test_the_summary_of_a_trained_network_counts_what_its_spikes_cost(undisturbed, tiny_config, capsys):
    workdir, _ = undisturbed
    loop.run(tiny_config, workdir, 'summary')
    text = capsys.readouterr().out
    # The first convolution sees an image, all of whose pixels count; the second sees spikes, few of which are 1.
    rows = [line.split() for line in text.splitlines()[1:-2]]
    costs = {row[0]: [int(cell.replace(',', '')) for cell in row[-2:]] for row in rows if row[1] in ('conv', 'dense')}
    assert list(costs) == ['conv01/conv', 'conv02/conv', 'output']
    assert costs['conv01/conv'][0] == costs['conv01/conv'][1] == 64 * 4 * 9
    assert 0 < costs['conv02/conv'][1] < 0.9 * costs['conv02/conv'][0]
    assert 'at most' not in text


@pytest.mark.trains
def test_the_summary_sees_into_blocks_that_the_backward_pass_computes_again(undisturbed, tiny_config, tmp_path, capsys):
    workdir, _ = undisturbed
    loop.run(tiny_config, workdir, 'summary')
    expected = capsys.readouterr().out
    tiny_config.remat = 'block'
    run = shutil.copytree(workdir, tmp_path / 'run')
    (run / 'config.json').write_text(tiny_config.to_json())
    loop.run(tiny_config, run, 'summary')
    assert capsys.readouterr().out == expected


@pytest.mark.trains
def test_the_best_checkpoint_can_be_evaluated(undisturbed, tiny_config):
    workdir, result = undisturbed
    tiny_config.eval.checkpoint = 'best'
    measured = run_shared(tiny_config, workdir, 'eval')
    assert measured['step'] == 11 * result['best_epoch']
    assert measured['test_accuracy'] == pytest.approx(result['best_accuracy'], abs=1e-9)


@pytest.mark.trains
@pytest.mark.parametrize(
    'options',
    [
        {'every': 'batch', 'statistics': 'epoch_mean'},
        {'rule': 'chi_gain', 'chi': 'counted', 'statistics': 'epoch_mean'},
        {'rule': 'cpng_gain', 'per': 'channel', 'every': 'batch'},
    ],
    ids=str,
)
def test_a_run_stopped_within_an_epoch_goes_on_bit_for_bit(tmp_path, tiny_config, options):
    tiny_config.cpng.update(options)
    tiny_config.epochs = 2
    built = build(tiny_config)
    loop.train(built, tmp_path / 'whole')

    with stopped_at(6), pytest.raises(Stopped, match='SIGTERM: saved at step 5'):
        loop.train(built, tmp_path / 'parts')
    loop.run(tiny_config, tmp_path / 'parts')  # built once more, as by a new process
    assert_bitwise_equal(final_state(tiny_config, tmp_path / 'whole'), final_state(tiny_config, tmp_path / 'parts'))
    assert epoch_rows(tmp_path / 'whole') == epoch_rows(tmp_path / 'parts')


@pytest.mark.trains
@pytest.mark.processes
def test_a_run_that_is_killed_goes_on_bit_for_bit(undisturbed, tmp_path, tiny_config):
    """SIGKILL at two moments, SIGINT at a third, then to the end: the weights of the run that nobody disturbed."""
    workdir = tmp_path / 'run'
    tiny_config.checkpoint.every_steps = 2
    tiny_config.data.threads = 2  # which `undisturbed` has none of
    for step in (2, 13):
        process = start(workdir, tiny_config)
        wait_for_checkpoint(process, workdir, step)
        process.kill()
        process.communicate()
    process = start(workdir, tiny_config)
    wait_for_checkpoint(process, workdir, 20)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode in (0, 130), error
    if process.returncode == 130:
        assert 'SIGINT: saved at step' in error
    process = start(workdir, tiny_config)
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert 'test accuracy: last' in out
    assert_bitwise_equal(final_state(tiny_config, undisturbed[0]), final_state(tiny_config, workdir))
    assert epoch_rows(workdir) == epoch_rows(undisturbed[0])


@pytest.mark.trains
def test_another_configuration_is_refused(undisturbed, tiny_config):
    tiny_config.cpng.chi_limit = 0.3
    for mode in loop.MODES:
        with pytest.raises(UserError, match=r'another configuration: cpng.chi_limit: 0.2 -> 0.3\.'):
            loop.run(tiny_config, undisturbed[0], mode)


@pytest.mark.trains
def test_divergence_stops_with_a_message_and_keeps_the_last_good_checkpoint(tmp_path, tiny_config):
    tiny_config.optim.learning_rate = 1e30
    tiny_config.optim.warmup_fraction = 0.0
    tiny_config.checkpoint.every_steps = 1
    with pytest.raises(UserError, match=r'Training diverged: .* became NaN or infinite by step \d+'):
        loop.run(tiny_config, tmp_path)
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(build(tiny_config).initial_state())
    checkpoints.close()
    if restored is not None:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored[0].params))


@pytest.mark.trains
def test_late_divergence_keeps_the_checkpoint_before(tmp_path, tiny_config, monkeypatch):
    good = setup.make_train_step

    def poisoned(*arguments, **options):
        step_function = good(*arguments, **options).__wrapped__

        def step(state, batch):
            state = step_function(state, batch)
            # A spike hides NaN: the loss stays finite, only the weights show it.
            factor = jnp.where(state.step == 15, jnp.nan, 1)
            return state.replace(params=jax.tree.map(lambda leaf: leaf * factor, state.params))

        return jax.jit(step)

    monkeypatch.setattr(setup, 'make_train_step', poisoned)
    tiny_config.checkpoint.every_steps = 5
    with pytest.raises(UserError, match=r'NaN or infinite by step 15. The checkpoint of step 11 is kept'):
        loop.run(tiny_config, tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps()[-1] == 11
    checkpoints.close()


@pytest.mark.trains
def test_bfloat16_learns_as_well_as_float32(tmp_path, tiny_config):
    """Two seeds each; the accuracies differ by less than seeds do."""
    tiny_config.update_from_flattened_dict({'data.per_class': 0, 'batch_size': 128, 'model.stages': ((8,), (16,))})
    tiny_config.epochs = tiny_config.checkpoint.every_epochs = 6
    accuracies = {}
    for dtype, seed in itertools.product(('float32', 'bfloat16'), range(2)):
        tiny_config.dtype, tiny_config.seed = dtype, seed
        workdir = tmp_path / f'{dtype}{seed}'
        accuracies.setdefault(dtype, []).append(run_shared(tiny_config, workdir)['test_accuracy'])
        rows = epoch_rows(workdir)
        assert len(rows) == 6
        assert all(np.isfinite([row['train_loss'], row['test_loss']]).all() for row in rows)
    wide, narrow = (np.array(values) for values in accuracies.values())
    assert wide.min() > 0.6
    assert abs(wide.mean() - narrow.mean()) < 0.03, accuracies


@pytest.mark.trains
def test_cpng_off_keeps_width_and_height_and_still_reports_chi(tmp_path, tiny_config):
    tiny_config.cpng.enabled = False
    tiny_config.cpng.beta_init, tiny_config.cpng.scale_init = 2.0, 0.5
    tiny_config.epochs = 2
    loop.run(tiny_config, tmp_path)
    for row in epoch_rows(tmp_path):
        assert set(row['beta'].values()) == {2.0}
        assert set(row['scale'].values()) == {0.5}
        assert all(0 < value < 1 for value in row['chi'].values())
        assert set(row['chi_min'].values()) == {None}


@pytest.mark.trains
@pytest.mark.parametrize('accumulate', [1, 2])
def test_the_heights_before_the_first_step_are_those_of_the_first_batch(tiny_config, accumulate):
    """Of its first part, where it is taken in parts: at these the gain is 1 by the potentials themselves."""
    tiny_config.update_from_flattened_dict({'cpng.rule': 'gain', 'optim.accumulate': accumulate, 'batch_size': 64})
    built = build(tiny_config)
    state = built.initial_state()
    with built.train_batches(first_step=0) as batches:
        batch = next(iter(batches))
    started = built.start(state, sharding.put_batch(batch, built.mesh))
    chex.assert_trees_all_equal(started.replace(scale=state.scale), state)
    images = built.prepare(batch['image'][::accumulate])
    _, seen = built.model.apply(state.variables, images, train=True, mutable=['batch_stats', 'potentials', 'currents'])
    for layer in ('conv01', 'conv02'):
        u = np.float64(seen['potentials'][layer]['lif']['potentials'])
        value = gain(
            MembraneStats(np.float32(u.mean()), np.float32(u.var())),
            1.0,
            started.scale[layer]['lif']['scale'],
            currents=seen['currents'][layer]['lif']['currents'].variance,
            firing_rate=(u >= 1).mean(),
            tau=tiny_config.neuron.tau,
            time_steps=2,
        )
        assert float(value) == pytest.approx(1, rel=1e-3)
        assert float(started.scale[layer]['lif']['scale']) != 1


@pytest.mark.trains
def test_the_height_at_the_start_is_a_factor_of_what_passes_back(tiny_config):
    tiny_config.model.stages, tiny_config.model.time_steps = ((4,),), 1
    gradients = {}
    for height in (1.0, 0.5):
        tiny_config.cpng.scale_init = height
        built = build(tiny_config)
        state, images = built.initial_state(), np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype(np.float32)

        def loss(params, built=built, state=state, images=images):
            return jnp.sum(built.model.apply({**state.variables, 'params': params}, images) ** 2)

        gradients[height] = jax.grad(loss)(state.params)
    below, above = (lambda tree: tree['conv01']), (lambda tree: tree['output'])
    assert any(np.any(leaf) for leaf in jax.tree.leaves(below(gradients[1.0])))
    chex.assert_trees_all_equal(below(gradients[0.5]), jax.tree.map(lambda leaf: leaf / 2, below(gradients[1.0])))
    chex.assert_trees_all_equal(above(gradients[0.5]), above(gradients[1.0]))


@pytest.mark.trains
def test_a_gain_that_is_off_is_said_once(tmp_path, tiny_config, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(loop, 'gain_warning', lambda row, cure: said.append(row['epoch']) or f'  off: {cure}')
    tiny_config.epochs = 2
    loop.run(tiny_config, tmp_path)
    assert said == [1]
    assert capsys.readouterr().out.splitlines().count('  off: config.cpng.rule=coherent_gain holds it at 1') == 1


@pytest.mark.trains
def test_chi_does_not_rise_above_the_recorder(undisturbed):
    rows = epoch_rows(undisturbed[0])
    assert any(value != 1.0 for value in rows[-1]['beta'].values())
    for before, after in itertools.pairwise(rows):
        for layer, smallest in after['chi_min'].items():
            assert smallest <= max(before['chi_min'][layer], 0.2) + 1e-6


@pytest.mark.trains
def test_the_mode_must_exist(tmp_path, tiny_config):
    with pytest.raises(UserError, match=r"--mode is 'test', expected one of train, eval"):
        loop.run(tiny_config, tmp_path, 'test')


@pytest.mark.trains
def test_eval_needs_a_checkpoint(tmp_path, tiny_config):
    with pytest.raises(UserError, match='train first'):
        loop.run(tiny_config, tmp_path / 'none', 'eval')
    assert not (tmp_path / 'none').exists()


@pytest.mark.trains
def test_a_workdir_that_cannot_be_written_is_one_sentence(tmp_path, tiny_config):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='Cannot write to the workdir'):
        loop.run(tiny_config, tmp_path / 'file')


def test_every_seed_starts_by_the_same_compiled_program(tiny_config):
    """So that a grid of seeds, or a second run, finds it among the programs that are kept."""
    kept = lambda: {path.name for path in pathlib.Path(jax.config.jax_compilation_cache_dir).glob('jit_fresh*-cache')}
    tiny_config.model.stages = ((3,), (5,))
    states, programs = [], []
    for seed in (0, 1):
        tiny_config.seed = seed
        states.append(build(tiny_config).initial_state())
        programs.append(kept())
    assert programs[0] and programs[0] == programs[1]
    assert not np.array_equal(*(jax.tree.leaves(state.params)[-1] for state in states))
