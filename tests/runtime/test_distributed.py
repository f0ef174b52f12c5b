"""How a process detects that it is one of several, and what errors of the runtime mean."""

import importlib.util

import jax
import pytest

from cpng_jax.runtime import distributed
from cpng_jax.runtime.errors import BusyError, LostProcessError, UserError
from tests import forked

VARIABLES = {'JAX_COORDINATOR_ADDRESS': 'host:1234', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}
SLURM = {'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': 'a', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'}
OPEN_MPI = {'OMPI_MCA_orte_hnp_uri': 'x', 'OMPI_COMM_WORLD_SIZE': '2'}
KUBERNETES = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'}


@pytest.fixture
def no_cluster(monkeypatch):
    for name in (*VARIABLES, *SLURM, 'SLURM_NTASKS', *OPEN_MPI, *KUBERNETES, 'TPU_WORKER_HOSTNAMES'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)


@pytest.mark.parametrize(
    ('environment', 'expected'),
    [
        ({}, None),
        (VARIABLES, 'variables'),
        (VARIABLES | SLURM | {'SLURM_NTASKS': '2'}, 'variables'),
        (SLURM | {'SLURM_NTASKS': '2'}, 'SLURM'),
        (SLURM | {'SLURM_NTASKS': '1'}, None),  # srun of a single task
        (SLURM, None),
        ({'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '2'}, None),  # a shell of an allocation
        (OPEN_MPI, 'Open MPI'),
        (OPEN_MPI | {'OMPI_COMM_WORLD_SIZE': '1'}, None),
        (KUBERNETES, 'Kubernetes'),
        ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, None),  # a pod of no indexed Job
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, None),  # without libtpu
    ],
)
def test_what_has_started_the_processes_is_told_by_their_environment(environment, expected, no_cluster):
    assert distributed.found_cluster(environment) == expected


def test_a_tpu_is_told_by_its_library_and_its_hosts(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name == 'libtpu' or None)
    assert distributed.found_cluster({'TPU_WORKER_HOSTNAMES': 'a,b'}) == 'Cloud TPU'
    assert distributed.found_cluster({'TPU_PROCESS_ADDRESSES': 'a:1,b:1'}) == 'Cloud TPU'


def test_some_of_the_variables_are_not_enough():
    with pytest.raises(UserError, match=r'JAX_NUM_PROCESSES set, but not JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID'):
        distributed.found_cluster({'JAX_NUM_PROCESSES': '2'})


def test_auto_stays_alone_where_there_is_no_cluster_and_on_insists(no_cluster, tiny_config):
    distributed.start(tiny_config)
    assert not jax.distributed.is_initialized()
    tiny_config.distributed = 'on'
    with pytest.raises(UserError, match=r'config.distributed is on, but no cluster was found: expected the variables'):
        distributed.start(tiny_config)


def test_off_never_joins(no_cluster, monkeypatch, tiny_config):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    tiny_config.distributed = 'off'
    distributed.start(tiny_config)
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ('name', 'value'), [('JAX_PROCESS_ID', '2'), ('JAX_NUM_PROCESSES', 'two'), ('JAX_COORDINATOR_ADDRESS', 'host')]
)
def test_wrong_variables_are_named_with_their_values(no_cluster, monkeypatch, tiny_config, name, value):
    for key, right in VARIABLES.items():
        monkeypatch.setenv(key, right)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f'{name} (is )?{value!r}'):
        distributed.start(tiny_config)


def test_kubernetes_needs_its_client(no_cluster, monkeypatch, tiny_config):
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r'pip install "jax\[k8s\]"'):
        distributed.start(tiny_config)


@pytest.mark.processes
def test_processes_that_nobody_joins_give_up_with_a_sentence():
    program = 'from configs import digits; from cpng_jax.runtime import distributed, errors\n' + (
        'config = digits.get_config(); config.cluster.start_timeout = 2\n'
        'try:\n    distributed.start(config)\nexcept errors.UserError as error:\n    print(error)\n'
    )
    environment = VARIABLES | {'JAX_COORDINATOR_ADDRESS': '127.0.0.1:1', 'JAX_PROCESS_ID': '1'}
    process = forked.run('-c', program, environment=environment)
    # On standard error where JAX ends the process itself, as it does where it cannot even reach the first.
    said = (process.stdout + process.stderr).splitlines()
    assert 'did not find each other within config.cluster.start_timeout = 2 s' in said[-1]
    assert process.returncode == (2 if process.stderr else 0)


def test_alone_a_process_is_primary_agrees_and_waits_for_nobody():
    assert distributed.is_primary()
    distributed.barrier('nobody')
    assert distributed.all_agree(True) is True
    assert distributed.all_agree(False) is False


def test_what_the_primary_process_is_refused_all_are_refused(monkeypatch):
    def refuse():
        raise BusyError('The run is under way.')

    with pytest.raises(BusyError, match=r'^The run is under way\.$'):
        distributed.on_primary(refuse)
    assert distributed.on_primary(lambda: 3) == 3
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    said = iter([[True, 'The run is under way.'], [False, 'Cannot write.'], None])
    monkeypatch.setattr(distributed, 'from_primary', lambda _: next(said))
    for kind, sentence in ((BusyError, r'^The run is under way\.$'), (UserError, r'^Cannot write\.$')):
        with pytest.raises(UserError, match=sentence) as caught:
            distributed.on_primary(refuse)
        assert caught.type is kind
    assert distributed.on_primary(refuse) is None


def test_errors_of_the_runtime_are_translated(monkeypatch):
    memory = distributed.translate_error(RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes\nmore'))
    assert isinstance(memory, UserError)
    assert str(memory).startswith(
        'The device has not enough memory: RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes. '
        'Try config.optim.accumulate=2'
    )
    other = RuntimeError('INTERNAL: gloo')
    assert distributed.translate_error(other) is other
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    lost = distributed.translate_error(other)
    assert isinstance(lost, LostProcessError)
    assert str(lost).startswith('Process 0 of 2 lost another, which has ended: INTERNAL: gloo.')


def test_a_process_of_its_own_exits_as_usual():
    with pytest.raises(SystemExit) as left:
        distributed.exit_process(3)
    assert left.value.code == 3
