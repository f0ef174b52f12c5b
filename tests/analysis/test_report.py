"""The page stands by itself: well-formed, no link, pictures inside, made for a narrow screen."""

import base64
import csv
import html.parser
import io
import json
import re

import numpy as np
import pytest
from matplotlib.image import imread

from cpng_jax.analysis import beta, report
from cpng_jax.analysis.html import document, folded, picture_file, section, table
from cpng_jax.analysis.run import Run
from cpng_jax.runtime import plots
from cpng_jax.runtime.errors import UserError

VOID = {'meta', 'img', 'br', 'link'}


class Page(html.parser.HTMLParser):
    """Collects what a page consists of, and checks that each tag is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.tables = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f'not closed: {self.open}'

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == 'table':
            self.tables.append([])
        elif tag == 'tr':
            self.tables[-1].append([])
        elif tag in ('td', 'th'):
            self.tables[-1][-1].append('')
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ('td', 'th'):
            self.tables[-1][-1][-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read(path):
    text = path.read_text('utf-8')
    parsed = Page(text)
    assert not re.search(r'(?:src|href)="(?!data:)|https?://|url\(|@import', text), 'something from outside'
    assert {'name': 'viewport', 'content': 'width=device-width, initial-scale=1'} in parsed.of('meta')
    assert 'prefers-color-scheme: dark' in text
    return parsed


def pictures(parsed):
    return {
        image['alt']: imread(io.BytesIO(base64.b64decode(image['src'].removeprefix('data:image/png;base64,'))))
        for image in parsed.of('img')
    }


@pytest.mark.trains
def test_page_of_a_run(run, monkeypatch):
    beta.analyse(run)
    (path,) = report.analyse(run)
    assert path == run.workdir / 'analysis' / 'report.html'
    parsed = read(path)
    drawn = pictures(parsed)
    assert list(drawn)[:4] == ['accuracy and loss', 'beta', 'chi', 'gain']
    for attributes in parsed.of('img'):
        height, width, _ = drawn[attributes['alt']].shape
        assert (int(attributes['width']), int(attributes['height'])) == (width, height)
    np.testing.assert_array_equal(drawn['beta'], imread(run.workdir / 'analysis' / 'beta.png'), 'not the later one')
    words = ' '.join(parsed.texts)
    last = run.epochs[-1]
    assert f'{last["test_accuracy"]:.2%}' in words
    assert '3 of 3' in words
    tables = {tuple(table[0]): table[1:] for table in parsed.tables}
    (epochs,) = (rows for heading, rows in tables.items() if heading[0] == 'epoch')
    assert [row[0] for row in epochs] == ['1', '2', '3']
    assert float(epochs[-1][2]) == pytest.approx(100 * last['test_accuracy'], abs=0.005)
    for column, what in ((6, 'beta'), (7, 'scale'), (8, 'chi'), (9, 'gain')):
        assert float(epochs[-1][column]) == pytest.approx(np.median(list(last[what].values())), rel=1e-3)
    changed = {row[0]: row[1:] for row in tables['key', 'value', 'configs/base.py']}
    assert changed['batch_size'] == ['32', '256']
    assert changed['model.stages'] == ['[[4], [8]]', '']
    assert 'optim.momentum' not in changed
    assert dict(map(tuple, tables['key', 'value']))['optim.momentum'] == '0.9'
    environment = json.loads((run.workdir / 'environment.json').read_text())[-1]
    assert ['jax', environment['packages']['jax']] in tables['', '']
    betas = tables['layer', 'β with CPNG', 'β without CPNG']
    assert [row[0] for row in betas] == list(last['beta'])


@pytest.mark.trains
def test_rows_of_older_versions_have_neither_height_nor_gain(run):
    old = [{key: value for key, value in row.items() if key not in ('scale', 'gain')} for row in run.epochs]
    new, old = (Page(report._epochs(rows)).tables[0] for rows in (run.epochs, old))
    assert [row[7] for row in old[1:]] == [row[9] for row in old[1:]] == ['nan'] * 3
    assert [row[:7] + row[8:9] for row in old] == [row[:7] + row[8:9] for row in new]


@pytest.mark.trains
def test_a_wide_table_and_a_wide_picture_scroll_in_boxes_of_their_own(workdir):
    parsed = read(report.analyse(Run(workdir))[0])
    boxes = [attributes for attributes in parsed.of('div') if 'box' in attributes.get('class', '').split()]
    assert len(boxes) == len(parsed.of('table')) + len(parsed.of('img'))
    for image in parsed.of('img'):
        assert int(re.search(r'min-width:(\d+)px', image['style'])[1]) < 0.5 * int(image['width'])
    curves = next(image for image in parsed.of('img') if image['alt'] == 'accuracy and loss')
    assert int(re.search(r'min-width:(\d+)px', curves['style'])[1]) <= 350, 'fits a phone without scrolling'


def write_experiment(folder):
    rows = [
        ['arm', 'seed', 'test_accuracy', 'folder'],
        ['fixed', '0', '0.9472222222', 'cells/a'],
        ['CPNG', '0', '0.95', 'b'],
    ]
    with (folder / 'compare.csv').open('w') as file:
        csv.writer(file).writerows(rows)
    (folder / 'compare.md').write_text(
        '# CPNG & a fixed beta (Table 3)\n\nTest accuracy\nof the last epoch.\n\n'
        '| arm | last accuracy, % | to |\n| --- | --- | --- |\n| fixed | 94.72 ± 0.10 |  |\n'
        '| <CPNG> | 95.00 | fixed |\n'
    )
    plots.save(plots.new_figure(4, 3), folder / 'compare.png')


def test_page_of_experiments(tmp_path):
    write_experiment(tmp_path)
    (tmp_path / 'notes.md').write_text('mine')
    parsed = read(report.analyse(Run(tmp_path))[0])
    assert list(pictures(parsed)) == ['compare']
    summary, runs = parsed.tables
    assert summary == [['arm', 'last accuracy, %', 'to'], ['fixed', '94.72 ± 0.10', ''], ['<CPNG>', '95.00', 'fixed']]
    assert runs[1] == ['fixed', '0', '0.9472', 'cells/a']
    assert 'CPNG & a fixed beta (Table 3)' in parsed.texts
    assert 'Test accuracy of the last epoch.' in parsed.texts
    assert 'mine' not in parsed.texts


def test_a_folder_with_neither_is_said(tmp_path):
    with pytest.raises(UserError, match=r'nothing to report in .*: expected the folder of a run or of experiments'):
        report.analyse(Run(tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_escaped():
    text = document('<a>', section('b & c', table(['<x>'], [['<script>']]), folded('<d>', '')))
    assert '<script>' not in text
    Page(text)


def test_a_picture_that_is_cut_off_is_named_and_the_page_goes_on(tmp_path):
    path = plots.save(plots.new_figure(4, 3), tmp_path / 'beta.png')
    assert picture_file(path).startswith('<div')
    whole = path.read_bytes()
    for part in (b'', whole[:20], whole[:-1]):
        path.write_bytes(part)
        assert picture_file(path) == '<p>beta.png is not a whole picture: draw it again.</p>\n'
