"""The site of the documentation: `make docs` builds it into docs/_build/html."""

import ast
import inspect
import os
import pathlib
import re
import textwrap

DOCS = pathlib.Path(__file__).resolve().parent
ROOT = DOCS.parent

# For the notebooks, before JAX is imported: what they compute is small, and most of their time is that of compiling it.
# They stay on the CPU, since what JAX has to say of other devices is no part of a page; nor is what a kernel logs.
os.environ.update(
    JAX_PLATFORMS='cpu',
    XLA_FLAGS='--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1',
    PYTHONPATH=os.pathsep.join([str(ROOT), os.getenv('PYTHONPATH', '')]),
    IPYTHONDIR=str(DOCS / '_build' / 'ipython'),
)
_PROFILE = DOCS / '_build' / 'ipython' / 'profile_default'
_PROFILE.mkdir(parents=True, exist_ok=True)
(_PROFILE / 'ipython_kernel_config.py').write_text("c.IPKernelApp.log_level = 'ERROR'\n")

from sphinx.pycode import ModuleAnalyzer

import cpng_jax

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
nb_execution_timeout = 600  # a busy machine may take that
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
_LINK = re.compile(r'(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:)([^)#\s]+)(#[^)]*)?\)')


def _bring_in(app, name, source):
    """Puts the files of the root in their place, and has links to what is no part of the site end in its name."""
    folder = base = (DOCS / name).parent
    file = _OF_THE_ROOT.get(name)
    if file and file.is_file():
        source[0], base = file.read_text('utf-8'), file.parent

    def moved(link):
        image, text, path, anchor = link.groups()
        target = (base / path).resolve()
        page = next((page for page, file in _OF_THE_ROOT.items() if file == target), None)
        if page:
            target = DOCS / f'{page}.md'
        elif not target.is_relative_to(DOCS) and (target.is_dir() or target.suffix == '.md'):
            return text
        return f'{image}[{text}]({os.path.relpath(target, folder)}{anchor or ""})' if target.exists() else link[0]

    source[0] = _LINK.sub(moved, source[0])


_OF_FLAX = re.compile(r', parent: .*?, name: str \| None = None')
_REPR = re.compile(r"<(?:class '(?:[\w.]*\.)?|function )(\w+)'?>")
_PATH = re.compile(r'~?\b(?:\w+\.)+(?=[A-Za-z]\w*)|~')


def _as_written(app, what, name, thing, options, signature, returns):
    """Shows annotations of functions as they are written; of classes, without paths and what Flax adds to fields."""
    if signature is None:
        return None
    function = inspect.unwrap(thing)
    if not inspect.isfunction(function):
        return _PATH.sub('', _REPR.sub(r'\1', _OF_FLAX.sub('', signature))), returns
    definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if what == 'method':
        definition.args.args = definition.args.args[1:]
    result = ast.unparse(definition.returns)
    return f'({ast.unparse(definition.args)})', None if result == 'Any' else result


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
    app.connect('autodoc-process-signature', _as_written)
    app.connect('autodoc-process-docstring', _name_source, priority=900)  # after napoleon
