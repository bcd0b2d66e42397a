"""Check the cluster files without a cloud: by `ray up`'s validation, KubeRay's fields, a fake Slurm."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import typer.main
import yaml
from commands import ROOT, check, in_comments

from dgg_ray import cli

DEPLOY = ROOT / "deploy"
AUTOSCALED = [ROOT / "cluster.yaml", DEPLOY / "gcp.yaml"]
FILES = [*AUTOSCALED, DEPLOY / "kuberay.yaml", DEPLOY / "slurm.sh", DEPLOY / "Dockerfile"]
RAY = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


@pytest.fixture(params=AUTOSCALED, ids=lambda file: file.name)
def cluster(request):
    return yaml.safe_load(request.param.read_text())


def validate(cluster):
    """Validate a cluster as `ray up` does before it contacts the cloud; return it with the defaults."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster)
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_command_in_the_comments_exists(file):
    commands = list(in_comments(file.read_text()))
    assert commands
    for command in commands:
        check(command)


def test_the_check_rejects_a_command_that_does_not_exist():
    for wrong in ("ray upp x.yaml", "ray up --fast x.yaml", "dgg-ray submit", "kubectl apply --file x"):
        with pytest.raises(AssertionError):
            check(wrong)


@pytest.mark.ray
def test_ray_accepts_the_cluster_file(cluster):
    assert validate(cluster)["available_node_types"].keys() == {"head", "gpu"}


@pytest.mark.ray
def test_the_check_rejects_a_misspelt_setting(cluster):
    cluster["idle_timeout_minute"] = cluster.pop("idle_timeout_minutes")
    with pytest.raises(Exception, match="idle_timeout_minute"):
        validate(cluster)


@pytest.mark.ray
def test_the_check_rejects_an_unknown_head_node_type(cluster):
    cluster["head_node_type"] = "haed"
    with pytest.raises(ValueError, match="head_node_type"):
        validate(cluster)


@pytest.mark.ray
def test_commands_that_start_ray_exist_and_the_dashboard_listens_on_localhost_only(cluster):
    lines = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    for line in lines:
        check(line.rpartition("; ")[2])
    assert sum("--dashboard-host=127.0.0.1" in line for line in lines) == 1


@pytest.mark.ray
def test_only_ssh_is_reachable_from_the_internet():
    from ray.autoscaler._private.aws.config import _create_default_inbound_rules

    aws = yaml.safe_load(AUTOSCALED[0].read_text())
    rules = _create_default_inbound_rules({"sg-1"}, aws["provider"]["security_group"]["IpPermissions"])
    from_anywhere = [rule for rule in rules if rule.get("IpRanges")]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in from_anywhere] == [(22, 22)]


def test_gpu_machines_are_spot_instances_and_start_on_demand(cluster):
    worker = cluster["available_node_types"]["gpu"]
    assert worker["min_workers"] == 0
    assert 0 < worker["max_workers"] <= cluster["max_workers"]
    node = worker["node_config"]
    aws = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    assert aws or {"preemptible": True} in node["scheduling"]


def test_the_head_is_an_on_demand_instance_without_resources_for_training(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert not {"InstanceMarketOptions", "scheduling"} & head["node_config"].keys()
    assert head["resources"] == {"CPU": 0, "GPU": 0}


def test_machines_run_the_pinned_ray_and_install_the_pinned_set_from_the_mounted_folder(cluster):
    assert {image.split(":")[1].split("-")[0] for k, image in cluster["docker"].items() if "image" in k} == {
        RAY
    }
    (remote,) = (there for there, here in cluster["file_mounts"].items() if here == ".")
    pip = cluster["setup_commands"][-1]
    assert re.search(rf'--constraint {remote}/constraints.txt "{remote}\[(s3|gcs)\]"$', pip)


def test_every_machine_has_the_token_and_requires_it(cluster):
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]


@pytest.mark.parametrize("file", AUTOSCALED, ids=lambda file: file.name)
def test_settings_that_a_user_must_change_are_marked(file):
    marked = [line for line in file.read_text().splitlines() if "CHANGE" in line]
    for setting in ("region", "availability_zone", "max_workers", "cluster_name"):
        assert any(line.strip().startswith(setting) for line in marked), setting


def test_secrets_of_this_folder_reach_no_machine_no_image_and_no_commit(cluster):
    assert "*.env" in cluster["rsync_exclude"]
    assert "*.env" in (ROOT / ".gitignore").read_text().splitlines()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in ignored if not line.startswith("#")) == "*"
    assert ignored[-1] == "**/*.env"
    # Only the copied files are exempt from the ignore rule; pip needs all of them.
    copies = re.findall(r"^COPY --chown=ray (.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    copied = {name for names in copies for name in names.split()}
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "dgg_ray"}


