"""The site of the documentation: `make docs` builds it into docs/_build/html."""

import itertools
import os
import pathlib
import re

# Pictures of notebooks are drawn by the CPU alone, and what JAX has to say of other devices is no part of a page.
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import typing as annotations

import cpng_jax
from cpng_jax.nn.currents import Currents

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent

project = 'cpng_jax'
author = 'cpng_jax developers'
version = release = cpng_jax.__version__
html_title = f'cpng_jax {version}'

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode', 'sphinx.ext.mathjax']
exclude_patterns = ['_build']
html_theme = 'sphinx_book_theme'
html_theme_options = {'show_toc_level': 2, 'use_download_button': False, 'navbar_persistent': []}
html_static_path = ['_static']
html_css_files = ['site.css']
html_copy_source = html_show_sphinx = False

# As git hosts read Markdown: links to headings by their text, dollars for mathematics.
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4

# Notebooks run again only where their code has changed; a cell that fails, fails the build.
nb_execution_mode = 'cache'
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True

# Docstrings are Google's, in which a name in single backticks is code.
default_role = 'code'
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False
napoleon_custom_sections = [('Attributes', 'params_style')]
autodoc_member_order = 'bysource'
autodoc_typehints_format = 'short'
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# Pages that are files of the repository's root, where people look for them.
_OF_THE_ROOT = {'readme': ROOT / 'README.md', 'changelog': ROOT / 'CHANGELOG.md'}
_LINK = re.compile(r'(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(\.\./([^)#]+)(#[^)]*)?\)')


def _bring_in(app, name, source):
    """Puts the files of the root in their place, and has links to what is no part of the site end in its name."""
    page = _OF_THE_ROOT.get(name)
    if page and page.is_file():
        moved = re.sub(r'\]\((?!https?:|#)', '](../', page.read_text('utf-8'))
        source[0] = moved.replace('](../docs/', '](')
    source[0] = _LINK.sub(lambda link: _link(link, name), source[0])


def _link(link, name):
    text, path, anchor = link[1], link[2], link[3] or ''
    for page, file in _OF_THE_ROOT.items():
        if file == ROOT / path and file.is_file():
            return f'[{text}]({page}.md{anchor})'
    if not (ROOT / path).exists():
        raise FileNotFoundError(f'docs/{name}.md links to {path}, which is not there.')
    is_page = (ROOT / path).is_dir() or path.endswith('.md')
    return f'{text}' if is_page else link[0]


# What these names of types stand for is longer than any signature; the longest first.
_TYPES = {'Currents': Currents, 'ArrayLike': jax.typing.ArrayLike}
_MODES = ('smart', 'fully-qualified-except-typing')
_OF_FLAX = re.compile(r', parent: .*?, name: str \| None = None')
_CLASS = re.compile(r"<class '[\w.]*?(\w+)'>")


def _shorten(app, what, name, thing, options, signature, returns):
    """Writes types by their names, and leaves out what Flax adds to the fields of a module."""
    if signature is None:
        return None
    for short, mode in itertools.product(_TYPES, _MODES):
        signature = signature.replace(annotations.stringify_annotation(_TYPES[short], mode), short)
    return _CLASS.sub(r'\1', _OF_FLAX.sub('', signature)), None if returns in ('Any', '~typing.Any') else returns


def _name_source(app, what, name, thing, options, lines):
    """Shows where an equation comes from as what a function returns and raises is shown."""
    lines[:] = [re.sub(r'^Source: ', ':Source: ', line) for line in lines]


def setup(app):
    """Called by Sphinx."""
    for module in ('cpng_jax.nn.neuron', 'cpng_jax.nn.neuron_layer'):
        analyzer = ModuleAnalyzer.for_module(module)
        analyzer.analyze()
        analyzer.overloads.clear()  # one signature is enough to read; the docstring tells what it returns when
    app.connect('source-read', _bring_in)
    app.connect('autodoc-process-signature', _shorten)
    app.connect('autodoc-process-docstring', _name_source, priority=900)  # after napoleon
