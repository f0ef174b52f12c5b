import signal
import subprocess
import threading
import time

import numpy as np
import pytest

from cpng_jax.runtime import signals
from cpng_jax.runtime.signals import Stopped, StopRequest
from tests import forked


@pytest.fixture
def received():
    """Signals that reach the handlers that were there before."""
    numbers = []
    before = {signum: signal.signal(signum, lambda number, _: numbers.append(number)) for signum in signals.SIGNALS}
    yield numbers
    for signum, handler in before.items():
        signal.signal(signum, handler)


def poll(signum: int, error: Exception) -> None:
    """What a loop does with a signal, or does not get to do for an error."""
    with StopRequest() as stop:
        stop.listen()
        assert not stop.after(1)
        signal.raise_signal(signum)
        assert stop.after(1)
        assert stop.signal == signum
        raise error


@pytest.mark.parametrize('signum', signals.SIGNALS, ids=lambda signum: signum.name)
def test_a_signal_is_noted_and_the_old_handler_comes_back(signum, received):
    before = signal.getsignal(signum)
    with pytest.raises(Stopped):
        poll(signum, Stopped(signum, 1, 'runs/a'))
    assert signal.getsignal(signum) is before
    assert received == []


def test_a_signal_that_was_not_acted_on_is_not_swallowed(received):
    with pytest.raises(ValueError, match='diverged'):
        poll(signal.SIGTERM, ValueError('diverged'))
    assert received == [signal.SIGTERM]


def test_a_second_ctrl_c_is_not_noted_but_one_that_comes_with_the_first_is(received, monkeypatch):
    """As `timeout`, launchers and shells send a signal twice."""
    with StopRequest() as stop:
        stop.listen()
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGINT)
        assert received == []
        monkeypatch.setattr(signals, '_AGAIN', 0)
        time.sleep(0.001)
        signal.raise_signal(signal.SIGXCPU)  # comes every second once the limit is reached
        assert received == []
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        assert stop.signal == signal.SIGHUP


def test_before_there_is_something_to_save_and_without_a_signal_nothing_changes(received):
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert not stop.after(1)
        stop.listen()
        assert signal.getsignal(signal.SIGTERM) is not before
        assert not stop.after(1)
    assert signal.getsignal(signal.SIGTERM) is before
    assert received == [signal.SIGTERM]


def test_what_nohup_ignores_stays_ignored(received):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        stop.listen()
        signal.raise_signal(signal.SIGHUP)
        assert not stop.after(1)


@pytest.mark.parametrize(
    ('noted', 'expected'), [([0, 0], signal.SIGTERM), ([0, signal.SIGUSR1], signal.SIGUSR1)], ids=['SIGTERM', 'SIGUSR1']
)
def test_several_processes_stop_at_the_step_and_on_the_signal_they_agree_on(monkeypatch, noted, expected):
    monkeypatch.setattr(signals.jax, 'process_count', lambda: 2)
    monkeypatch.setattr(signals.multihost_utils, 'reached_preemption_sync_point', lambda step: step == 3)
    monkeypatch.setattr(signals.multihost_utils, 'process_allgather', lambda mine: np.array(noted) + mine)
    with StopRequest() as stop:
        assert [stop.after(step) for step in (1, 2, 3)] == [False, False, True]
        assert stop.signal == expected


def test_other_threads_leave_signals_alone():
    seen = []

    def work():
        with StopRequest() as stop:
            stop.listen()
            seen.append(stop.after(1))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_message_says_how_to_go_on():
    stopped = Stopped(signal.SIGTERM, 12, 'runs/a')
    assert stopped.exit_code == 143
    assert str(stopped) == 'SIGTERM: saved at step 12 in runs/a; the same command goes on from there.'


# In C, where Python's handlers wait for the end, as while JAX compiles: a mutex that this thread has locked already.
STUCK = """
import ctypes, os, pathlib, signal, sys
from cpng_jax.runtime import command, signals

def stuck(_):
    pathlib.Path(sys.argv[1]).write_text('')
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    lock(mutex)

def with_file(_):
    with signals.temporary(pathlib.Path(sys.argv[1])):
        stuck(_)

def stopping(_):
    with signals.StopRequest() as stop:
        stop.listen()
        stuck(_)

def parent(_):
    if os.fork() == 0:
        signal.raise_signal(signal.SIGUSR1)
    print(os.WTERMSIG(os.wait()[1]), flush=True)
    stuck(_)

command.run(globals()[sys.argv[2]])
"""


@pytest.mark.processes
@pytest.mark.parametrize('main', ['with_file', 'stopping', 'parent'])
def test_a_program_with_nothing_to_save_ends_at_once(tmp_path, main):
    """Also where it stops already and does not get to it; a process that it forks is no part of this."""
    ready = tmp_path / 'ready'
    program = forked.start('-c', STUCK, ready, main)
    try:
        while not ready.exists() and program.poll() is None:
            time.sleep(0.01)
        assert ready.exists()
        program.send_signal(signal.SIGINT)
        if main == 'stopping':
            with pytest.raises(subprocess.TimeoutExpired):
                program.communicate(timeout=1.2)
            program.send_signal(signal.SIGINT)
        out, error = program.communicate(timeout=20)
    finally:
        program.kill()
    assert program.returncode == 130
    assert error == '-c: ended by SIGINT.\n'
    assert out == (f'{int(signal.SIGUSR1)}\n' if main == 'parent' else '')
    assert ready.exists() == (main != 'with_file')
