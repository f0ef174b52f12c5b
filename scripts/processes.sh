#!/usr/bin/env bash
# Starts N processes of train.py on this machine that form one run, and ends when all of them have ended.
#
#     scripts/processes.sh N [train.py arguments...]
#     DEVICES=2 scripts/processes.sh 2 --config=configs/digits.py --workdir=runs/digits
#
# Tried with CPU devices; GPUS=1 is UNTRIED.
#
# The output of process 0 goes to the terminal, that of the others to files in LOGS. Signals that stop a run (INT, TERM,
# HUP, USR1, USR2) are passed on to the processes, which save and end. The exit code is that of the first process that
# failed, 0 if none did.
#
#     DEVICES=k   each process gets k CPU devices
#     GPUS=1      process i gets GPU i (the i-th of CUDA_VISIBLE_DEVICES where that is set)
#     PORT        where the processes meet; a free one if not given
#     LOGS        folder for the output of processes 1 and up; a new temporary one if not given
#     PYTHON      the interpreter; that of .venv if there is one, else python3
#     TRAIN       what to start in place of "PYTHON train.py", words separated by spaces
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
    echo "processes.sh: $1" >&2
    exit 2
}

is_count() {
    [[ $1 =~ ^[1-9][0-9]*$ ]]
}

is_count "${1:-}" || fail "expected scripts/processes.sh N [train.py arguments...] with N processes, got '$*'."
count=$1
shift
if [[ -n ${DEVICES:-} ]]; then
    is_count "$DEVICES" || fail "DEVICES is '$DEVICES', expected the number of CPU devices of each process."
    [[ -z ${GPUS:-} ]] || fail "DEVICES is for CPUs and GPUS for GPUs; give one of them."
fi
gpus=()
if [[ ${GPUS:-} == 1 ]]; then
    IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((count - 1)))}"
    ((${#gpus[@]} >= count)) || fail "CUDA_VISIBLE_DEVICES names ${#gpus[@]} GPUs, but N is $count."
elif [[ -n ${GPUS:-} ]]; then
    fail "GPUS is '$GPUS', expected 1 for one GPU per process, or nothing."
fi

python=${PYTHON:-python3}
[[ -n ${PYTHON:-} || ! -x $root/.venv/bin/python ]] || python=$root/.venv/bin/python
command=("$python" "$root/train.py")
[[ -z ${TRAIN:-} ]] || read -ra command <<<"$TRAIN"
port=${PORT:-$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')}
logs=${LOGS:-}
((count == 1)) || mkdir -p "${logs:=$(mktemp -d)}"

# The environment of process $1, then the process itself in place of the shell, so that signals reach it.
start() {
    export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$count JAX_PROCESS_ID=$1
    export no_grpc_proxy=127.0.0.1 # A proxy of the machine must not stand between its own processes.
    if [[ -n ${DEVICES:-} ]]; then
        export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"
    fi
    [[ ${#gpus[@]} == 0 ]] || export CUDA_VISIBLE_DEVICES=${gpus[$1]}
    shift
    exec "${command[@]}" "$@"
}

pids=()
signalled=''

# shellcheck disable=SC2329  # The traps below call it.
pass_on() {
    signalled=$1
    [[ ${#pids[@]} == 0 ]] || kill -s "$1" "${pids[@]}" 2>/dev/null || true # Some may have ended already.
}
for name in INT TERM HUP USR1 USR2; do
    # shellcheck disable=SC2064  # the name of today; one that was ignored at the start, by nohup, stays ignored
    trap "pass_on $name" "$name"
done

# Job control gives each process a group of its own: Ctrl-C comes here alone and is passed on once.
set -m
start 0 "$@" </dev/null &
pids[0]=$!
for ((i = 1; i < count; i++)); do
    [[ -z $signalled ]] || break
    start "$i" "$@" </dev/null >"$logs/$i.out" 2>"$logs/$i.err" &
    pids[i]=$!
done
set +m
((count == 1)) || echo "processes.sh: $count processes meet at port $port; output of 1 to $((count - 1)) in $logs" >&2

# A look at all of them in turn, as the order in which they end tells the cause from its consequences.
first=0
failed=()
while ((${#pids[@]} > 0)); do
    for i in "${!pids[@]}"; do
        kill -0 "${pids[i]}" 2>/dev/null && continue
        code=0
        wait "${pids[i]}" || code=$?
        unset "pids[i]"
        ((code != 0)) || continue
        failed+=("$i")
        ((first == 0)) || continue
        first=$code
        [[ -n $signalled || ${#pids[@]} == 0 ]] ||
            echo "processes.sh: process $i ended with exit code $code; the others end when they notice." >&2
    done
    sleep 0.1
done

if [[ -z $signalled && $first != 0 ]]; then
    for i in "${failed[@]}"; do
        ((i > 0)) || continue # It wrote to the terminal.
        echo "processes.sh: the last lines of $logs/$i.err:" >&2
        tail -n 20 "$logs/$i.err" >&2
    done
fi
exit "$first"
