"""The table of keys: it is the page of the documentation, what it says is true, and rules from outside bring theirs."""

import ast
import importlib
import inspect
import pathlib
import re

import pytest

from configs import base, digits
from cpng_jax.control import fixed
from cpng_jax.control.options import Option, number
from cpng_jax.control.rules import RULES
from cpng_jax.runtime.config import flatten, validate
from cpng_jax.runtime.errors import UserError
from cpng_jax.training import key_listing, keys, loop
from tests.runs import epoch_rows

ROOT = pathlib.Path(__file__).parents[2]


def test_the_page_is_the_table():
    assert (ROOT / 'docs' / 'keys.md').read_text() == keys.markdown(), 'python -m cpng_jax.training.keys > docs/keys.md'


@pytest.mark.parametrize('key', keys.table().known.values(), ids=lambda key: key.name)
def test_a_key_is_described_in_a_line(key):
    assert re.fullmatch(r'0\.[123]', key.since)
    assert key.meaning
    assert key.expected
    for text in (key.meaning, key.expected):
        assert text == text.strip()
        assert not {'\n', '|'} & {*text}
        assert not text.endswith('.')


def names_in(module):
    """Names that a module's code reads or declares, and texts that it looks up by."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize('key', keys.table().known.values(), ids=lambda key: key.name)
def test_every_key_is_read_by_the_modules_that_it_names(key):
    assert key.used_by
    for name in key.used_by:
        assert key.name.rpartition('.')[2] in names_in(importlib.import_module(f'cpng_jax.{name}')), name


def test_every_rule_of_the_table_can_be_chosen():
    assert keys.table().known['cpng.rule'].expected == 'one of ' + ', '.join(RULES)


def test_the_listing_has_every_key_or_those_that_match():
    text = key_listing.listing('', 'base', base.get_config())
    for name in keys.table().known:
        assert re.search(rf'^ {re.escape(name)} ', text, flags=re.MULTILINE), name
    listed = key_listing.listing('neuron.', 'base', base.get_config())
    found = re.findall(r'^ ([a-z_.]+) ', listed, flags=re.MULTILINE)
    assert found == ['key', *(name for name in keys.table().known if 'neuron.' in name)]
    with pytest.raises(
        UserError, match=r"--match is 'momentums', which no key contains; the nearest is '\w+\.momentum'"
    ):
        key_listing.listing('momentums', 'base', base.get_config())


def test_the_listing_has_what_a_configuration_has_in_place_of_a_default():
    config = digits.get_config()
    config.model.time_steps, config.profile.steps = 7, (2, 3)

    def cells(match):
        lines = key_listing.listing(match, 'mine', config).splitlines()
        start, end = (lines[0].index(column) for column in ('mine', 'range'))
        return {line.split()[0]: line[start:end].strip() for line in lines[2:-2] if line[1] != ' '}

    assert cells('epochs')['epochs'] == '40'
    assert cells('momentum') == {'optim.momentum': '', 'norm.momentum': ''}
    # Set by the key that it follows.
    assert cells('time_steps') == {'data.time_steps': '', 'model.time_steps': '7'}
    assert cells('profile') == {'profile.steps': '(2, 3)'}
    # Fields of the network come after the other keys of model.
    fields = cells('model.')
    assert [*fields] == ['model.name', 'model.width', 'model.time_steps', 'model.head', 'model.stages']
    assert fields['model.head'] == '()'
    assert fields['model.stages'].startswith('((16, 16, 16),')


TOY = fixed.RULE._replace(
    title='a toy', options=(Option('toy_factor', 0.5, number(0, 1), 'a factor of the toy', '0.9'),)
)


@pytest.mark.trains
def test_a_rule_from_outside_brings_its_keys(monkeypatch, tmp_path, tiny_config):
    before = tiny_config.copy_and_resolve_references()
    monkeypatch.setitem(RULES, 'toy', TOY)
    config = base.get_config()
    assert config.cpng.toy_factor == 0.5
    assert keys.table().known['cpng.toy_factor'].used_by == ('control.fixed',)
    assert 'cpng.toy_factor' in key_listing.listing('toy', 'base', config)
    assert (
        '| `cpng.toy_factor` | `0.5` | a number of at least 0 and at most 1 | a factor of the toy |' in keys.markdown()
    )
    assert '| `toy` | a toy |' in keys.markdown()
    config.cpng.rule = 'toy'
    validate(config, keys.table())
    config.cpng.toy_factor = 2.0
    with pytest.raises(UserError, match=r'config\.cpng\.toy_factor is 2\.0, expected a number of at least 0 and at m'):
        validate(config, keys.table())
    with pytest.raises(UserError, match=r"lacks the key 'cpng\.toy_factor'"):
        validate(before, keys.table())
    before.cpng.toy_factor = 0.5
    before.cpng.rule, before.epochs = 'toy', 1
    loop.run(before, tmp_path)
    assert set(epoch_rows(tmp_path)[-1]['beta'].values()) == {1.0}


def test_a_rule_cannot_take_the_key_of_another(monkeypatch):
    options = (Option('chi_limit', 0.5, number(0), 'of its own', '0.9'),)
    monkeypatch.setitem(RULES, 'toy', TOY._replace(options=options))
    with pytest.raises(ValueError, match=r'cpng\.chi_limit is a key already'):
        keys.table()


def test_without_the_rule_its_key_is_unknown():
    config = base.get_config()
    config.cpng.toy_factor = 0.5
    with pytest.raises(UserError, match=r"config has no key 'cpng\.toy_factor'; the nearest is 'optim\.step_factor'\."):
        validate(config, keys.table())


def test_what_may_change_within_a_workdir():
    free = {key.name for key in keys.table().known.values() if key.free}
    sections = ('eval.', 'checkpoint.', 'cluster.', 'mesh.', 'profile.', 'log.')
    others = {'data.dir', 'data.threads', 'data.workers', 'neuron.implementation', 'distributed', 'compilation_cache'}
    assert free == others | {key for key in flatten(base.get_config()) if key.startswith(sections)}
    assert {key.name for key in keys.table().known.values() if key.grows} == {'epochs'}
