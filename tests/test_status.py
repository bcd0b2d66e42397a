"""`dgg-ray status` and `dgg-ray report` on a folder."""

import json

import pytest

from dgg_ray import Study, cli, load_study
from dgg_ray.config import saved_study

SIZE = {"reader": "embedded", "train": 12, "validation": 10, "test": 10}
STUDY = {
    "name": "mine",
    "model": "embedded",
    "tasks": [{"name": name, **SIZE} for name in ("words", "charts")],
    "strategy": {"name": "dgg", "alpha": 0.3, "buffer": 4},
    "protocol": {"baselines": ["replay"]},
    "workers": {"engine": "simulated"},
}


@pytest.fixture
def two(tmp_path) -> list[Study]:
    """Return two studies of one model in one store; each has a failed stage."""
    output = {"store": str(tmp_path / "store")}
    other = {**STUDY, "name": "other", "seeds": [7]}
    studies = [load_study({**one, "output": output}) for one in (STUDY, other)]
    for study in studies:
        saved_study.save_study(study, tmp_path / study.name)
        error = {"error": "ValueError", "message": f"a fault of {study.name}", "traceback": ""}
        study.store(tmp_path / study.name).record_failure(study.runs[0].stages[0], error)
    return studies


def test_status_shows_failures_of_this_study_and_not_of_another_in_its_store(two, tmp_path, capsys):
    for study, other in (two, reversed(two)):
        assert cli.main(["status", str(tmp_path / study.name)]) == 0
        output = capsys.readouterr().out
        assert f"failed            ValueError: a fault of {study.name}" in output
        assert f"a fault of {other.name}" not in output
        assert cli.main(["status", str(tmp_path / study.name), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["failed"] == [f"ValueError: a fault of {study.name}"]


def test_status_shows_a_failed_evaluation_of_the_untouched_model(two, tmp_path, capsys):
    study = two[0]
    error = {"error": "OSError", "message": "no weights", "traceback": ""}
    study.store(tmp_path / "mine").record_failure(study.runs.untouched_stage, error)
    assert cli.main(["status", str(tmp_path / "mine")]) == 0
    assert "failed            OSError: no weights" in capsys.readouterr().out


def test_a_report_on_a_mistyped_folder_creates_nothing(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path / "mistyped")]) == 1
    assert "holds no study" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_report_logs_under_its_studys_name_from_any_working_folder(two, tmp_path, monkeypatch):
    out = tmp_path / "mine"
    monkeypatch.chdir(out)
    monkeypatch.setattr("dgg_ray.report.page.write_report", lambda *_: "written")
    assert cli.main(["report", "."]) == 0
    lines = [json.loads(line) for file in (out / "logs").iterdir() for line in file.read_text().splitlines()]
    assert {line["study"] for line in lines} == {"mine"}
