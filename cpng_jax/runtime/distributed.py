"""Several processes that form one run: how they join, synchronise and exit."""

import ctypes
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from cpng_jax.runtime.config import Config
from cpng_jax.runtime.errors import BusyError, LostProcessError, UserError
from cpng_jax.runtime.streams import discard, program_name

Result = TypeVar('Result')

_VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_GRACE = 5  # seconds
_LOST = (
    'JAX has ended this process for the reason above. Mostly it has lost another, which has ended: its own output says '
    'why. The same command goes on from the latest checkpoint.'
)
_on_abort = (os.EX_TEMPFAIL, _LOST)  # exit code and last sentence where JAX aborts this process
_EXPECTED = (
    f'the variables {", ".join(_VARIABLES)}; srun of SLURM or mpirun of Open MPI with more than one task; an indexed '
    'Job of Kubernetes; or a Cloud TPU'
)


def found_cluster(environment: Mapping[str, str]) -> str | None:
    """Detects what has started this process as one of several.

    Args:
      environment: the environment variables.

    Returns:
      'variables', 'SLURM', 'Open MPI', 'Kubernetes' or 'Cloud TPU'; None for a process on its own.

    Raises:
      UserError: some, but not all, of JAX's own variables are there.
    """
    given = [name for name in _VARIABLES if environment.get(name)]
    if given:
        missing = [name for name in _VARIABLES if name not in given]
        if missing:
            raise UserError(
                f'{" and ".join(given)} set, but not {" and ".join(missing)}: processes that form one run need all '
                'three; unset them for a run on its own.'
            )
        return 'variables'
    slurm = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID')
    # A shell inside an allocation has most of SLURM's variables too; only srun sets those of a step.
    if all(name in environment for name in slurm) and _count(environment, 'SLURM_NTASKS') > 1:
        return 'SLURM'
    if 'OMPI_MCA_orte_hnp_uri' in environment and _count(environment, 'OMPI_COMM_WORLD_SIZE') > 1:
        return 'Open MPI'
    # Either is enough for JAX to take several hosts as one; a single TPU host JAX recognises itself.
    hosts = environment.get('TPU_WORKER_HOSTNAMES') or environment.get('TPU_PROCESS_ADDRESSES')
    if importlib.util.find_spec('libtpu') and (hosts or any(map(os.path.exists, ('/dev/accel0', '/dev/vfio/0')))):
        return 'Cloud TPU'
    if 'KUBERNETES_SERVICE_HOST' in environment and 'JOB_COMPLETION_INDEX' in environment:
        return 'Kubernetes'
    return None


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, '')
    return int(text) if text.isdecimal() else 0


def start(config: Config, *, stops: bool = True) -> None:
    """Joins the processes of a run; call it before anything asks JAX for a device.

    From then on an abort of JAX, which is what it does where it notices that another process has died, ends this one
    with a sentence and exit code 75.

    Args:
      config: `distributed` is 'auto' to join where a cluster is found, 'on' to insist on one, 'off' never to join.
      stops: whether the program polls a `StopRequest`, and JAX shall tell all processes of a SIGTERM to one.

    Raises:
      UserError: there is no cluster to join, or the other processes were not there in time.
    """
    if config.distributed == 'off' or jax.distributed.is_initialized():
        return
    cluster = found_cluster(os.environ)
    if cluster is None:
        if config.distributed == 'on':
            raise UserError(f'config.distributed is on, but no cluster was found: expected {_EXPECTED}.')
        return
    if cluster == 'Kubernetes' and importlib.util.find_spec('kubernetes') is None:
        raise UserError('A Job of Kubernetes is joined with its client: pip install "jax[k8s]"')
    explicit = {}
    if cluster == 'variables':
        address, count, process = (os.environ[name] for name in _VARIABLES)
        if not (count.isdecimal() and process.isdecimal() and int(process) < int(count) and ':' in address):
            raise UserError(
                f'JAX_COORDINATOR_ADDRESS is {address!r}, JAX_NUM_PROCESSES {count!r}, JAX_PROCESS_ID {process!r}: '
                'expected host:port, the number of processes, and an integer from 0 to one below that number.'
            )
        explicit = {'coordinator_address': address, 'num_processes': int(count), 'process_id': int(process)}
        explicit['cluster_detection_method'] = 'deactivate'
    if not stops and hasattr(jax.config, 'jax_enable_preemption_service'):
        jax.config.update('jax_enable_preemption_service', False)
    late = (
        f'The processes of this run ({cluster}) did not find each other within config.cluster.start_timeout = '
        f'{config.cluster.start_timeout} s: {{reason}}. Start all of them, and let each reach the address of the first.'
    )
    _handle_aborts(2, late.format(reason='see above'))
    try:
        jax.distributed.initialize(
            **explicit,
            initialization_timeout=config.cluster.start_timeout,
            heartbeat_timeout_seconds=config.cluster.heartbeat_timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(late.format(reason=str(error).splitlines()[0])) from error
    _handle_aborts(os.EX_TEMPFAIL, _LOST)


def _handle_aborts(code: int, sentence: str) -> None:
    """Has this process end with a sentence and an exit code where JAX aborts it."""
    global _on_abort  # noqa: PLW0603  There is one handler for the process.
    _on_abort = code, sentence
    # Python's own handlers wait for the main thread, but JAX aborts in another and does not come back.
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(_aborted, ctypes.c_void_p))


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    code, sentence = _on_abort
    os.write(2, f'{program_name()}: {sentence}\n'.encode())
    os._exit(code)


