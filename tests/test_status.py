"""What `dgg-ray status` and `report` say of a folder, and leave alone."""

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
    """Studies of one model in one store, of which each has a stage that failed."""
    output = {"store": str(tmp_path / "store")}
    other = {**STUDY, "name": "other", "seeds": [7]}
    studies = [load_study({**one, "output": output}) for one in (STUDY, other)]
    for study in studies:
        saved_study.save_study(study, tmp_path / study.name)
        error = {"error": "ValueError", "message": f"a fault of {study.name}", "traceback": ""}
        study.store(tmp_path / study.name).record_failure(study.runs[0].stages[0], error)
    return studies


def test_status_tells_what_failed_of_this_study_and_not_of_another_in_its_store(two, tmp_path, capsys):
    for study, other in (two, reversed(two)):
        assert cli.main(["status", str(tmp_path / study.name)]) == 0
        said = capsys.readouterr().out
        assert f"failed            ValueError: a fault of {study.name}" in said
        assert f"a fault of {other.name}" not in said


def test_exams_of_the_untouched_model_that_failed_are_told(two, tmp_path, capsys):
    study = two[0]
    error = {"error": "OSError", "message": "no weights", "traceback": ""}
    study.store(tmp_path / "mine").record_failure(study.runs.untouched_stage, error)
    assert cli.main(["status", str(tmp_path / "mine")]) == 0
    assert "failed            OSError: no weights" in capsys.readouterr().out


def test_a_report_of_a_mistyped_folder_makes_none(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path / "mistyped")]) == 1
    assert "holds no study" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_report_logs_under_its_studys_name_wherever_it_is_called_from(two, tmp_path, monkeypatch):
    out = tmp_path / "mine"
    monkeypatch.chdir(out)
    monkeypatch.setattr("dgg_ray.report.page.write_report", lambda *_: "written")
    assert cli.main(["report", "."]) == 0
    lines = [json.loads(line) for file in (out / "logs").iterdir() for line in file.read_text().splitlines()]
    assert {line["study"] for line in lines} == {"mine"}
