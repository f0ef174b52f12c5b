"""The pages: their Python runs as it stands, the reference has every public name. `make docs` runs the notebooks."""

import pathlib
import re
import tomllib

import pytest

import cpng_jax

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / 'docs'
BLOCK = re.compile(r'^(?:<!-- example: (.*?) -->\n)?```python\n(.*?)^```', flags=re.DOTALL | re.MULTILINE)

# Examples that run in another test, by the names that they have in their pages: one needs a file beside it, one adds to
# a table, one shows that the library is enough. Here they are compiled.
ELSEWHERE = {
    'configuration': ROOT / 'tests' / 'control' / 'test_rule_from_outside.py',
    'tracker': ROOT / 'tests' / 'runtime' / 'test_trackers.py',
    'load': ROOT / 'tests' / 'test_packaging.py',
}


def examples():
    for page in [ROOT / 'README.md', *sorted(DOCS.glob('*.md'))]:
        text = page.read_text('utf-8')
        for block in BLOCK.finditer(text):
            line = text[: block.start(2)].count('\n')
            yield pytest.param(page, line, *block.groups(), id=f'{page.name}:{line}')


@pytest.mark.trains
@pytest.mark.parametrize(('page', 'line', 'name', 'code'), list(examples()))
def test_python_of_a_page_runs_as_it_stands(page, line, name, code):
    program = compile('\n' * line + code, page, 'exec')
    if name not in ELSEWHERE:
        exec(program, {'__name__': '__main__'})


def test_examples_that_run_elsewhere_are_there():
    names = {parameters.values[2] for parameters in examples()}
    assert ELSEWHERE.keys() <= names
    assert all(path.is_file() for path in ELSEWHERE.values())


def test_the_reference_has_every_public_name():
    of_the_library, _ = (DOCS / 'api.md').read_text('utf-8').split('.. currentmodule:: cpng_jax.data')
    shown = re.findall(r'^\.\. auto(?:function|class|module):: ([\w.]+)$', of_the_library, flags=re.MULTILINE)
    assert {name.removeprefix('cpng_jax.').split('.')[0] for name in shown} == set(cpng_jax.__all__)


def test_what_the_site_needs_is_the_extra_docs():
    lines = (DOCS / 'requirements.txt').read_text('utf-8').splitlines()
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))['project']
    needed = [line for line in lines if line and not line.startswith('#')]
    assert needed == project['optional-dependencies']['docs']
    assert all(re.fullmatch(r'[\w-]+>=[\d.]+,<[\d.]+', line) for line in needed)
