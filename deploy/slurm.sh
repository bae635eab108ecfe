#!/usr/bin/env bash
# Starts a Ray cluster inside a Slurm allocation, and runs one command on it:
#     sbatch deploy/slurm.sh python experiments/ddpo.py paper --model.path ... --data.path ... \
#         --storage /shared/runs
# Every node needs this checkout and its environment (.venv, `make .venv/ready`) at the same path.
# Instead of the environment, IMAGE names an Apptainer image of deploy/Dockerfile.
# HEAD_ADDRESS is the first node's address where nodes have several networks. START_TIMEOUT is the
# time in seconds that nodes have to join (600).
# The first node runs the head, which takes no task, and a worker.
#SBATCH --job-name=rlhfv-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: sbatch deploy/slurm.sh COMMAND..." >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:-.}"
inside=()
if [ -n "${IMAGE:-}" ]; then
    inside=(apptainer exec --nv --bind "$PWD" --pwd "$PWD" "$IMAGE")
else
    source .venv/bin/activate
fi

# A token for this job alone, in a file that only its owner can read, on storage of all nodes.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/.ray-token-$SLURM_JOB_ID"
(umask 077; od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")
started=()
finish() {
    rm -f "$RAY_AUTH_TOKEN_PATH"
    if [ ${#started[@]} -gt 0 ]; then kill "${started[@]}" 2> /dev/null || true; fi
}
trap finish EXIT

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
if [ -z "${HEAD_ADDRESS:-}" ]; then
    # A node's own name may stand for a loopback address there; this list has none.
    read -r HEAD_ADDRESS _ < <(
        srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --all-ip-addresses) || true
fi
case "${HEAD_ADDRESS:-}" in
    "" | 127.* | ::1)
        echo "The first node, $head, has no address that other nodes reach. Set HEAD_ADDRESS." >&2
        exit 1 ;;
esac
address="$HEAD_ADDRESS:6379"
temporary=${TMPDIR:-/tmp}/rr$SLURM_JOB_ID  # short: Ray puts sockets there

# The first node runs two Rays, each with a folder of its own: a head without CPUs, and a worker.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" "${inside[@]}" \
    ray start --head --node-ip-address="$HEAD_ADDRESS" --port=6379 --num-cpus=0 --num-gpus=0 \
    --dashboard-host=127.0.0.1 --temp-dir="$temporary-head" --block &
started+=($!)
# srun of some versions does not take --cpus-per-task from the job, and would bind Ray to one CPU.
srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --cpus-per-task="$SLURM_CPUS_PER_TASK" "${inside[@]}" bash -c "
        until RAY_ADDRESS=$address ray status > /dev/null 2>&1; do sleep 2; done
        exec ray start --address=$address --num-cpus=$SLURM_CPUS_PER_TASK \
            --num-gpus=${SLURM_GPUS_ON_NODE:-0} --temp-dir=$temporary-worker --block" &
started+=($!)

# Wait for the head and for a worker on every node: a command on fewer would be refused, or starve.
export RAY_ADDRESS=$address
"${inside[@]}" python - "$SLURM_JOB_NUM_NODES" "${START_TIMEOUT:-600}" << 'END'
import sys
import time

import ray

wanted, deadline = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
workers, reason = 0, ""
while workers < wanted:
    if time.monotonic() > deadline:
        sys.exit(
            f"{workers} of {wanted} nodes joined Ray within {sys.argv[2]} s. {reason}Look at this "
            "job's output for the error of the missing ones; START_TIMEOUT gives them more time."
        )
    time.sleep(1)
    try:
        if not ray.is_initialized():
            ray.init(logging_level="ERROR")
        workers = sum(node["Alive"] for node in ray.nodes()) - 1
    except Exception as error:  # the head is not up yet
        reason = f"The head says: {str(error).strip().splitlines()[-1]} " if str(error) else ""
END
"${inside[@]}" "$@"
