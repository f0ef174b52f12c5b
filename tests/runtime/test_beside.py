"""What may happen beside a training run: it is read by all that read, and nobody else writes to its folder."""

import signal

import pytest

from cpng_jax.analysis import chi, report
from cpng_jax.analysis.run import Run
from cpng_jax.runtime import metrics
from cpng_jax.runtime.errors import BusyError
from tests.runs import contents, finish, run_shared, start, wait_for_checkpoint

pytestmark = [pytest.mark.processes, pytest.mark.trains]


@pytest.fixture
def by_step(tiny_config):
    tiny_config.checkpoint.every_steps = 1
    tiny_config.checkpoint.keep = 1
    tiny_config.epochs = 1000
    return tiny_config


def test_a_run_that_saves_every_step_is_read_beside_it_and_has_no_second(tmp_path, by_step):
    workdir = tmp_path / "lr[0.1] 100%s {}#*?'"
    process = start(workdir, by_step)
    wait_for_checkpoint(process, workdir, 12)  # the first epoch has ended
    try:
        steps = [run_shared(by_step, workdir, 'eval')['step'] for _ in range(2)]
        assert 12 <= steps[0] <= steps[1]
        by_step.eval.checkpoint = 'best'
        assert run_shared(by_step, workdir, 'eval')['step'] % 11 == 0
        run_shared(by_step, workdir, 'summary')
        run = Run(workdir)
        assert int(run.state.step) >= steps[-1]
        chi.analyse(run)
        report.analyse(run)
        with pytest.raises(BusyError, match=rf'^The run in .* is under way, by process {process.pid} on '):
            run_shared(by_step, workdir)
        assert process.poll() is None
        wait_for_checkpoint(process, workdir, int(run.state.step) + 2)
    finally:
        process.send_signal(signal.SIGTERM)
        (code,), ((_, error),) = finish([process])
    assert code == 143, error
    assert error.count('\n') == 1, error
    rows = [row['step'] for row in metrics.read_epochs(workdir)]
    assert rows == list(range(11, rows[-1] + 1, 11))
    before = contents(workdir)
    run_shared(by_step, workdir, 'eval')
    run_shared(by_step, workdir, 'summary')
    assert contents(workdir) == before
