"""Programs that count, bytes kept for the backward pass against sums by hand, the plan against its formulas; starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import memory, plan, starts
from configs import digits
from cpng_jax.analysis.__main__ import ANALYSES
from cpng_jax.models.blocks import REMATS
from cpng_jax.models.summary import Layer, Summary
from cpng_jax.models.vgg import VGG
from cpng_jax.runtime.errors import UserError

pytestmark = pytest.mark.deep

T = 3
HEAD, CLASSES = 6 * 4 * 4, 5


def vgg(remat='none', time_steps=T):
    """Convolutions of 4 and 7 channels at 8 x 8, one of 6 at 4 x 4, and the linear layer."""
    return VGG(CLASSES, ((4, 7), (6,)), time_steps=time_steps, remat=remat)


def image(dtype='float32'):
    return memory.Shape((1, 8, 8, 3), jnp.dtype(dtype))


def kept(remat='none', time_steps=T, dtype='float32'):
    model = vgg(remat, time_steps)
    return memory.kept_bytes_per_image(model, memory.variables_of(model, image()), image(dtype))


def by_hand(remat, size):
    """What an image keeps up to the logits; `size` bytes a number."""
    pixels, spikes = 8 * 8 * 3, T * 8 * 8 * 4 + T * 4 * 4 * 7  # of the second convolution, and pooled of the third
    if remat == 'block':
        return (pixels + spikes + T * HEAD) * size
    convolved = 8 * 8 * 4 + T * 8 * 8 * 7 + T * 4 * 4 * 6  # the first one once for all time steps
    return (pixels + convolved + T * HEAD) * size + spikes


def of_the_loss(dtype):
    """What the loss keeps of an image, when nothing but the loss is differentiated."""

    def kept_of(batch):
        logits = memory.Shape((T, batch, CLASSES), jnp.dtype(dtype))
        return memory.tree_bytes(jax.eval_shape(lambda x: jax.vjp(memory.training_loss, x)[1], logits))

    return kept_of(2) - kept_of(1)


@pytest.mark.parametrize(('dtype', 'size'), [('float32', 4), ('bfloat16', 2)])
@pytest.mark.parametrize('remat', REMATS)
def test_kept_bytes_are_those_summed_by_hand(remat, dtype, size):
    assert kept(remat, dtype=dtype) == by_hand(remat, size) + of_the_loss(dtype)


def test_kept_bytes_are_those_of_arrays_that_a_real_backward_pass_holds():
    model = vgg()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

    @jax.jit
    def forward(images):
        def loss(params):
            logits, _ = model.apply({**variables, 'params': params}, images, train=True, mutable=['batch_stats'])
            return memory.training_loss(logits)

        return jax.vjp(loss, variables['params'])[1]

    rng = np.random.default_rng(0)
    held = [forward(jnp.asarray(rng.normal(size=(batch, 8, 8, 3)), jnp.float32)) for batch in (1, 2)]
    one, two = (sum(array.nbytes for array in jax.tree.leaves(backward)) for backward in held)
    assert two - one == kept()


def test_more_time_steps_keep_more_and_remat_keeps_less():
    counts = {(remat, steps): kept(remat, steps) for remat in REMATS for steps in (1, 2, 4)}
    for remat in REMATS:
        assert counts[remat, 1] < counts[remat, 2] < counts[remat, 4]
    for steps in (1, 2, 4):
        assert counts['block', steps] < counts['none', steps]


def test_the_largest_block_is_counted_by_itself():
    model = vgg('block')
    # The second: its input as bytes, and the output of its convolution.
    expected = T * 8 * 8 * 4 + 4 * T * 8 * 8 * 7
    assert memory.largest_block_bytes_per_image(model, memory.variables_of(model, image()), image()) == expected


SUMMARY = Summary(
    [
        Layer('a', 'conv', (1, 8, 8, 4), parameters=36, multiply_adds=2304),
        Layer('a', 'norm', (1, 8, 8, 4), parameters=8),
        Layer('a', 'lif', (2, 8, 8, 4), parameters=0),
        Layer('b', 'dense', (2, 10), parameters=2570, multiply_adds=5120),
    ],
    measured=False,
)
COUNTS = plan.Counts(SUMMARY, itemsize=2, state=30_000, kept={'none': 900, 'block': 100}, block=200)
DEVICE = plan.Device('device', 4, flops=1e6, bandwidth=1e5, memory=1e9, link=1e4, cores=8, source='none')


@pytest.mark.parametrize(('remat', 'number', 'vectors'), [('none', 1 + 3 + 2, 4), ('block', 1 + 5 + 2, 6)])
def test_all_reduces_are_gradients_norms_and_potentials(remat, number, vectors):
    assert COUNTS.all_reduces(remat) == (number, 4 * (36 + 8 + 2570) + 4 * (vectors * 4) + 4 * 5)


def test_remat_costs_arithmetic_and_traffic_and_saves_memory():
    assert COUNTS.flops('none') == 6 * (2304 + 5120)
    assert COUNTS.flops('block') == 8 * (2304 + 5120)
    parameters, images = 4 * 2614, 3
    fixed = 6 * parameters + 2 * (30_000 - parameters)
    # 256 outputs of the convolution, 512 of the neurons, two bytes each.
    assert COUNTS.traffic(images, 'none') == images * (11 * 512 + 4 * 1024 + 2 * 512) + fixed
    assert COUNTS.traffic(images, 'block') == images * (15 * 512 + 6 * 1024 + 2 * 512) + fixed
    memories = [COUNTS.memory(images, remat) - 30_000 - parameters for remat in REMATS]
    assert memories == [images * 900, images * (100 + 200)]


def test_a_step_is_bound_by_the_slower_of_two_and_the_all_reduces():
    step = plan.plan_step(COUNTS, DEVICE, batch_size=10, efficiency=0.5, latency=0.01)
    assert (step.batch, step.remat) == (8, 'none')
    assert step.arithmetic == 2 * 6 * 7424 / 1e6
    assert step.traffic == COUNTS.traffic(2, 'none') / 1e5
    all_reduce = 2 * 3 / 4 * COUNTS.all_reduces('none')[1] / 1e4
    assert step.roofline == pytest.approx(step.traffic + all_reduce)
    assert step.assumed == pytest.approx(step.traffic / 0.5 + all_reduce + 6 * 0.01)


@pytest.mark.parametrize('remat', REMATS)
def test_the_least_remat_that_fits_is_taken(remat):
    device = DEVICE._replace(memory=COUNTS.memory(1000, remat) / 0.75 + 1)  # three quarters are there to use
    assert plan.least_remat(COUNTS, device, 1000) == remat
    assert plan.plan_step(COUNTS, device, 4 * 1000, 0.5, 0.0).remat == remat
    assert plan.least_remat(COUNTS, device._replace(memory=1.0), 1000) is None


@pytest.fixture(scope='module')
def digits_counts():
    config = digits.get_config()
    config.model.time_steps = 2
    config.model.stages = ((4,), (8,))
    return plan.count(config)


def test_a_network_is_counted(digits_counts):
    counts = digits_counts
    parameters = 9 * 4 + 2 * 4 + 9 * 4 * 8 + 2 * 8 + 4 * 4 * 8 * 10 + 10
    assert counts.parameters == 4 * parameters
    # Weights and momentum, running statistics, and a few scalars.
    assert 0 < counts.state - 4 * (2 * parameters + 2 * (4 + 8)) < 200
    assert counts.outputs('conv') == 64 * 4 + 2 * 16 * 8
    assert counts.outputs('lif') == 2 * 64 * 4 + 2 * 16 * 8
    assert counts.flops('none') == 6 * (64 * 9 * 4 + 2 * (16 * 36 * 8 + 128 * 10))


def test_tables_have_a_cell_for_each_heading(digits_counts):
    text = memory.table(['a', 'b'], [['1', '2'], ['3', '4']])
    assert text == '| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |'
    assert len({line.count('|') for line in plan.devices_table().splitlines()}) == 1
    assert len({line.count('|') for line in plan.counted_table(digits_counts).splitlines()}) == 1


def test_each_program_is_started_twice_on_the_same_caches(tmp_path):
    listed = dict(starts.programs('digits', ['--config.batch_size=8'], tmp_path))
    assert list(listed) == ['train.py', 'train.py --mode=eval', *(f'analysis {name}' for name in ANALYSES)]
    trained, again = listed['train.py']
    # A second run, since one that has ended would train no more.
    assert [argument for argument in trained if argument not in again] == [f'--workdir={tmp_path / "run"}']
    for name, (first, second) in listed.items():
        assert name == 'train.py' or first == second
        assert f'--workdir={tmp_path / "run"}' in first
    assert '--config.batch_size=8' in listed['train.py --mode=eval'][0]


def test_what_does_not_start_says_why(tmp_path):
    assert starts.seconds_to_run(['-c', 'import os; assert os.environ["XDG_CACHE_HOME"]'], tmp_path) > 0
    with pytest.raises(UserError, match='failed: ValueError: no more'):
        starts.seconds_to_run(['-c', 'raise ValueError("no more")'], tmp_path)
