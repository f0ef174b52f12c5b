"""A rule from outside the package, as docs/architecture.md shows it: one file, and one line of the table."""

import importlib.util
import pathlib
import re
import runpy
import sys

import pytest

from cpng_jax.control.rules import RULES
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import loop
from tests.runs import epoch_rows

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'architecture.md'


def block(name: str) -> str:
    """The code block of the page that is marked with a name."""
    match = re.search(rf'<!-- example: {name} -->\n```python\n(.*?)```', PAGE.read_text(), flags=re.DOTALL)
    assert match
    return match[1]


@pytest.fixture
def toy_config(tmp_path, monkeypatch, shrink):
    """The configuration of the page, in a folder with the toy's file; the table is as before afterwards."""
    (tmp_path / 'toy.py').write_text(block('rule'))
    (tmp_path / 'config.py').write_text(block('configuration'))
    monkeypatch.setitem(RULES, 'toy', None)  # so that it is gone after the test
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'toy', raising=False)
    config = shrink(runpy.run_path(str(tmp_path / 'config.py'))['get_config']())
    config.epochs = 2
    return config


@pytest.mark.trains
@pytest.mark.parametrize(('every', 'updates'), [('epoch', 2), ('batch', 22)])
def test_it_sets_beta_and_goes_on(tmp_path, toy_config, every, updates):
    toy_config.cpng.every = every
    loop.run(toy_config, tmp_path / 'run')
    for row in epoch_rows(tmp_path / 'run'):
        made = updates // 2 * row['epoch']
        assert row['beta'] == pytest.approx(dict.fromkeys(row['beta'], 1.01**made), rel=1e-5)
        assert row['skipped'] == []
    assert loop.run(toy_config, tmp_path / 'run', 'eval')['step'] == 22


@pytest.mark.trains
def test_its_option_is_a_key_with_a_range(tmp_path, toy_config):
    assert toy_config.cpng.toy_share == 0.01
    toy_config.cpng.toy_share = 0.5
    toy_config.epochs = 1
    loop.run(toy_config, tmp_path / 'run')
    assert set(epoch_rows(tmp_path / 'run')[-1]['beta'].values()) == {1.5}
    toy_config.cpng.toy_share = -1.0
    with pytest.raises(UserError, match=r'config\.cpng\.toy_share is -1\.0, expected a number above 0'):
        loop.run(toy_config, tmp_path / 'other')


@pytest.mark.trains
def test_without_its_line_there_is_no_such_rule(tmp_path, toy_config, monkeypatch):
    monkeypatch.delitem(RULES, 'toy')
    with pytest.raises(UserError, match='cpng'):
        loop.run(toy_config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
    assert importlib.util.find_spec('toy')
