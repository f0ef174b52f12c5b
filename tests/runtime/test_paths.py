import pathlib

import pytest

from cpng_jax.runtime.errors import UserError
from cpng_jax.runtime.paths import local

STRANGE = [
    'lr[0.1]',
    'a*b',
    'what?',
    'two words',
    '50%25',
    '#1',
    '\'"',
    'größe-脉冲',
    '-x',
    'a\nb',
    '{}{0}',
    'a:b',
    'a//b',
]


@pytest.mark.parametrize('name', STRANGE)
def test_whatever_a_file_system_takes_is_left_as_it_is(name):
    for path in (f'runs/{name}', f'/runs/{name}', name, pathlib.Path(name)):
        assert local(path, '--workdir') == pathlib.Path(path)


def test_the_home_directory_is_expanded_once(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', '/home/~')
    monkeypatch.chdir(tmp_path)
    assert local('~', '--workdir') == pathlib.Path('/home/~')
    assert local(pathlib.Path('~/runs/~'), '--workdir') == pathlib.Path('/home/~/runs/~')
    assert local('~nobody-has-this-name/x', '--workdir') == tmp_path / '~nobody-has-this-name' / 'x'
    for text in ('./~/x', './data:/x'):  # folders of that name
        once = local(text, '--workdir')
        assert once == local(once, '--workdir') == tmp_path / text[2:]


def test_without_a_home_no_folder_of_that_name_is_made(monkeypatch):
    monkeypatch.setattr('os.path.expanduser', lambda path: path)
    with pytest.raises(UserError, match=r"^--workdir is '~/x', but there is no home directory: set HOME"):
        local('~/x', '--workdir')


@pytest.mark.parametrize('address', ['gs://bucket/x', 's3://bucket', 'file:///x', 'https://host/x', 'GS://b'])
def test_an_address_is_refused(address):
    for value in (address, pathlib.Path(address)):
        with pytest.raises(UserError, match=r"^config\.data\.dir is '\w+:/.*', an address; expected a path .* mount"):
            local(value, 'config.data.dir')


@pytest.mark.parametrize(
    ('path', 'sentence'),
    [
        ('', r"^--workdir is '', expected a path"),
        ('a\0b', r"^--workdir is 'a\\x00b': no path has a zero byte"),
        ('a\\b', r"^--workdir is 'a\\\\b': libraries read '\\\\' in a path as something else"),
        ('runs/mygs:', r"^--workdir is 'runs/mygs:': libraries read 'gs:/' in a path"),
        ('/gs/bucket', r"^--workdir is '/gs/bucket': libraries read '/gs/' in a path"),
        ('a\udcff', r"^--workdir is 'a\\udcff', which is not UTF-8"),
        ('runs/' + 'ä' * 128, r'^--workdir has the name ä{20}\.\.\. of 256 bytes in it, expected at most 255'),
        ('/' + 'ab/' * 1200, r'^--workdir is a path of 3600 bytes, (/ab){6}/a\.\.\., expected at most 3584'),
    ],
)
def test_what_no_file_system_takes_is_refused(path, sentence):
    with pytest.raises(UserError, match=sentence):
        local(path, '--workdir')


def test_the_longest_name_is_taken():
    assert local('ä' * 127, '--workdir').name == 'ä' * 127
