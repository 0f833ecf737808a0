#!/bin/bash
# A run on a Slurm cluster: sbatch deploy/slurm.sh recipe.toml runs/first
# One task a node: Ray's head and the run on the first, Ray's workers on the others. Submitted again, it goes on; asked to
# end before its time is up, it puts itself back into the queue.
#SBATCH --job-name=internalize
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

recipe=${1:?the recipe}
out=${2:?the run directory, on a disk that all nodes see}
port=6379
gpus=${SLURM_GPUS_PER_NODE:-0}
players=$((SLURM_JOB_NUM_NODES * gpus - 1)) # the last GPU of the first node trains
[ "$gpus" -gt 0 ] || players=$SLURM_JOB_NUM_NODES
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

trap 'scontrol requeue "$SLURM_JOB_ID"' TERM

srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
    ray start --head --node-ip-address="${nodes[0]}" --port="$port" --num-gpus="$((gpus > 0 ? gpus - 1 : 0))" --block &
export RAY_ADDRESS="${nodes[0]}:$port"
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 --nodelist="$node" ray start --address="$RAY_ADDRESS" --num-gpus="$gpus" --block &
done
until ray status > /dev/null 2>&1; do sleep 2; done

internalize run "$recipe" --out "$out" --resume \
    --set compute.rollout=ray --set compute.replicas="$players" --set compute.gpus="$((gpus > 0 ? 1 : 0))" \
    --set compute.device="$([ "$gpus" -gt 0 ] && echo "cuda:$((gpus - 1))" || echo cpu)" &
wait $!
