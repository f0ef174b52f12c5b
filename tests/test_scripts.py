"""The scripts that start a run on several processes, with a stand-in for train.py, and docs/clusters.md."""

import json
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import time

import pytest
import yaml  # which ml_collections needs

from cpng_jax.runtime.config import flatten

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.processes
SCRIPTS = ROOT / 'scripts'
RECIPES = [ROOT / 'docs' / 'clusters.md', *sorted(SCRIPTS.iterdir())]

# Writes what it was started with; then ends, fails as processes of one run do, or waits for a signal.
STAND_IN = """
import json, os, pathlib, signal, sys, time

def end(signum, _):
    sys.exit(128 + signum)

for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(signum, end)
process, mode = os.environ['JAX_PROCESS_ID'], sys.argv[1]
report = pathlib.Path(os.environ['REPORTS'], process)
report.with_suffix('.part').write_text(json.dumps([dict(os.environ), sys.argv[1:]]))
report.with_suffix('.part').rename(report)
print('output of', process, flush=True)
if mode == 'fail':
    failed = report.with_name('failed')
    if process == '1':
        failed.touch()
        print('the cause', file=sys.stderr)
        sys.exit(7)
    while not failed.exists():
        time.sleep(0.02)
    time.sleep(1)
    sys.exit(f'a consequence for {process}')
if mode == 'wait':
    time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Starts processes.sh with the stand-in; `REPORTS` has a file for each process that runs."""
    (tmp_path / 'stand_in.py').write_text(STAND_IN)
    (tmp_path / 'reports').mkdir()
    unset = ('DEVICES', 'GPUS', 'PORT', 'CUDA_VISIBLE_DEVICES', 'JAX_PLATFORMS', 'XLA_FLAGS')
    own = {
        'TRAIN': f'{sys.executable} {tmp_path / "stand_in.py"}',
        'PYTHON': sys.executable,
        'REPORTS': str(tmp_path / 'reports'),
        'LOGS': str(tmp_path / 'logs'),
    }
    environment = {name: value for name, value in os.environ.items() if name not in unset} | own

    def run(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [SCRIPTS / 'processes.sh', *arguments],
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def test_each_process_gets_its_place_in_the_run(start, tmp_path):
    process = start('3', 'end', 'two words', DEVICES='2', XLA_FLAGS='--xla_other')
    output, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    reports = [json.loads((tmp_path / 'reports' / str(index)).read_text()) for index in range(3)]
    assert [environment['JAX_PROCESS_ID'] for environment, _ in reports] == ['0', '1', '2']
    addresses = {environment['JAX_COORDINATOR_ADDRESS'] for environment, _ in reports}
    assert len(addresses) == 1 and re.fullmatch(r'127\.0\.0\.1:\d+', addresses.pop())
    for environment, arguments in reports:
        assert environment['JAX_NUM_PROCESSES'] == '3'
        assert environment['XLA_FLAGS'] == '--xla_other --xla_force_host_platform_device_count=2'
        assert 'CUDA_VISIBLE_DEVICES' not in environment
        assert arguments == ['end', 'two words']
    assert output == 'output of 0\n'
    assert (tmp_path / 'logs' / '2.out').read_text() == 'output of 2\n'


@pytest.mark.parametrize(('visible', 'expected'), [({}, ['0', '1']), ({'CUDA_VISIBLE_DEVICES': '4,6'}, ['4', '6'])])
def test_each_process_gets_a_gpu_and_the_port_asked_for(visible, expected, start, tmp_path):
    process = start('2', 'end', GPUS='1', PORT='12345', **visible)
    assert process.communicate(timeout=60) and process.returncode == 0
    reports = [json.loads((tmp_path / 'reports' / str(index)).read_text())[0] for index in range(2)]
    assert [environment['CUDA_VISIBLE_DEVICES'] for environment in reports] == expected
    assert {environment['JAX_COORDINATOR_ADDRESS'] for environment in reports} == {'127.0.0.1:12345'}
    assert all('XLA_FLAGS' not in environment for environment in reports)


def test_the_first_process_that_fails_gives_code_and_reason(start):
    process = start('3', 'fail')
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 7
    assert 'process 1 ended with exit code 7; the others end when they notice.' in messages
    assert all(line in messages for line in ('the cause', 'a consequence for 0', 'a consequence for 2'))


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_every_process(signum, start, tmp_path):
    process = start('2', 'wait')
    deadline = time.monotonic() + 30
    while not all((tmp_path / 'reports' / index).exists() for index in '01'):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signum)
    _, messages = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert 'the last lines' not in messages