def is_primary() -> bool:
    """Whether this is the primary process: the one that writes the files of the run and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_agree(value: bool) -> bool:
    """Whether a value is true on every process; every process has to ask, and all get the same answer."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.array(value))))


def arrays_from_primary(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that the primary process has; every process has to ask, with arrays of the same names and shapes."""
    if jax.process_count() == 1:
        return arrays
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(arrays))


def from_primary(value: Any) -> Any:
    """Hands what the primary process has to all, and they go on alike; every process has to ask.

    Args:
      value: what JSON can hold.

    Returns:
      The value of the primary process, tuples as lists.
    """
    text = json.dumps(value).encode()
    if jax.process_count() > 1:
        # All take part with arrays of one shape: first with the length, then with so many bytes.
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
        padded = np.frombuffer(text[:size].ljust(size), np.uint8)
        text = np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()
    return json.loads(text)


def on_primary(action: Callable[[], Result]) -> Result | None:
    """Has the primary process do something, and the others wait; every process has to call it.

    Args:
      action: what to do.

    Returns:
      What that returned; None in the others.

    Raises:
      UserError: in every process, where the action raised one.
    """
    result, error = None, None
    if is_primary():
        try:
            result = action()
        except UserError as refused:
            error = refused
    refusal = from_primary(error and [isinstance(error, BusyError), str(error)])
    if refusal is not None:
        busy, sentence = refusal
        raise error or (BusyError if busy else UserError)(sentence)
    return result


def translate_error(error: RuntimeError) -> Exception:
    """Makes an error for the user of one of JAX's runtime, where its meaning is known.

    Args:
      error: the `jax.errors.JaxRuntimeError`.

    Returns:
      A `UserError` for memory that ran out, a `LostProcessError` where there are others, otherwise the error itself.
    """
    reason = str(error).strip().splitlines()[0]
    if 'RESOURCE_EXHAUSTED' in reason:
        return UserError(
            f'The device has not enough memory: {reason}. Try config.optim.accumulate=2, config.remat=block, '
            'config.dtype=bfloat16, config.mesh.fsdp=True, or a smaller config.batch_size.'
        )
    return lost_process_error(error) if jax.process_count() > 1 else error


def lost_process_error(error: Exception) -> LostProcessError:
    """Makes the error for a process of the run that has ended.

    Args:
      error: what that caused in this process.

    Returns:
      What to raise instead.
    """
    reason = str(error).strip().splitlines()[0]
    return LostProcessError(
        f'Process {jax.process_index()} of {jax.process_count()} lost another, which has ended: {reason}. '
        'Its own output says why. The same command goes on from the latest checkpoint.'
    )


def exit_process(code: int) -> NoReturn:
    """Exits with a code; one process of several exits at once, without the shutdown barrier of JAX.

    At that barrier it would wait for the others, while they wait for its part of a computation.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        discard(2)  # What JAX has to say from here on would bury the sentence.
        _handle_aborts(code, '')
        # JAX aborts the others once the primary is gone: what ends all of them, each gets time to print first.
        if is_primary():
            time.sleep(_GRACE)
        os._exit(code)
    sys.exit(code)