# -- Kubernetes ------------------------------------------------------------------------------------

# Fields of ray.io/v1 (KubeRay 1.6) and of pods that the file may use; None: anything is legal below it.
REQUIREMENTS = {"limits": None, "requests": None}
CONTAINER = {
    "name": str,
    "image": str,
    "ports": [{"containerPort": int, "name": str}],
    "envFrom": [{"secretRef": {"name": str}}],
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str, "valueFrom": {"secretKeyRef": {"name": str, "key": str}}}],
    "resources": REQUIREMENTS,
    "volumeMounts": [{"name": str, "mountPath": str}],
}
MATCH = {"matchExpressions": [{"key": str, "operator": str}]}
AFFINITY = {
    "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [MATCH]}}
}
POD = {
    "affinity": AFFINITY,
    "nodeSelector": None,
    "tolerations": [{"key": str, "operator": str, "value": str, "effect": str}],
    "terminationGracePeriodSeconds": int,
    "containers": [CONTAINER],
    "volumes": [{"name": str, "emptyDir": {"medium": str, "sizeLimit": str}}],
}
SPEC = {
    "rayVersion": str,
    "authOptions": {"mode": str, "secretName": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": str,
        "upscalingMode": str,
        "idleTimeoutSeconds": int,
        "resources": REQUIREMENTS,
    },
    "headGroupSpec": {"serviceType": str, "rayStartParams": None, "template": {"spec": POD}},
    "workerGroupSpecs": [
        {
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "rayStartParams": None,
            "template": {"spec": POD},
        }
    ],
}
CLUSTER = {"apiVersion": str, "kind": str, "metadata": {"name": str}, "spec": SPEC}


def illegal_fields(content, legal, at=""):
    """Return the paths in a manifest that the table of fields does not allow."""
    if legal is None:
        return []
    if isinstance(legal, list):
        assert isinstance(content, list), at
        return [
            path for i, item in enumerate(content) for path in illegal_fields(item, legal[0], f"{at}[{i}]")
        ]
    if isinstance(legal, dict):
        wrong = [f"{at}.{key}" for key in content if key not in legal]
        known = content.keys() & legal.keys()
        return wrong + [
            path for key in known for path in illegal_fields(content[key], legal[key], f"{at}.{key}")
        ]
    return [] if isinstance(content, legal) else [f"{at}: {content!r}"]


@pytest.fixture
def kube():
    return yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())


