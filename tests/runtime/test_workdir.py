import json
import os
import stat

import jax
import pytest

from cpng_jax.runtime import workdir
from cpng_jax.runtime.config import flatten
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import keys


def test_acquire_writes_the_whole_configuration_and_the_versions(tmp_path, tiny_config):
    folder = tmp_path / 'runs' / 'new'
    workdir.acquire(folder, tiny_config, keys.table())
    assert json.loads((folder / 'config.json').read_text()) == json.loads(tiny_config.to_json())
    (entry,) = json.loads((folder / 'environment.json').read_text())
    assert entry['packages']['jax'] == jax.__version__
    workdir.acquire(folder, tiny_config, keys.table())
    assert len(json.loads((folder / 'environment.json').read_text())) == 1


def test_other_versions_are_added_not_overwritten(tmp_path, tiny_config):
    workdir.acquire(tmp_path, tiny_config, keys.table())
    path = tmp_path / 'environment.json'
    (old,) = json.loads(path.read_text())
    old['packages']['jax'] = '0.0.1'
    path.write_text(json.dumps([old]))
    workdir.acquire(tmp_path, tiny_config, keys.table())
    assert [entry['packages']['jax'] for entry in json.loads(path.read_text())] == ['0.0.1', jax.__version__]


def test_another_configuration_is_refused_by_the_changed_keys(tmp_path, tiny_config):
    workdir.acquire(tmp_path, tiny_config, keys.table())
    before = (tmp_path / 'config.json').read_text()
    tiny_config.cpng.beta_init = 2.0
    tiny_config.batch_size = 9
    for function in (workdir.check, workdir.acquire):
        with pytest.raises(
            UserError, match=r'another configuration: batch_size: 32 -> 9; cpng.beta_init: 1.0 -> 2.0\.'
        ):
            function(tmp_path, tiny_config, keys.table())
    assert (tmp_path / 'config.json').read_text() == before


def test_epochs_may_be_raised_to_train_on_and_what_they_were_is_kept(tmp_path, tiny_config):
    assert workdir.acquire(tmp_path, tiny_config, keys.table()).raised == {}
    tiny_config.epochs = 9
    with pytest.raises(UserError, match=r'another configuration: epochs: 3 -> 9\. '):
        workdir.check(tmp_path, tiny_config, keys.table())  # a table of equal runs, say, must not mix them
    assert workdir.acquire(tmp_path, tiny_config, keys.table(), step=lambda: 33).raised == {'epochs': (3, 9)}
    assert json.loads((tmp_path / 'config.json').read_text()) == json.loads(tiny_config.to_json())
    assert workdir.acquire(tmp_path, tiny_config, keys.table(), step=lambda: 33).raised == {}
    tiny_config.epochs = 12
    workdir.acquire(tmp_path, tiny_config, keys.table(), step=lambda: 50)
    history = [{'step': 33, 'epochs': 3}, {'step': 50, 'epochs': 9}]
    assert json.loads((tmp_path / 'config_history.json').read_text()) == history
    for epochs in (3, 11):
        tiny_config.epochs = epochs
        with pytest.raises(UserError, match=rf'epochs: 12 -> {epochs} \(epochs may be raised, not lowered\)\. Choose'):
            workdir.acquire(tmp_path, tiny_config, keys.table())
    tiny_config.epochs, tiny_config.seed = 15, 4
    with pytest.raises(UserError, match=r'another configuration: seed: 0 -> 4\. '):
        workdir.acquire(tmp_path, tiny_config, keys.table())
    assert json.loads((tmp_path / 'config_history.json').read_text()) == history


def test_a_start_that_was_killed_between_two_files_notes_the_epochs_once(tmp_path, tiny_config, monkeypatch):
    workdir.acquire(tmp_path, tiny_config, keys.table())
    tiny_config.epochs = 9
    with monkeypatch.context() as patch:
        patch.setattr(tiny_config.__class__, 'to_dict', lambda self: pytest.fail('killed'))
        with pytest.raises(pytest.fail.Exception):
            workdir.acquire(tmp_path, tiny_config, keys.table(), step=lambda: 33)
    assert workdir.acquire(tmp_path, tiny_config, keys.table(), step=lambda: 33).raised == {'epochs': (3, 9)}
    assert json.loads((tmp_path / 'config_history.json').read_text()) == [{'step': 33, 'epochs': 3}]


