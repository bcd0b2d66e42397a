#!/usr/bin/env bash
# A study on the nodes of a Slurm allocation: Ray is started on all of them, runs the study, and ends.
#
#   sbatch deploy/slurm.sh studies/quickstart.yaml
#   sbatch --nodes=8 --time=04:00:00 deploy/slurm.sh studies/quickstart.yaml --out /shared/out/quickstart
#   squeue --me
#   scancel JOB
#
# All that follows the study goes to `dgg-ray run`. The results, and with them the stages, must be on a disk that
# all nodes share; out/NAME below the folder in which you call sbatch is one on most clusters. At the end of the
# time the study is stopped as by Ctrl-C; the same command goes on with what is finished, and with the snapshots
# of what was not. DGG_RAY_REQUEUE=1 does that by itself, until the study is done.
#
# CHANGE the lines below to what your cluster offers.
#SBATCH --job-name=dgg-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
# CHANGE: what makes `dgg-ray` and `ray` known on every node.
# source .venv/bin/activate

set -euo pipefail
study=${1:?"which study? sbatch deploy/slurm.sh STUDY.yaml"}
shift

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a node; Ray's workers use ports below
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}

# A token for this job alone: other people are on this network.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_USAGE_STATS_ENABLED=0

# exec: always called behind `&` or in a pipe, and a signal is for srun, not for the shell around it.
on() { exec srun --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --overlap --nodelist="$1" "${@:2}"; }

ray_pids=()
end_ray() {
  ((${#ray_pids[@]})) && kill -TERM "${ray_pids[@]}" 2>/dev/null
  wait "${ray_pids[@]}" 2>/dev/null || true
  rm -rf "/tmp/dgg-$SLURM_JOB_ID"
}
trap end_ray EXIT

ip=$(on "$head" hostname --ip-address | tr ' ' '\n' | grep --max-count=1 '\.')
on "$head" ray start --head --node-ip-address="$ip" --port="$port" --num-cpus="$cpus" --num-gpus="$gpus" \
  --include-dashboard=false --temp-dir="/tmp/dgg-$SLURM_JOB_ID" --block &
ray_pids+=($!)

# `ray status` answers once the head does; a node that comes before it would give up.
for _ in $(seq 60); do
  ray status --address="$ip:$port" >/dev/null 2>&1 && break
  kill -0 "${ray_pids[0]}" || exit 1
  sleep 1
done
for node in "${nodes[@]:1}"; do
  on "$node" ray start --address="$ip:$port" --num-cpus="$cpus" --num-gpus="$gpus" --block &
  ray_pids+=($!)
done

# Ray counts what is there; fleets that are to span nodes must not begin with half of them.
python - "$ip:$port" "${#nodes[@]}" <<'PYTHON'
import sys, time
import ray

address, wanted = sys.argv[1], int(sys.argv[2])
ray.init(address=address, log_to_driver=False, logging_level="error")
deadline = time.monotonic() + 300
while (here := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"{here} of {wanted} nodes came within five minutes; look at what srun says above")
    time.sleep(1)
print(f"{here} nodes, {ray.cluster_resources().get('GPU', 0):g} GPUs", flush=True)
PYTHON

# TERM, not INT: bash lets what it starts in the background ignore INT.
out_of_time=
dgg-ray run "$study" --address "$ip:$port" "$@" &
run=$!
trap 'out_of_time=1; kill -TERM "$run" 2>/dev/null' USR1 # as --signal above has it
trap 'kill -TERM "$run" 2>/dev/null' TERM # scancel: who ended the job does not want it queued again
code=0
wait "$run" || code=$?
while kill -0 "$run" 2>/dev/null; do # a signal ends `wait` before what it waits for
  code=0
  wait "$run" || code=$?
done

if [[ -n $out_of_time ]]; then
  if [[ ${DGG_RAY_REQUEUE:-0} == 1 ]]; then
    echo "out of time; queued again"
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "out of time; go on with the same: sbatch $0 $study $*"
  fi
fi
exit "$code"
