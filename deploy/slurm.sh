#!/usr/bin/env bash
# Starts a Ray cluster inside a Slurm allocation, and runs one command on it:
#     sbatch deploy/slurm.sh python experiments/ddpo.py paper --model.path ... --data.path ... \
#         --storage /shared/runs
# Every node needs this checkout and its environment (.venv, `make .venv/ready`) at the same path.
# The first node runs the head, which takes no task, and a worker.
#SBATCH --job-name=rlhfv-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: sbatch deploy/slurm.sh COMMAND..." >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:-.}"
source .venv/bin/activate

# A token for this job alone, in a file that only its owner can read, on storage of all nodes.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/.ray-token-$SLURM_JOB_ID"
(umask 077; python -c "import secrets; print(secrets.token_hex(32))" > "$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
addresses=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address)
address="${addresses%% *}:6379"

# The first node runs two Rays: a head without CPUs, and a worker with them.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --port=6379 --num-cpus=0 --num-gpus=0 --dashboard-host=127.0.0.1 --block &
for _ in $(seq 60); do
    if RAY_ADDRESS=$address ray status > /dev/null 2>&1; then break; fi
    sleep 2
done
srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    ray start --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" \
    --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block &

# Wait for all requested nodes, plus the head.
for _ in $(seq 60); do
    count=$(RAY_ADDRESS=$address python -c "
import ray
ray.init('auto', logging_level='ERROR')
print(sum(node['Alive'] for node in ray.nodes()))")
    if [ "$count" -gt "$SLURM_JOB_NUM_NODES" ]; then break; fi
    sleep 2
done
RAY_ADDRESS=$address "$@"