@pytest.mark.parametrize(
    ('arguments', 'variables', 'sentence'),
    [
        ([], {}, "expected scripts/processes.sh N [train.py arguments...] with N processes, got ''."),
        (
            ['--config=x'],
            {},
            "expected scripts/processes.sh N [train.py arguments...] with N processes, got '--config=x'.",
        ),
        (['2'], {'DEVICES': '0'}, "DEVICES is '0', expected the number of CPU devices of each process."),
        (['2'], {'DEVICES': '1', 'GPUS': '1'}, 'DEVICES is for CPUs and GPUS for GPUs; give one of them.'),
        (['2'], {'GPUS': '2'}, "GPUS is '2', expected 1 for one GPU per process, or nothing."),
        (['2'], {'GPUS': '1', 'CUDA_VISIBLE_DEVICES': '3'}, 'CUDA_VISIBLE_DEVICES names 1 GPUs, but N is 2.'),
    ],
)
def test_wrong_usage_of_processes_is_one_sentence(arguments, variables, sentence, start):
    process = start(*arguments, **variables)
    assert process.communicate(timeout=30) == ('', f'processes.sh: {sentence}\n')
    assert process.returncode == 2


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [([], 'expected tpu_pod.sh create, install, start'), (['start'], 'TPU_NAME is not set')],
)
def test_wrong_usage_of_tpu_pod_is_one_sentence(arguments, sentence):
    environment = {'PATH': os.environ['PATH']}
    process = subprocess.run([SCRIPTS / 'tpu_pod.sh', *arguments], env=environment, capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.startswith(f'tpu_pod.sh: {sentence}') and process.stderr.count('\n') == 1


@pytest.mark.parametrize(
    'script', [path for path in RECIPES if path.suffix in ('.sh', '.sbatch')], ids=lambda path: path.name
)
def test_bash_can_read_the_script(script):
    process = subprocess.run(['bash', '-n', script], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, '')


def test_the_parts_of_the_kubernetes_job_fit_together():
    parts = {part['kind']: part for part in yaml.safe_load_all((SCRIPTS / 'k8s-job.yaml').read_text())}
    job = parts['Job']['spec']
    pod = job['template']['spec']
    assert job['completionMode'] == 'Indexed' and job['completions'] == job['parallelism']
    # A headless Service that selects the pods of the job, and that they name.
    assert parts['Service']['spec']['clusterIP'] == 'None'
    assert parts['Service']['spec']['selector'] == {'batch.kubernetes.io/job-name': parts['Job']['metadata']['name']}
    assert pod['subdomain'] == parts['Service']['metadata']['name']
    # The account has the permissions of JAX's look-ups, and the pods run under it.
    account = parts['ServiceAccount']['metadata']['name']
    assert pod['serviceAccountName'] == account
    assert parts['RoleBinding']['subjects'] == [{'kind': 'ServiceAccount', 'name': account}]
    assert parts['RoleBinding']['roleRef']['name'] == parts['Role']['metadata']['name']
    granted = {name: rule['verbs'] for rule in parts['Role']['rules'] for name in rule['resources']}
    assert 'list' in granted['pods'] and 'get' in granted['jobs']
    assert parts['Job']['metadata']['labels']
    # Kubernetes accepts a podFailurePolicy with this restart policy alone; its rules name the container.
    (container,) = pod['containers']
    assert pod['restartPolicy'] == 'Never'
    named = {rule['onExitCodes']['containerName'] for rule in job['podFailurePolicy']['rules'] if 'onExitCodes' in rule}
    assert named == {container['name']}
    assert {mount['name'] for mount in container['volumeMounts']} == {volume['name'] for volume in pod['volumes']}


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.name)
def test_keys_and_files_that_a_recipe_names_exist(path):
    text = path.read_text()
    known = flatten(runpy.run_path(str(ROOT / 'configs' / 'base.py'))['get_config']())
    assert {key for key in re.findall(r'\bconfig\.([a-z_]+(?:\.[a-z_]+)*)', text) if key not in known} == set()
    assert [
        name for name in re.findall(r'(?:configs|scripts)/\w[\w-]*\.\w+', text) if not (ROOT / name).is_file()
    ] == []


@pytest.mark.parametrize('path', [path for path in RECIPES if path.name != 'processes.sh'], ids=lambda path: path.name)
def test_what_nobody_has_tried_says_so(path):
    assert 'UNTRIED' in path.read_text()
