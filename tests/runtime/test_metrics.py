import json

import jax.numpy as jnp
import numpy as np
import pytest

from cpng_jax.runtime import metrics
from cpng_jax.runtime.errors import UserError


def write(workdir, steps, first_step=0):
    with metrics.MetricsWriter(workdir, first_step=first_step) as writer:
        for step in steps:
            writer.write('epoch', step, {'loss': step / 10, 'beta': {'conv01': 1.0 + step}})


def test_rows_come_back_as_they_were_written(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(
            'epoch', 3, {'a': np.float32(0.5), 'b': jnp.int32(2), 'c': {'x': 1.5}, 'd': ['conv01'], 'e': 'text'}
        )
    expected = {'event': 'epoch', 'step': 3, 'a': 0.5, 'b': 2, 'c': {'x': 1.5}, 'd': ['conv01'], 'e': 'text'}
    assert metrics.read(tmp_path) == [expected]


def test_what_is_not_finite_is_null_and_the_file_is_json(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write('epoch', 1, {'a': float('nan'), 'b': {'x': np.float32('inf')}, 'c': jnp.nan})
    line = (tmp_path / 'metrics.jsonl').read_text()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
    assert row == {'event': 'epoch', 'step': 1, 'a': None, 'b': {'x': None}, 'c': None}


def test_rows_of_lost_work_are_dropped_on_going_on(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3], first_step=2)
    assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2, 3]


def test_a_line_that_was_cut_off_is_left_out_and_then_dropped(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / 'metrics.jsonl'
    path.write_text(path.read_text()[:-9])
    assert [row['step'] for row in metrics.read(tmp_path)] == [1]
    write(tmp_path, [2], first_step=1)
    assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2]


def test_a_line_that_lacks_only_its_end_stays(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / 'metrics.jsonl'
    path.write_text(path.read_text()[:-1])
    write(tmp_path, [3], first_step=2)
    assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2, 3]


def test_a_whole_file_is_not_written_again(tmp_path):
    write(tmp_path, [1, 2])
    inode = (tmp_path / 'metrics.jsonl').stat().st_ino
    write(tmp_path, [], first_step=2)
    assert (tmp_path / 'metrics.jsonl').stat().st_ino == inode


def test_a_damaged_line_is_named(tmp_path):
    write(tmp_path, [1, 2, 3])
    path = tmp_path / 'metrics.jsonl'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([lines[0], 'oops', lines[2]]) + '\n')
    with pytest.raises(UserError, match=r'metrics.jsonl, line 2 is not a row'):
        metrics.read(tmp_path)


@pytest.mark.parametrize('damage', [b'\xff\xfe\x00', b'5', b'{"event": "x"}', b'[1, 2]'])
def test_damage_is_named_in_the_middle_and_dropped_at_the_end(tmp_path, damage):
    write(tmp_path, [1, 2])
    path = tmp_path / 'metrics.jsonl'
    whole = path.read_bytes()
    path.write_bytes(whole + damage)
    assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2]
    write(tmp_path, [3], first_step=2)
    assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2, 3]
    path.write_bytes(damage + b'\n' + whole)
    for use in (metrics.read, metrics.MetricsWriter):
        with pytest.raises(UserError, match=r'metrics.jsonl, line 1 is not a row'):
            use(tmp_path)


def test_without_a_file_there_are_no_rows(tmp_path):
    assert metrics.read(tmp_path) == []
