"""Whole studies: in one process, on Ray, killed and resumed."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
from study_samples import with_data

from dgg_ray import cli, load_study, run_study
from dgg_ray.analysis.load import load_results
from dgg_ray.core.errors import StudyError

pytestmark = pytest.mark.whole
STUDY = """\
name: tiny
question: Is it the same however it is run?
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 24, validation: 10, test: 12}
  - {name: words, reader: embedded, train: 24, validation: 12, test: 10}
  - {name: charts, reader: embedded, train: 32, validation: 10, test: 10}
strategy: {name: dgg, alpha: 0.2, buffer: 4}
adapter: {rank: 2}
training: {epochs: 1, batch_size: 8, learning_rate: 5e-3}
orders: {design: random, count: 2}
search:
  space:
    strategy.alpha: {per_task: [0, 0.3, 1.0]}
    strategy.buffer: [0, 4]
  trials: 4
protocol: {max_new_tokens: 2}
workers: {groups: 2, idle_timeout_s: 10}
"""


SMALL = """\
name: small
model: embedded
tasks:
  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: charts, reader: embedded, train: 12, validation: 10, test: 10}
strategy: dgg
training: {batch_size: 8, learning_rate: 5e-3}
protocol: {max_new_tokens: 2, baselines: [], evaluate: seen}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("study") / "tiny.yaml"
    file.write_text(STUDY)
    return file


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory) -> Path:
    """Return the results of a run in one process."""
    out = tmp_path_factory.mktemp("out") / "undisturbed"
    assert cli.main(["run", str(study), "--out", str(out), "--local", "--quiet"]) == 0
    return out


def same_table(a: Path, b: Path) -> bool:
    return (a / "table.parquet").read_bytes() == (b / "table.parquet").read_bytes()


def published(out: Path) -> dict[str, int]:
    """Return the publication time of each stage, in ns."""
    return {
        m.stem: m.stat().st_mtime_ns for m in (out / "stages").glob("stages/??/*.json") if "." not in m.stem
    }


def test_a_run_in_one_process_answers_the_study(undisturbed):
    cells = load_results(undisturbed).table
    assert cells["score"].between(0, 1).all()
    finals = cells[(cells["split"] == "test") & (cells["stage"] == 2)]
    assert set(finals["strategy"]) == {"dgg", "finetune", "replay", "joint"}
    assert finals.groupby("strategy").size().to_dict() == {"dgg": 6, "finetune": 6, "replay": 6, "joint": 6}
    assert (undisturbed / "report.html").stat().st_size > 10_000


def test_joint_is_trained_once_for_all_orders(undisturbed):
    joint = load_results(undisturbed).table.query("strategy == 'joint' and split == 'test' and stage == 2")
    assert joint["order"].nunique() == 2
    assert joint.groupby("eval_task")["score"].nunique().max() == 1


def test_a_second_run_from_python_trains_nothing_and_starts_no_ray(study, undisturbed, monkeypatch):
    monkeypatch.setattr("dgg_ray.execution.cluster.connected", lambda *_: pytest.fail("Ray was started"))
    before, table_before = published(undisturbed), (undisturbed / "table.parquet").read_bytes()
    result = run_study(load_study(study), out=undisturbed)
    assert "nothing trained, all answered from the store" in str(result)
    assert published(undisturbed) == before
    assert (undisturbed / "table.parquet").read_bytes() == table_before
    pd.testing.assert_frame_equal(result.table, load_results(undisturbed).table)
    assert result.best["study"] == "tiny"


