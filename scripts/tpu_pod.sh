#!/usr/bin/env bash
# UNTRIED: written from the manual of Cloud TPU; no TPU was at hand.
#
# Creates a TPU VM slice, installs this repository on all its hosts, and starts and stops one run on it.
#
#     export TPU_NAME=cpng ZONE=europe-west4-b ACCELERATOR_TYPE=v5litepod-32 RUNTIME_VERSION=v2-alpha-tpuv5-lite
#     export NFS=10.0.0.2:/shared   # a file share that all hosts mount at /mnt/shared
#     scripts/tpu_pod.sh create
#     scripts/tpu_pod.sh install
#     scripts/tpu_pod.sh start --config=configs/imagenet_sew_resnet34.py --workdir=/mnt/shared/runs/imagenet \
#         --config.data.dir=/mnt/shared/data
#     scripts/tpu_pod.sh log        # of host 0, until Ctrl-C
#     scripts/tpu_pod.sh stop       # saves and ends; the same start goes on
#     scripts/tpu_pod.sh delete     # ends the costs; the share stays
#
#     SPOT=1   create asks for a cheaper slice, which may be taken away at any time
set -euo pipefail

fail() {
    echo "tpu_pod.sh: $1" >&2
    exit 2
}

needs() {
    local name
    for name in "$@"; do
        [[ -n ${!name:-} ]] || fail "$name is not set; the head of this file shows all variables."
    done
}

on() {
    gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

create() {
    needs ACCELERATOR_TYPE RUNTIME_VERSION
    gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$ZONE" --accelerator-type="$ACCELERATOR_TYPE" \
        --version="$RUNTIME_VERSION" ${SPOT:+--spot}
}

# The last commit, with a Python of its own: the images of TPU VMs bring one that is too old.
install() {
    needs NFS
    local archive
    archive=$(mktemp -d)/cpng_jax.tar.gz
    git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:cpng_jax.tar.gz" --zone="$ZONE" --worker=all
    on all "set -e
        sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common
        sudo mkdir -p /mnt/shared
        mountpoint -q /mnt/shared || sudo mount '$NFS' /mnt/shared
        mkdir -p cpng_jax && tar -xzf cpng_jax.tar.gz -C cpng_jax && cd cpng_jax
        python3 -m pip install --quiet --user uv
        test -x .venv/bin/python || python3 -m uv venv --python=3.12 .venv
        python3 -m uv pip install --quiet --python=.venv/bin/python -r requirements.txt 'jax[tpu]'"
}

# The same command on every host; it outlives the connection.
start() {
    local arguments
    arguments=$(printf ' %q' --config.distributed=on "$@")
    on all "cd cpng_jax
        if test -f pid && kill -0 \$(cat pid) 2>/dev/null; then echo 'A run is in progress: stop it first.' >&2; exit 1; fi
        nohup .venv/bin/python train.py$arguments >train.log 2>&1 </dev/null & echo \$! >pid"
}

# A signal to one process is enough: all save at the same step and end.
stop() {
    # shellcheck disable=SC2016  # for the shell of the host
    on 0 'kill -TERM $(cat cpng_jax/pid)'
    # shellcheck disable=SC2016
    on all 'while kill -0 $(cat cpng_jax/pid) 2>/dev/null; do sleep 1; done; tail -n 1 cpng_jax/train.log'
}

log() {
    on 0 'tail -n +1 -F cpng_jax/train.log'
}

delete() {
    gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone="$ZONE" --quiet
}

action=${1:-}
case $action in
    create | install | start | stop | log | delete) ;;
    *) fail "expected tpu_pod.sh create, install, start [train.py arguments...], stop, log or delete, got '$action'." ;;
esac
shift
needs TPU_NAME ZONE
"$action" "$@"
