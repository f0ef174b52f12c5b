import jax
import numpy as np
import pytest

from cpng_jax.runtime import sharding
from cpng_jax.runtime.errors import UserError
from tests import forked


def test_the_batch_is_split_and_the_rest_is_whole():
    mesh = sharding.make_mesh(8)
    assert mesh.axis_names == ('data',)
    batch = {'image': np.arange(32.0).reshape(8, 4), 'label': np.arange(8)}
    put = sharding.put_batch(batch, mesh)
    for key, value in batch.items():
        np.testing.assert_array_equal(put[key], value)
        assert put[key].sharding.is_equivalent_to(sharding.over_batch(mesh), value.ndim)
    assert jax.device_put(1.0, sharding.replicated(mesh)).sharding.is_fully_replicated


@pytest.mark.parametrize(
    ('shape', 'expected'),
    [((3, 3, 8, 16), (None, None, None, 'data')), ((16, 6), ('data',)), ((8, 8), ('data',)), ((3, 5), ()), ((), ())],
)
def test_the_longest_axis_that_devices_divide_is_split(shape, expected):
    four_devices = jax.sharding.AbstractMesh((4,), ('data',))
    assert tuple(sharding.along_longest_axis(shape, four_devices).spec) == expected


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(jax, 'device_count', lambda: 3)
    with pytest.raises(
        UserError, match=r'batch_size is 64, which 3 devices cannot share evenly: choose a multiple of 3'
    ):
        sharding.make_mesh(64)


@pytest.mark.processes
def test_devices_compute_their_own_examples_alone():
    """Between four devices travel sums of gradients and statistics, but no activations."""
    program = (
        'import re, jax, numpy as np\n'
        'from configs import digits\n'
        'from cpng_jax.training.setup import build\n'
        'config = digits.get_config()\n'
        'config.batch_size, config.model.stages = 64, ((4,), (8,))\n'
        'built = build(config)\n'
        "batch = {'image': np.zeros((64, 8, 8, 1), np.uint8), 'label': np.zeros(64, np.int32)}\n"
        'compiled = built.train_step.lower(built.initial_state(), batch).compile().as_text()\n'
        "print(built.mesh.size, *sorted(set(re.findall(r' (all-[a-z-]+|collective-[a-z-]+)\\(', compiled))))\n"
    )
    environment = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=4'}
    process = forked.run('-c', program, environment=environment)
    assert process.stdout.split() == ['4', 'all-reduce'], process.stdout + process.stderr
