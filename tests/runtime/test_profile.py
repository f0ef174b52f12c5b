"""Traces of chosen steps."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from cpng_jax.runtime import metrics
from cpng_jax.runtime.profile import Profile
from cpng_jax.training import loop


def traced_steps(workdir):
    """Numbers of the steps in the trace that was written."""
    (trace,) = workdir.glob('profile/plugins/profile/*/*.trace.json.gz')
    events = json.loads(gzip.decompress(trace.read_bytes()))['traceEvents']
    return sorted({int(event['args']['step_num']) for event in events if event.get('name') == 'train'})


def run_steps(profile, last):
    step = jax.jit(lambda x: x + 1)
    value = jnp.zeros(())
    for number in range(1, last + 1):
        with profile.before(number):
            value = step(value)
        profile.after(number, value)


@pytest.mark.parametrize(('last', 'expected'), [(6, [2, 3]), (2, [2])])
def test_the_chosen_steps_are_traced_also_where_a_run_ends_within(tmp_path, last, expected):
    with Profile(tmp_path, (2, 3)) as profile:
        run_steps(profile, last)
    assert traced_steps(tmp_path) == expected


@pytest.mark.parametrize(('steps', 'on'), [((0, 0), True), ((1, 2), False)])
def test_no_trace_is_written_unasked(tmp_path, steps, on):
    with Profile(tmp_path, steps, on=on) as profile:
        run_steps(profile, 3)
    assert not (tmp_path / 'profile').exists()


@pytest.mark.trains
def test_the_program_writes_a_trace_and_the_memory_of_a_step(tmp_path, tiny_config, capsys):
    tiny_config.epochs = 1
    tiny_config.profile.steps = (3, 4)
    loop.run(tiny_config, tmp_path)
    assert traced_steps(tmp_path) == [3, 4]
    rows = metrics.read(tmp_path)
    (memory,) = [row for row in rows if row['event'] == 'memory']
    assert memory['peak'] >= memory['temporary'] > 0
    assert memory['state_and_batch'] > 128 * 8 * 8
    assert f'{memory["peak"] / 2**20:,.1f} MiB, of which' in capsys.readouterr().out
    assert all(0 <= row['data_wait'] <= 1 for row in rows if row['event'] == 'step')