def test_check_writes_nothing(tmp_path, tiny_config):
    workdir.check(tmp_path / 'nowhere', tiny_config, keys.table())
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_of_a_run_is_read_back(tmp_path, tiny_config):
    workdir.acquire(tmp_path, tiny_config, keys.table())
    assert flatten(workdir.load_config(tmp_path, keys.table())) == flatten(tiny_config)
    stored = json.loads((tmp_path / 'config.json').read_text())
    for key in ('beta_from', 'beta_from_epoch'):  # as a run before there were these keys
        del stored['cpng'][key]
    (tmp_path / 'config.json').write_text(json.dumps(stored))
    assert flatten(workdir.load_config(tmp_path, keys.table())) == flatten(tiny_config)
    for kind, boolean in (('lif', False), ('ds_atgo', True)):  # as a run before kinds had names
        tiny_config.neuron.kind = kind
        del stored['neuron']['kind' if 'kind' in stored['neuron'] else 'ds_atgo']
        stored['neuron']['ds_atgo'] = boolean
        (tmp_path / 'config.json').write_text(json.dumps(stored))
        assert flatten(workdir.load_config(tmp_path, keys.table())) == flatten(tiny_config)
        workdir.check(tmp_path, tiny_config, keys.table())
    tiny_config.neuron.kind = 'lif'
    with pytest.raises(UserError, match=r"another configuration: neuron\.kind: 'ds_atgo' -> 'lif'\. "):
        workdir.check(tmp_path, tiny_config, keys.table())
    stored['epochs'] = 0
    (tmp_path / 'config.json').write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r'config\.epochs is 0, expected an integer of at least 1'):
        workdir.load_config(tmp_path, keys.table())
    with pytest.raises(UserError, match=r'There is no run in .*: it has no config.json\.'):
        workdir.load_config(tmp_path / 'nowhere', keys.table())


def test_a_workdir_with_a_value_without_effect_is_read_and_goes_on(tmp_path, tiny_config):
    """As one of a time when such a value was not refused."""
    tiny_config.optim.name, tiny_config.optim.momentum = 'adam', 0.8
    with pytest.raises(UserError, match=r"momentum is 0\.8, which has no effect with config\.optim\.name 'adam'"):
        workdir.check_effects(tmp_path, tiny_config, keys.table())
    workdir.acquire(tmp_path, tiny_config, keys.table())
    workdir.check_effects(tmp_path, tiny_config, keys.table())
    assert workdir.load_config(tmp_path, keys.table()).optim.momentum == 0.8
    tiny_config.optim.momentum = 0.9
    workdir.check_effects(tmp_path, tiny_config, keys.table())
    workdir.check(tmp_path, tiny_config, keys.table())


def test_a_damaged_file_is_named(tmp_path, tiny_config):
    (tmp_path / 'config.json').write_text('{"epochs": ')
    with pytest.raises(UserError, match=r'config.json is damaged .*choose another --workdir'):
        workdir.acquire(tmp_path, tiny_config, keys.table())


def test_json_of_something_else_is_damaged(tmp_path, tiny_config):
    (tmp_path / 'config.json').write_text('3')
    for read in (workdir.check, workdir.check_effects, workdir.acquire):
        with pytest.raises(UserError, match=r'config\.json is damaged \(it holds no keys\)'):
            read(tmp_path, tiny_config, keys.table())
    with pytest.raises(UserError, match=r'config\.json is damaged \(it holds no keys\)'):
        workdir.load_config(tmp_path, keys.table())
    (tmp_path / 'config.json').unlink()
    (tmp_path / 'environment.json').write_text('{"a": 1}')
    with pytest.raises(UserError, match=r'environment\.json is damaged \(it holds no list\)'):
        workdir.acquire(tmp_path, tiny_config, keys.table())


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path, tiny_config):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'Cannot write to the workdir .*file/run: Not a directory'):
        workdir.acquire(tmp_path / 'file' / 'run', tiny_config, keys.table())


def test_write_json_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / 'a.json'
    workdir.write_json(path, [1])
    with pytest.raises(TypeError):
        workdir.write_json(path, [object()])
    assert json.loads(path.read_text()) == [1]
    assert stat.S_ISREG(os.stat(path).st_mode)
