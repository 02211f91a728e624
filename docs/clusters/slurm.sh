#!/bin/bash
# A sweep on the nodes of one Slurm job: Ray's head and the driver on the first, a Ray worker on each other one.
#
#   sbatch docs/clusters/slurm.sh run --preset standard --out "$HOME/sweep"
#
# Adapt the lines below; submit the same again after a time limit, and the sweep goes on where it stopped.
#SBATCH --job-name=medbench
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

export RAY_USAGE_STATS_ENABLED=0
# Another token for each job: nobody else on these nodes may use its cluster.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_TOKEN

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000))
gpus=${SLURM_GPUS_PER_TASK:-0}
resources=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${gpus##*:}" --disable-usage-stats)

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --node-ip-address="$address" --port="$port" --include-dashboard=false "${resources[@]}" --block &
until srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" ray status --address="$address:$port" >/dev/null 2>&1; do
    sleep 2
done
if ((SLURM_JOB_NUM_NODES > 1)); then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        ray start --address="$address:$port" "${resources[@]}" --block &
fi

# Slurm tells this script 120 s before the end (--signal): the driver then has trainings keep a checkpoint.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    bench "$@" --executor ray --ray-address "$address:$port" &
driver=$!
trap 'kill -TERM "$driver"' TERM
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2>/dev/null; do # the wait was cut short by the signal
    code=0
    wait "$driver" || code=$?
done
exit "$code"