def test_plan_counts_what_is_in_the_store(study, undisturbed, tmp_path, capsys):
    assert cli.main(["plan", str(study), "--out", str(tmp_path / "new"), "--json"]) == 0
    new = json.loads(capsys.readouterr().out)
    assert (new["settings"], new["orders"], new["stored"], new["exact"]) == (4, 2, 0, False)
    assert not (tmp_path / "new").exists()
    assert cli.main(["plan", str(study), "--out", str(undisturbed), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["exact"]
    assert done["to_train"] == 0
    assert done["stored"] == done["distinct"] == len(published(undisturbed)) - 1  # and the untouched model
    # 4 settings and 3 baselines over 2 orders of 3 tasks, the winner once more, joint one stage per order
    assert done["requested"] == (4 + 1 + 2) * 2 * 3 + 2


def test_status_shows_progress_the_best_setting_and_the_cost(undisturbed, capsys):
    assert cli.main(["status", str(undisturbed), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["to_train"], found["running"], found["queued"]) == (0, [], 0)
    # Two orders with one seed are fewer than three independent blocks, so their values are shown.
    assert re.match(
        r"faa 0\.\d{3} \(2 blocks: 0\.\d{3}, 0\.\d{3}\) with strategy.alpha.digits=", found["best"]
    )
    assert found["cost_forecast"]["spent"]["worker-hours"] > 0
    assert found["cost_forecast"]["remaining"]["worker-hours"]["high"] == 0
    assert cli.main(["status", str(undisturbed)]) == 0
    assert "0 running, 0 queued" in capsys.readouterr().out


def test_best_prints_the_setting_and_its_baselines_as_json(undisturbed, capsys):
    assert cli.main(["best", str(undisturbed), "--json"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert set(best["recommended"]) == {
        "strategy.alpha.digits",
        "strategy.alpha.words",
        "strategy.alpha.charts",
        "strategy.buffer",
    }
    assert best["split"] == "test"
    assert {row["label"] for row in best["comparison"]} >= {"finetune", "replay", "joint"}


def test_a_wrong_study_exits_with_2_and_starts_nothing(tmp_path, capsys):
    file = tmp_path / "bad.yaml"
    file.write_text(STUDY.replace("alpha: 0.2", "alpha: 2"))
    assert cli.main(["run", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "strategy.alpha: must be at most 1, got 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_cannot_replace_a_file(study, tmp_path, capsys):
    (tmp_path / "file").touch()
    for command in ("plan", "run"):
        assert cli.main([command, str(study), "--out", str(tmp_path / "file" / "deeper")]) == 2
        assert "--out: must be a folder that can be written" in capsys.readouterr().err
    assert cli.main(["status", str(tmp_path / "file")]) == 1


def test_a_folder_without_results_is_an_error_that_says_what_to_do(tmp_path, capsys):
    assert cli.main(["status", str(tmp_path)]) == 1
    assert "dgg-ray run" in capsys.readouterr().err


def test_a_failed_stage_is_reported_and_leaves_the_others(study, tmp_path, capsys):
    text = SMALL + "search: {method: grid, space: {training.learning_rate: [5e-3, 1e+30]}}\n"
    file = tmp_path / "diverges.yaml"
    file.write_text(text)
    out = tmp_path / "out"
    assert cli.main(["run", str(file), "--out", str(out), "--local", "--quiet"]) == 1
    assert "NonFiniteError" in (out / "report.html").read_text()
    evaluated = load_results(out).table["training.learning_rate"].unique()
    assert 5e-3 in evaluated
    failed = [json.loads(f.read_text()) for f in (out / "stages" / "failed").iterdir()]
    assert failed
    assert all(f["error"] == "NonFiniteError" and "learning_rate" in f["message"] for f in failed)


def test_a_study_whose_every_stage_fails_still_ends_with_a_report(tmp_path, capsys):
    file, out = tmp_path / "fails.yaml", tmp_path / "out"
    file.write_text(SMALL.replace("learning_rate: 5e-3", "learning_rate: 1e+30"))
    assert cli.main(["run", str(file), "--out", str(out), "--local", "--quiet"]) == 1
    output = capsys.readouterr().out
    assert "Nothing can be recommended yet: dgg has no finished run on the " in output
    assert "scored highest" not in output
    assert "all answered from the store" not in output
    assert "NonFiniteError" in (out / "report.html").read_text()


def test_data_that_changed_since_the_check_is_not_trained_on(study, tmp_path):
    loaded = load_study(study)
    words = replace(
        loaded.data.tasks["words"], digests=loaded.data.tasks["words"].digests | {"train": "0" * 64}
    )
    changed = with_data(loaded, tasks={**loaded.data.tasks, "words": words})
    with pytest.raises(StudyError, match=r"tasks.words: has changed on this machine"):
        run_study(changed, out=tmp_path / "out", local=True)


# -- on Ray ----------------------------------------------------------------------------------------


def launch(study: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "dgg_ray", "run", str(study), "--out", str(out)]
    with (out.parent / f"{out.name}.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def wait_for(condition, process: subprocess.Popen, seconds: float = 180):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, "the run ended first"
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def end(process: subprocess.Popen) -> None:
    """Kill a run and all its descendants, by their ids."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for member in (*family, process):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


@pytest.mark.ray
def test_on_ray_with_two_worker_groups_the_table_is_byte_identical(study, undisturbed, tmp_path):
    out = tmp_path / "ray"
    run = launch(study, out)
    try:
        assert run.wait(timeout=240) == 0, (tmp_path / "ray.log").read_text()[-3000:]
    finally:
        end(run)
    assert same_table(out, undisturbed)
    assert published(out).keys() == published(undisturbed).keys()


@pytest.mark.ray
def test_killed_drivers_and_workers_change_no_result_and_no_stage_is_trained_twice(
    study, undisturbed, tmp_path
):
    out = tmp_path / "killed"
    run = launch(study, out)
    try:
        wait_for(lambda: len(published(out)) >= 4, run)
        family = psutil.Process(run.pid).children(recursive=True)
        os.kill(run.pid, signal.SIGKILL)
        for member in family:  # processes left behind might publish another stage within seconds
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=30)
    finally:
        end(run)
    finished = published(out)

    run = launch(study, out)
    try:
        wait_for(lambda: len(published(out)) >= len(finished) + 3, run)
        workers = [
            p
            for p in psutil.Process(run.pid).children(recursive=True)
            if "TrainWorker" in " ".join(p.cmdline())
        ]
        assert workers
        workers[0].kill()
        assert run.wait(timeout=240) == 0, (tmp_path / "killed.log").read_text()[-3000:]
    finally:
        end(run)
    assert same_table(out, undisturbed)
    now = published(out)
    assert now.keys() == published(undisturbed).keys()
    assert {key: now[key] for key in finished} == finished
    log = (tmp_path / "killed.log").read_text()
    trained = int(re.search(r"(\d+) stages trained", log)[1])  # by the second run, as it counted
    once = len(now) - 1  # the untouched model is not trained
    # One fewer if the worker was killed after it published a stage and before it reported that.
    assert once - 1 <= trained + len(finished) <= once


@pytest.mark.ray
def test_ctrl_c_ends_cleanly_and_the_same_command_resumes(study, undisturbed, tmp_path):
    out = tmp_path / "stopped"
    run = launch(study, out)
    try:
        wait_for(lambda: len(published(out)) >= 3, run)
        family = psutil.Process(run.pid).children(recursive=True)
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(timeout=60) == 130
        assert psutil.wait_procs(family, timeout=30)[1] == []  # no process is left behind
    finally:
        end(run)
    log = (tmp_path / "stopped.log").read_text()
    assert "the same command goes on" in log
    assert "Traceback" not in log
    assert cli.main(["run", str(study), "--out", str(out), "--local", "--quiet"]) == 0
    assert same_table(out, undisturbed)


TOGETHER = (
    STUDY[: STUDY.index("search:")].replace("count: 2", "count: 1")
    + "protocol: {max_new_tokens: 4, baselines: []}\n"
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Return the results of one order, trained by one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "study.yaml").write_text(TOGETHER)
    command = ["run", str(folder / "study.yaml"), "--out", str(folder / "out"), "--local", "--quiet"]
    assert cli.main(command) == 0
    return folder / "out"


@pytest.mark.ray
@pytest.mark.parametrize("engine", ["auto", "zero2"])
def test_two_workers_train_a_stage_together_as_one_does(engine, alone, tmp_path):
    (tmp_path / "study.yaml").write_text(TOGETHER + f"workers: {{group_size: 2, engine: {engine}}}\n")
    out = tmp_path / "out"
    run = launch(tmp_path / "study.yaml", out)
    try:
        assert run.wait(timeout=240) == 0, (tmp_path / "out.log").read_text()[-3000:]
    finally:
        end(run)

    from safetensors.torch import load_file

    assert published(out).keys() == published(alone).keys()
    for one in alone.glob("stages/??/*/adapter/adapter_model.safetensors"):
        a, b = load_file(one), load_file(out / one.relative_to(alone))
        size = sum(w.square().sum() for w in a.values()).sqrt()
        apart = sum((a[name] - b[name]).square().sum() for name in a).sqrt()
        assert apart <= 1e-5 * size
