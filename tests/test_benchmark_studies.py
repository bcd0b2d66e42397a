"""The studies of the published benchmarks, on mock-ups of their folders."""

import json
import re
from pathlib import Path

import mock_benchmarks as mock
import pandas as pd
import pytest
import yaml

from dgg_ray import cli, load_study
from dgg_ray.analysis.load import load_results
from dgg_ray.config import yaml_reader

STUDIES = Path(__file__).parent.parent / "studies"
UCIT, VQAV2 = STUDIES / "ucit.yaml", STUDIES / "vqav2.yaml"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def java(monkeypatch):
    """Let checks find what the scorer `caption` needs on any machine; no caption is scored with it."""
    monkeypatch.setattr("dgg_ray.scorers._captions.missing", lambda java: "")


@pytest.fixture
def ucit(tmp_path, java):
    return mock.ucit(tmp_path / "ucit")


@pytest.fixture
def vqav2(tmp_path):
    return mock.vqav2(tmp_path / "vqav2")


def with_model(study: Path, model: Path, to: Path) -> Path:
    """Return the study file, changed as by a user who has the model on disk."""
    lines = study.read_text().splitlines()
    lines = [line for line in lines if not line.startswith("  revision: ")]
    lines = [f"  path: {model}" if line.startswith("  path: ") else line for line in lines]
    to.write_text("\n".join(lines))
    return to