def pods(kube):
    groups = [kube["spec"]["headGroupSpec"], *kube["spec"]["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_kubernetes_file_has_only_legal_fields(kube):
    assert illegal_fields(kube, CLUSTER) == []
    assert (kube["apiVersion"], kube["kind"]) == ("ray.io/v1", "RayCluster")
    assert kube["spec"]["autoscalerOptions"]["upscalingMode"] in ("Default", "Aggressive", "Conservative")
    kube["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    assert illegal_fields(kube, CLUSTER) == [".spec.workerGroupSpecs[0].maxReplica"]


def test_pods_have_consistent_volumes_images_and_resources(kube):
    for pod in pods(kube):
        container, *others = pod["containers"]
        assert {other["image"] for other in others} <= {container["image"]}
        assert {m["name"] for m in container.get("volumeMounts", ())} == {
            v["name"] for v in pod.get("volumes", ())
        }
        assert container["image"].endswith(RAY)
        wanted, most = container["resources"]["requests"], container["resources"]["limits"]
        assert wanted.keys() == most.keys()
        assert (
            wanted["memory"] == most["memory"]
        )  # otherwise the node may kill a stage to give its memory to another pod
        assert container["envFrom"] == [{"secretRef": {"name": "dgg-ray-store"}}]
    strings = [
        g["rayStartParams"] for g in (kube["spec"]["headGroupSpec"], *kube["spec"]["workerGroupSpecs"])
    ]
    assert all(isinstance(v, str) for params in strings for v in params.values())


def test_on_kubernetes_the_head_serves_the_page(kube):
    head, gpu = kube["spec"]["headGroupSpec"], kube["spec"]["workerGroupSpecs"][0]
    service = head["template"]["spec"]["containers"][1]
    program, command, *words = [*service["command"], *service["args"]]
    found = typer.main.get_command(cli.app).commands[command].make_context("serve", words)
    assert (program, found.params["cluster"], found.params["host"]) == ("dgg-ray", True, "127.0.0.1")
    gpus = int(gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert found.params["gpus"] == gpu["maxReplicas"] * gpus
    assert service["envFrom"] == [{"secretRef": {"name": "dgg-ray-store"}}]


def test_on_kubernetes_the_head_trains_nothing_and_spot_gpus_scale_from_zero(kube):
    head, gpu = kube["spec"]["headGroupSpec"], kube["spec"]["workerGroupSpecs"][0]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert (gpu["replicas"], gpu["minReplicas"]) == (0, 0)
    assert gpu["maxReplicas"] > 0
    pod = gpu["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {t["key"] for t in pod["tolerations"]} == {*pod["nodeSelector"], "nvidia.com/gpu"}
    assert "tolerations" not in head["template"]["spec"]
    assert kube["spec"]["authOptions"] == {"mode": "token", "secretName": "dgg-ray-token"}
    assert kube["spec"]["rayVersion"] == RAY


# -- Slurm -----------------------------------------------------------------------------------------

SRUN = """#!/usr/bin/env bash
while [[ ${1:-} == --* ]]; do shift; done
echo "srun $*" >> "$CALLS"
if [[ $1 == hostname ]]; then echo "::1 127.0.0.1"; else exec "$@"; fi
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$CALLS"
[[ $1 == show ]] && echo here
exit 0
"""
SIMULATED = """\
name: quickstart
question: Does it run there?
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 24, validation: 10, test: 12}
  - {name: words, reader: embedded, train: 24, validation: 12, test: 10}
strategy: {name: dgg, alpha: 0.2, buffer: 4}
workers: {engine: simulated, idle_timeout_s: 1}
protocol: {baselines: [finetune]}
"""


def test_the_slurm_script_is_bash():
    subprocess.run(["bash", "-n", DEPLOY / "slurm.sh"], check=True)


@pytest.fixture
def slurm(tmp_path):
    """Return an environment in which srun runs a command here, as on an allocation of one node."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    dgg_ray = tmp_path / "bin" / "dgg-ray"
    dgg_ray.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} -m dgg_ray "$@"\n')
    dgg_ray.chmod(0o755)
    (tmp_path / "study.yaml").write_text(SIMULATED)
    number = os.getpid() % 9000 + 500
    return os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_CPUS_PER_TASK": "2",
        "DGG_RAY_REQUEUE": "1",
    }


@contextlib.contextmanager
def batch(slurm, folder, *more):
    """Run the script as Slurm would; kill all its descendants at the end."""
    command = ["bash", DEPLOY / "slurm.sh", folder / "study.yaml", "--out", folder / "out", *more]
    with (folder / "log").open("w") as log:
        run = subprocess.Popen(command, env=slurm, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        yield run
    finally:
        family = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
        folder_of_job = (
            f"/tmp/dgg-{slurm['SLURM_JOB_ID']}/"  # Slurm would end the processes that the head left
        )
        left = [
            p for p in psutil.process_iter(["cmdline"]) if folder_of_job in " ".join(p.info["cmdline"] or ())
        ]
        for process in (*family, *left, run):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        run.wait()
        shutil.rmtree(f"/tmp/dgg-{slurm['SLURM_JOB_ID']}", ignore_errors=True)


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM], ids=lambda s: s.name)
def test_the_time_limit_requeues_the_job_and_scancel_does_not(slurm, tmp_path, sent):
    stand_ins = {
        "ray": "[[ $1 == start ]] && exec sleep 60",
        "python": "cat > /dev/null",
        "dgg-ray": "trap 'kill $!; exit 130' TERM; echo begun >> $CALLS; sleep 60 & wait",
    }
    for name, text in stand_ins.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\nexit 0\n")
        (tmp_path / "bin" / name).chmod(0o755)
    calls = tmp_path / "calls"
    with batch(slurm, tmp_path) as run:
        deadline = time.monotonic() + 60
        while not (calls.exists() and "begun" in calls.read_text()):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        os.kill(run.pid, sent)
        assert run.wait(timeout=120) == 130
    assert ("scontrol requeue" in calls.read_text()) == (sent == signal.SIGUSR1)


@pytest.mark.ray
def test_a_study_on_a_slurm_allocation_ends_in_time_and_resumes(slurm, tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text(SIMULATED + "simulation: {wait: 1, seconds: 100}\n")  # a stage takes some seconds
    with batch(slurm, tmp_path) as run:
        deadline = time.monotonic() + 180
        while not (tmp_path / "out" / "progress.json").exists():
            assert run.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        os.kill(run.pid, signal.SIGUSR1)  # as `--signal=B:USR1@300` does: to the script alone
        assert run.wait(timeout=120) == 130
    log, calls = (tmp_path / "log").read_text(), (tmp_path / "calls").read_text()
    assert "1 nodes, 0 GPUs" in log
    assert "out of time; the job is requeued" in log
    assert "Traceback" not in log
    assert calls.splitlines()[-1] == f"scontrol requeue {slurm['SLURM_JOB_ID']}"

    with batch(slurm, tmp_path) as run:
        assert run.wait(timeout=240) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "out" / "report.html").exists()
    assert "stages trained" in (tmp_path / "log").read_text()
