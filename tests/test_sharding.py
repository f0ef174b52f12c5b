import jax
import numpy as np
import pytest

from cpng_jax import sharding
from cpng_jax.errors import UserError


def test_the_batch_is_split_and_the_rest_is_whole():
    mesh = sharding.make_mesh(8)
    assert mesh.axis_names == ('data',)
    batch = {'image': np.arange(32.0).reshape(8, 4), 'label': np.arange(8)}
    put = sharding.put_batch(batch, mesh)
    for key, value in batch.items():
        np.testing.assert_array_equal(put[key], value)
        assert put[key].sharding.is_equivalent_to(sharding.over_batch(mesh), value.ndim)
    assert jax.device_put(1.0, sharding.replicated(mesh)).sharding.is_fully_replicated


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(jax, 'device_count', lambda: 3)
    with pytest.raises(
        UserError, match=r'batch_size is 64, which 3 devices cannot share evenly: choose a multiple of 3'
    ):
        sharding.make_mesh(64)