def run_plan(study: Path, data: Path, capsys, out: str = "out") -> dict:
    capsys.readouterr()
    assert cli.main(["plan", str(study), "--data", str(data), "--out", str(data / out), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def plan_faults(study: Path, data: Path, capsys) -> list[str]:
    """Return the faults, a line each, of a plan that ends with exit code 2."""
    assert cli.main(["plan", str(study), "--data", str(data), "--out", str(data / "out")]) == 2
    title, *faults = capsys.readouterr().err.splitlines()
    assert title == f"{study}: {len(faults)} fault{'s' * (len(faults) != 1)}"
    return faults


# -- counts ----------------------------------------------------------------------------------------


def test_the_plan_of_ucit_has_the_right_counts(ucit, capsys):
    plan = run_plan(UCIT, ucit, capsys)
    # 1 % of so few images is one image; VizWiz and Flickr30k have two records for each image
    assert plan["tasks"] == {
        "ImageNet-R": {"train": 9, "validation": 1, "test": 4, "scorer": "exact_match"},
        "ArxivQA": {"train": 11, "validation": 1, "test": 3, "scorer": "exact_match"},
        "VizWiz": {"train": 12, "validation": 2, "test": 5, "scorer": "caption"},
        "IconQA": {"train": 8, "validation": 1, "test": 6, "scorer": "exact_match"},
        "CLEVR": {"train": 10, "validation": 1, "test": 4, "scorer": "exact_match"},
        "Flickr30k": {"train": 6, "validation": 2, "test": 3, "scorer": "caption"},
    }
    # dgg, finetune and replay train six stages each, joint one; all but joint share the first
    assert (
        plan["runs"],
        plan["requested"],
        plan["shared"],
        plan["to_train"],
    ) == (4, 19, 2, 17)
    # the buffer holds all examples: 9, 20, 32, 40, 50, 56 per stage with it, 56 in all without
    assert plan["examples"] == 207 + (207 - 9) + (56 - 9) + 56
    assert plan["steps"] == 17  # no stage has more than the 64 of one batch
    # validation and test of the tasks seen: 5, 9, 16, 23, 28, 33 answers after the six stages
    assert plan["answers"] == 3 * 114 - 2 * 5 + 33
    assert plan["exact"]


def test_ucits_list_of_published_baselines_is_one_that_runs(ucit, tmp_path):
    text = UCIT.read_text()
    found = re.search(r"^  # (baselines: .*)$", text, re.MULTILINE)
    own = re.search(r"^  baselines: .*$", text, re.MULTILINE)
    study = tmp_path / "ucit.yaml"
    study.write_text(text.replace(own[0], f"  {found[1]}"))
    assert len(load_study(study, ucit).protocol.baselines) == 12


def test_the_plan_of_vqav2_has_the_right_counts(vqav2, capsys):
    plan = run_plan(VQAV2, vqav2, capsys)
    assert {name: (counts["train"], counts["test"]) for name, counts in plan["tasks"].items()} == {
        name: (train - 1, test) for name, (train, test) in mock.VQAV2.items()
    }
    assert (
        plan["runs"],
        plan["requested"],
        plan["shared"],
        plan["to_train"],
    ) == (4, 31, 2, 29)
    # 9, 14, 25, 31, 39, 46, 50, 55, 61, 64 examples per stage with the buffer, 64 in all without
    assert plan["examples"] == 394 + (394 - 9) + (64 - 9) + 64
    # 6, 9, 16, 20, 25, 29, 32, 36, 39, 41 answers after the ten stages
    assert plan["answers"] == 3 * 253 - 2 * 6 + 41


def test_a_plan_has_a_table_of_the_tasks(vqav2, capsys):
    assert cli.main(["plan", str(VQAV2), "--data", str(vqav2), "--out", str(vqav2 / "out")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["task", "train", "validation", "test", "scorer"] in lines
    assert ["recognition", "9", "1", "5", "exact_match"] in lines
    assert ["optimizer", "steps", "29"] in lines
    assert ["answers", "to", "score", "788"] in lines


@pytest.mark.whole
def test_a_model_on_disk_changes_the_keys_and_no_count(vqav2, tmp_path, capsys):
    copy = with_model(VQAV2, mock.model(tmp_path / "llava"), tmp_path / "copy.yaml")
    assert run_plan(copy, vqav2, capsys) == run_plan(VQAV2, vqav2, capsys)
    assert load_study(copy, vqav2).data.fingerprint != load_study(VQAV2, vqav2).data.fingerprint


# -- settings --------------------------------------------------------------------------------------


def test_ucits_settings_are_the_published_ones(ucit):
    study = load_study(UCIT, ucit)
    (run,) = study.runs
    assert run.order == ("ImageNet-R", "ArxivQA", "VizWiz", "IconQA", "CLEVR", "Flickr30k")
    effects = [stage.strategy.effect(stage.task, stage.earlier) for stage in run.stages]
    assert effects[0] == {}  # nothing is guided or replayed in the first task
    assert [effect["dgg"]["alpha"] for effect in effects[1:]] == [0.1, 0.1, 0.05, 0.05, 0.1]
    assert {effect["buffer"] for effect in effects[1:]} == {2000}
    assert (study.adapter.rank, study.adapter.alpha) == (48, 96)


def test_vqav2s_settings_are_the_published_ones(vqav2):
    study = load_study(VQAV2, vqav2)
    (run,) = study.runs
    assert run.order == tuple(mock.VQAV2)
    effects = [stage.strategy.effect(stage.task, stage.earlier) for stage in run.stages]
    assert effects[0] == {}
    assert [(effect["dgg"]["alpha"], effect["buffer"]) for effect in effects[1:]] == 9 * [(0.2, 500)]
    assert (study.adapter.rank, study.adapter.alpha) == (128, 256)


def test_both_studies_have_one_training_recipe():
    recipes = [yaml_reader.read_yaml(file.read_text(encoding="utf-8"))[0] for file in (UCIT, VQAV2)]
    assert recipes[0]["training"] == recipes[1]["training"]
    assert recipes[0]["model"] == recipes[1]["model"]
    training = recipes[0]["training"]
    assert (training["learning_rate"], training["projector_learning_rate"]) == (2e-4, 2e-5)
    assert (training["batch_size"], training["epochs"], training["schedule"]) == (64, 1, "cosine")


def test_examples_have_the_content_of_the_benchmarks_records(ucit):
    tasks = load_study(UCIT, ucit).read_tasks()
    first = tasks["VizWiz"].examples["test"][0]
    assert first.image == ucit / "datasets/VizWiz/val/VizWiz_val_00000000.jpg"
    assert first.references == ("a plain green card number 1", "one card, a plain green card number 1")
    example = tasks["ArxivQA"].examples["test"][0]
    assert example.question.splitlines()[1:5] == ["A) red", "B) green", "C) blue", "D) grey"]
    assert example.answer == "B"
    assert all("<image>" not in e.question for task in tasks.values() for e in task.examples["train"])


# -- faults ----------------------------------------------------------------------------------------


def test_a_missing_file_is_named(ucit, capsys):
    file = ucit / "instructions/IconQA/train.json"
    file.rename(file.with_name("trein.json"))
    (fault,) = plan_faults(UCIT, ucit, capsys)
    assert f"tasks[3].train: must be a file that exists, got {file}. Did you mean 'trein.json'?" in fault


def test_a_missing_image_is_named_with_its_record(vqav2, capsys):
    (vqav2 / "data/val2014/COCO_val2014_000000002003.jpg").unlink()  # the fourth of the third task
    (fault,) = plan_faults(VQAV2, vqav2, capsys)
    assert f"{vqav2}/CL4VQA/test/test_q_judge.json: line 20  tasks[2].test[3].image: " in fault
    assert "must be a file in the image folder, got 'val2014/COCO_val2014_000000002003.jpg'" in fault


def test_an_image_without_caption_is_named(ucit, capsys):
    file = ucit / "instructions/Flickr30k/val_coco_type_3000.json"
    captions = json.loads(file.read_text())
    captions["annotations"] = [note for note in captions["annotations"] if note["image_id"] != 2]
    mock.write(file, captions)
    (fault,) = plan_faults(UCIT, ucit, capsys)
    rule = "must have a caption in the `references` file"
    assert f"tasks[5].test[1].image: {rule}, got Flickr30k/val/1000093796.jpg" in fault


def test_faults_of_several_tasks_are_reported_together(ucit, capsys):
    (ucit / "instructions/ImageNet-R/test_3000.json").unlink()
    (ucit / "datasets/CLEVR/images/val/CLEVR_val_000000.png").write_bytes(b"no picture")
    clevr, imagenet = sorted(plan_faults(UCIT, ucit, capsys), key=lambda fault: "tasks[0]" in fault)
    assert "tasks[0].test: must be a file that exists" in imagenet
    assert "tasks[4].test[0].image: must be an image that can be decoded" in clevr


def test_without_java_the_check_suggests_another_scorer(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr("dgg_ray.scorers._captions.shutil.which", lambda name: None)
    faults = plan_faults(UCIT, mock.ucit(tmp_path / "ucit"), capsys)
    assert [fault.split(": ")[0].split()[-1] for fault in faults] == ["tasks[2].scorer", "tasks[5].scorer"]
    assert all("take the scorer `caption_light`, which needs none" in fault for fault in faults)


def test_training_records_may_share_an_id(tmp_path, java, capsys):
    plan = run_plan(UCIT, mock.ucit(tmp_path / "ucit"), capsys)
    assert plan["tasks"]["VizWiz"]["train"] == 12


# -- a run -----------------------------------------------------------------------------------------


@pytest.mark.whole
def test_a_trimmed_copy_runs_from_start_to_end(ucit, tmp_path, capsys):
    pytest.importorskip("pycocoevalcap")
    copy = with_model(UCIT, mock.model(tmp_path / "llava"), tmp_path / "copy.yaml")
    study = yaml_reader.read_yaml(copy.read_text(encoding="utf-8"))[0]
    study["tasks"] = [task for task in study["tasks"] if task["name"] in ("ArxivQA", "VizWiz")]
    for task in study["tasks"]:
        task |= {"limit": 6, "limit_test": 2}
    study["tasks"][1]["scorer"] = "caption_light"
    study["strategy"] |= {"alpha": {"ArxivQA": 0.1, "VizWiz": 1.0}}
    study["adapter"] |= {"rank": 2, "alpha": 4}
    study["training"] |= {"batch_size": 4, "micro_batch_size": 2}
    study["protocol"] |= {"baselines": ["replay"], "max_new_tokens": 2}
    study["orders"] = [["VizWiz", "ArxivQA"]]
    study["workers"] = {"gpus": 0}  # one thread: two on a busy core are slow
    copy.write_text(yaml.safe_dump(study))

    out = tmp_path / "out"
    command = ["run", str(copy), "--data", str(ucit), "--out", str(out), "--local", "--quiet"]
    assert cli.main(command) == 0

    costs = pd.read_csv(out / "costs.csv")  # VizWiz once for both; then ArxivQA with 6 kept, guided or not
    assert sorted(zip(costs["examples"], costs["steps"], costs["runs"], strict=True)) == [
        (6, 2, 2),
        (12, 3, 1),
        (12, 3, 1),
    ]
    finals = load_results(out).table.query("split == 'test' and stage == 1")
    assert sorted(zip(finals["strategy"], finals["eval_task"], strict=True)) == [
        ("dgg", "ArxivQA"),
        ("dgg", "VizWiz"),
        ("replay", "ArxivQA"),
        ("replay", "VizWiz"),
    ]
    assert (out / "report.html").is_file()
    left = run_plan(copy, ucit, capsys, "../out")
    assert (left["stored"], left["to_train"], left["steps"], left["answers"]) == (3, 0, 0, 0)


# -- heads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_study_file_starts_with_its_question_cost_finding_and_command(file):
    head = file.read_text().split("\nname:")[0]
    assert re.findall(r"^# (\w+): ", head, re.MULTILINE)[:4] == ["Question", "Cost", "Found", "Run"]
