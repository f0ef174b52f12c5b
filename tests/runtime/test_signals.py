import os
import signal
import threading

import pytest

from cpng_jax.runtime.signals import Stopped, StopRequest


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_old_handler_comes_back(signum):
    before = signal.getsignal(signum)
    with StopRequest() as stop:
        assert not stop.after(1)
        os.kill(os.getpid(), signum)
        assert stop.after(1)
        assert stop.signal == signum
        # From here on a second signal does what it always did.
        assert signal.getsignal(signum) is before
    assert signal.getsignal(signum) is before


def test_without_a_signal_nothing_is_left_behind():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) is not before
    assert not stop.after(1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_leave_signals_alone():
    seen = []

    def work():
        with StopRequest() as stop:
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
