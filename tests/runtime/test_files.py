import concurrent.futures

import pytest

from cpng_jax.runtime import files


def test_a_file_is_replaced_by_bytes_or_by_a_text(tmp_path):
    path = tmp_path / 'a[0]%s.md'
    assert files.replace(path, b'\xff') == path
    assert path.read_bytes() == b'\xff'
    files.replace(path, 'χ')
    assert path.read_text('utf-8') == 'χ'
    assert list(tmp_path.iterdir()) == [path]


def test_when_it_fails_the_old_file_is_left_and_nothing_else(tmp_path):
    path = tmp_path / 'a.md'
    files.replace(path, 'old')
    with pytest.raises(UnicodeEncodeError):
        files.replace(path, 'half of it \udcff')
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_two_may_write_the_same_file_at_once(tmp_path):
    path, texts = tmp_path / 'a.md', [str(index) * 1000 for index in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: files.replace(path, text), texts * 5))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]
