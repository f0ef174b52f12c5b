"""Pieces of a self-contained HTML page: no links, no scripts, pictures embedded, laid out for phones first."""

import base64
import html
import pathlib
import re
import struct
from collections.abc import Mapping, Sequence

from cpng_jax.runtime.tables import Value, shown

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c2430; --quiet: #5a6572; --line: #d8dee5; --panel: #f4f6f8;
  --accent: #c2410c }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14181d; --ink: #e4e8ec; --quiet: #9aa5b1; --line: #333c46; --panel: #1d232a; --accent: #fb923c } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.4rem; line-height: 1.25; margin: .5rem 0 1rem }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p { margin: .5rem 0; max-width: 46rem }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .5rem; margin: 0; padding: 0 }
.facts div { background: var(--panel); border-radius: .4rem; padding: .5rem .7rem }
.facts dt { color: var(--quiet); font-size: .8rem }
.facts dd { margin: 0; font-size: 1.25rem; font-weight: 600 }
.box { overflow: auto; max-height: 32rem; border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0;
  max-width: 100%; width: fit-content }
.box.picture { max-height: none; background: #fff }
.box img { display: block; height: auto; width: 100% }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { background: var(--panel); position: sticky; top: 0; font-weight: 600; white-space: normal; vertical-align: bottom }
tr:last-child td { border-bottom: 0 }
td.text { text-align: left; white-space: normal; min-width: 7rem }
th.text { text-align: left }
td { vertical-align: top }
summary { cursor: pointer; color: var(--accent); padding: .4rem 0 }
"""

# Pictures have 150 pixels to the inch. Below the least scale their letters are too small: the picture scrolls instead.
_LEAST_SCALE = 0.42
_MOST_SCALE = 0.66
_PNG_STARTS, _PNG_ENDS = b'\x89PNG\r\n\x1a\n', b'IEND\xaeB`\x82'

_TEXT = ' class="text"'


def document(title: str, body: str) -> str:
    """Makes a page.

    Args:
      title: its name.
      body: HTML.

    Returns:
      The whole HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
        f'<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n'
    )


def section(heading: str, *parts: str) -> str:
    """Makes a section with a heading."""
    return f'<section>\n<h2>{html.escape(heading)}</h2>\n{"".join(parts)}</section>\n'


def facts(values: Mapping[str, str]) -> str:
    """Makes a grid of tiles, each with a name and a value."""
    tiles = (
        f'<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>\n' for name, value in values.items()
    )
    return f'<dl class="facts">\n{"".join(tiles)}</dl>\n'


def table(columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> str:
    """Makes a table that scrolls in a box of its own.

    Args:
      columns: the heading.
      rows: values; a column with a text in it is aligned to the left.

    Returns:
      HTML.
    """
    left = [any(_is_text(row[place]) for row in rows) for place in range(len(columns))]
    cell = lambda tag, place, text: f'<{tag}{_TEXT if left[place] else ""}>{html.escape(text)}</{tag}>'
    lines = [''.join(cell('th', place, name) for place, name in enumerate(columns))]
    lines += [''.join(cell('td', place, shown(value)) for place, value in enumerate(row)) for row in rows]
    body = ''.join(f'<tr>{line}</tr>\n' for line in lines)
    return f'<div class="box"><table>\n{body}</table></div>\n'


def _is_text(value: Value) -> bool:
    """Whether a value is a text that does not start as a number."""
    return isinstance(value, str) and value != '' and not re.match(r'[-+.]?\d|nan', value)


def folded(summary: str, body: str) -> str:
    """Makes a part that is hidden until its summary is pressed."""
    return f'<details><summary>{html.escape(summary)}</summary>\n{body}</details>\n'


def picture(png: bytes, name: str) -> str:
    """Embeds a picture; on a narrow screen it scrolls in a box of its own, so that it stays readable.

    Args:
      png: its bytes.
      name: what it shows.

    Returns:
      HTML.
    """
    width, height = struct.unpack('>II', png[16:24])
    return (
        f'<div class="box picture" style="max-width:min(100%,{width * _MOST_SCALE:.0f}px)">'
        f'<img alt="{html.escape(name)}" width="{width}" height="{height}" '
        f'style="min-width:{width * _LEAST_SCALE:.0f}px" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></div>\n'
    )


def picture_file(path: pathlib.Path) -> str:
    """Embeds the picture of a file; of one that is empty or cut off, as by a full disk, says that it is."""
    png = path.read_bytes()
    if png.startswith(_PNG_STARTS) and png.endswith(_PNG_ENDS):
        return picture(png, path.stem)
    return f'<p>{html.escape(path.name)} is not a whole picture: draw it again.</p>\n'


def markdown(text: str, drawing: str = '') -> str:
    """Makes HTML of the Markdown that `runtime.tables` and `experiments` write: a heading, paragraphs and tables.

    Args:
      text: Markdown.
      drawing: HTML of a picture, put before the first table, or at the end where there is none.

    Returns:
      HTML; `#` becomes the heading of a section.
    """
    parts = []
    for block in text.strip().split('\n\n'):
        lines = block.strip().splitlines()
        if block.startswith('#'):
            parts.append(f'<h2>{html.escape(block.lstrip("#").strip())}</h2>\n')
        elif block.startswith('|'):
            cells = [[cell.strip() for cell in line.strip().strip('|').split('|')] for line in lines]
            parts += [drawing, table(cells[0], cells[2:])]
            drawing = ''
        else:
            parts.append(f'<p>{html.escape(" ".join(lines))}</p>\n')
    return ''.join([*parts, drawing])
