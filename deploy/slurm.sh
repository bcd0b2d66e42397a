#!/usr/bin/env bash
# Run a study on the nodes of a Slurm allocation: start Ray on all of them, run the study, and stop Ray.
#
#   sbatch deploy/slurm.sh studies/quickstart.yaml
#   sbatch --nodes=8 --time=04:00:00 deploy/slurm.sh studies/quickstart.yaml --out /shared/out/quickstart
#   squeue --me
#   scancel JOB
#
# All arguments after the study are passed to `dgg-ray run`. The results, which include the stages, must be on a disk
# that all nodes share. On most clusters that is true of out/NAME below the folder in which you call sbatch. When the
# time is over, the study is stopped as by Ctrl-C. The same command continues from the finished stages and from the
# mid-stage checkpoints of the others. With DGG_RAY_REQUEUE=1 the job is requeued until the study is done.
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
# CHANGE: commands that make `dgg-ray` and `ray` available on every node.
# source .venv/bin/activate

set -euo pipefail
study=${1:?"which study? sbatch deploy/slurm.sh STUDY.yaml"}
shift

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a node; Ray's workers use lower ports
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}

# A token for this job only, because other people use this network.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_USAGE_STATS_ENABLED=0

# exec, because this is always called with `&` or in a pipe, and signals must reach srun, not the shell around it.
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

# Wait until the head answers `ray status`; a node that starts earlier would give up.
for _ in $(seq 60); do
  ray status --address="$ip:$port" >/dev/null 2>&1 && break
  kill -0 "${ray_pids[0]}" || exit 1
  sleep 1
done
for node in "${nodes[@]:1}"; do
  on "$node" ray start --address="$ip:$port" --num-cpus="$cpus" --num-gpus="$gpus" --block &
  ray_pids+=($!)
done

# Wait until Ray sees all nodes: worker groups that span nodes must not start with half of them.
python - "$ip:$port" "${#nodes[@]}" <<'PYTHON'
import sys, time
import ray

address, wanted = sys.argv[1], int(sys.argv[2])
ray.init(address=address, log_to_driver=False, logging_level="error")
deadline = time.monotonic() + 300
while (here := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"only {here} of {wanted} nodes joined within five minutes; see the messages of srun above")
    time.sleep(1)
print(f"{here} nodes, {ray.cluster_resources().get('GPU', 0):g} GPUs", flush=True)
PYTHON

# TERM, not INT: background processes of bash ignore INT.
out_of_time= stopped= interrupted= run=
stop_run() {
  stopped=1 interrupted=1
  [[ -z $run ]] || kill -TERM "$run" 2>/dev/null || true
}
trap 'out_of_time=1; stop_run' USR1 # the signal requested by --signal above
trap stop_run TERM # from scancel: the job is not requeued
dgg-ray run "$study" --ray-address "$ip:$port" "$@" &
run=$!
[[ -z $stopped ]] || stop_run # the signal came before there was a process to stop
code=
while :; do
  interrupted= status=0
  wait "$run" || status=$?
  [[ -n $code && $status == 127 ]] || code=$status # asked again, 127: the status was given before
  [[ -n $interrupted ]] || break # a signal ends `wait` with a status of its own: ask again for the run's
done

if [[ -n $out_of_time ]]; then
  if [[ ${DGG_RAY_REQUEUE:-0} == 1 ]]; then
    echo "out of time; the job is requeued"
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "out of time; to continue, run: sbatch $0 $study $*"
  fi
fi
exit "$code"
