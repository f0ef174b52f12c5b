"""What a run notes of what it was made with."""

import json
import subprocess

import jax
import pytest

from cpng_jax.runtime import environment


def git(folder, *arguments):
    identity = ('-c', 'user.name=a', '-c', 'user.email=a@b')
    done = subprocess.run(['git', '-C', folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, 'init', '--quiet')
    (tmp_path / 'program.py').write_text('')
    git(tmp_path, 'add', 'program.py')
    git(tmp_path, 'commit', '--quiet', '--message=one')
    git(tmp_path, 'tag', '-a', 'v1', '-m', 'a tag takes no place of the hash')
    return tmp_path


def test_the_commit_is_named_and_whether_the_files_are_those_of_it(repository):
    head = git(repository, 'rev-parse', 'HEAD')
    assert environment.commit(repository / 'program.py') == head
    (repository / 'runs').mkdir()
    assert environment.commit(repository / 'program.py') == head  # what git does not know of changes nothing
    (repository / 'program.py').write_text('changed')
    assert environment.commit(repository / 'program.py') == f'{head} with local changes'


def test_a_hook_s_repository_is_not_taken_for_that_of_the_program(repository, monkeypatch):
    monkeypatch.setenv('GIT_DIR', str(repository / 'nowhere'))
    assert environment.commit(repository / 'program.py') is not None


def test_an_installed_copy_within_a_repository_has_no_commit(repository, tmp_path):
    (repository / 'copy.py').write_text('')
    assert environment.commit(repository / 'copy.py') is None


def test_without_git_there_is_no_commit_and_no_error(repository, monkeypatch):
    monkeypatch.setenv('PATH', str(repository))
    assert environment.commit(repository / 'program.py') is None


def test_the_environment_is_plain_and_says_what_computes():
    found = environment.environment()
    assert json.loads(json.dumps(found)) == found
    assert found['packages']['jax'] == jax.__version__
    assert found['devices'].endswith(jax.devices()[0].device_kind)
    assert found['processor'].endswith(' cores')
