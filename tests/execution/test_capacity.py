"""`dgg-ray plan` names what this machine lacks before a run does."""

import re
import shutil
from types import SimpleNamespace

import pytest

from dgg_ray import cli
from dgg_ray.config.sections import Workers
from dgg_ray.config.study import Study
from dgg_ray.cost.model import Cost, CostForecast
from dgg_ray.cost.rates import Estimate
from dgg_ray.execution import capacity

STUDY = """\
name: small
model: embedded
tasks:
  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: charts, reader: embedded, train: 12, validation: 10, test: 10}
strategy: dgg
protocol: {max_new_tokens: 2}
"""


def sentences_on(workers: Workers, gpus: int, cpus: int) -> list[str]:
    return list(capacity.missing_processors(workers, gpus, cpus))


def test_nothing_is_said_of_a_machine_that_holds_all_workers():
    assert sentences_on(Workers(groups=2, group_size=2, gpus=1, cpus=2), gpus=4, cpus=8) == []
    assert sentences_on(Workers(), gpus=0, cpus=1) == []


def test_missing_gpus_are_counted():
    (line,) = sentences_on(Workers(group_size=4, gpus=1), gpus=2, cpus=8)
    assert line.startswith(
        "a worker group needs 4 GPUs (4 workers with 1 GPU each), this machine has 2: run it"
    )


def test_fewer_groups_than_asked_for_can_train_at_once():
    (line,) = sentences_on(Workers(groups=3, group_size=2, gpus=1), gpus=5, cpus=8)
    assert line.endswith("this machine has 5, so that 2 can train at once")


def test_cpus_that_workers_would_share_are_named():
    (line,) = sentences_on(Workers(groups=3, group_size=2, cpus=1.5), gpus=0, cpus=8)
    assert line.startswith("all workers together need 9 CPUs (3 × 2 × 1.5), this machine has 8")


def test_a_store_that_may_not_fit_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=3e9))
    assert list(capacity.missing_disk(tmp_path / "not" / "there", 2.9e9)) == []
    (line,) = capacity.missing_disk(tmp_path / "not" / "there", 3.1e9)
    assert line.startswith(f"the store may grow by 3.1 GB, and {tmp_path} has 3 GB free")


def test_a_remote_store_and_simulated_workers_need_nothing_of_this_machine(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0.0))
    w = Workers(gpus=8, engine="simulated")
    one = Estimate(1e9, 1e9, 1e9)
    cost_forecast = CostForecast(Cost(w, one, one, one), 0.0, w)
    study = Study("x", None, {}, None, workers=w)  # type: ignore[arg-type]
    assert list(capacity.missing_resources(study, "s3://bucket/stages", cost_forecast)) == []
    assert len(list(capacity.missing_resources(study, "/stages", cost_forecast))) == 1


@pytest.mark.parametrize(("visible", "count"), [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("0,1,2", 2)])
def test_gpus_are_counted_as_a_process_may_see_them(tmp_path, monkeypatch, visible, count):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(capacity, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert capacity.count_gpus() == count


def test_plan_prints_it_and_exits_with_0(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(capacity, "count_gpus", lambda: 0)
    (tmp_path / "small.yaml").write_text(STUDY + "workers: {gpus: 2}\n", encoding="utf-8")
    assert cli.main(["plan", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out")]) == 0
    assert re.search("worker group needs 2 GPUs .* this machine has 0", capsys.readouterr().err)
