"""A results folder is its study's: another's is refused, an edited one is told what changes."""

import json
from pathlib import Path

import pytest
from study_samples import with_data

from dgg_ray import Study, load_study
from dgg_ray.config import saved_study, study_changes
from dgg_ray.core.errors import StudyError
from dgg_ray.core.interfaces import Adapter
from dgg_ray.search import warm_start

STUDY = """\
name: case
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}
strategy: {name: dgg, alpha: 0.3, buffer: 4}
training: {learning_rate: 5e-3}
seeds: [0, 1]
workers: {engine: simulated}
"""


def study_of(folder: Path, text: str = STUDY) -> Study:
    file = folder / "study.yaml"
    file.write_text(text, encoding="utf-8")
    return load_study(file)


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Study:
    return study_of(tmp_path_factory.mktemp("case"))


def test_another_studys_folder_is_refused_with_its_name(case, tmp_path):
    saved_study.save_study(case, tmp_path / "out")
    other = study_of(tmp_path, STUDY.replace("name: case", "name: other"))
    with pytest.raises(StudyError) as found:
        warm_start.restore_warm_starts(other, tmp_path / "out")
    (fault,) = found.value.faults
    assert fault.path == "--out"
    assert "holds the results of another study, 'case'" in fault.rule
    assert "another --out" in fault.rule


def test_the_same_study_again_changes_nothing(case, tmp_path):
    assert study_changes.describe_changes(case, tmp_path) == ""
    saved_study.save_study(case, tmp_path)
    saved_study.save_study(case, tmp_path)
    assert study_changes.describe_changes(case, tmp_path) == ""
    assert not (tmp_path / saved_study.PREVIOUS_STUDY).exists()


def test_an_edited_study_is_told_each_change_old_and_new(case, tmp_path):
    out = tmp_path / "out"
    saved_study.save_study(case, out)
    text = STUDY.replace("alpha: 0.3", "alpha: {digits: 0.3, words: 1.0}").replace("[0, 1]", "[0]")
    edited = study_of(tmp_path, text.replace("train: 12, validation: 10, test: 10}\nst", "train: 14}\nst"))
    told = study_changes.describe_changes(edited, out)
    assert "  strategy.alpha: 0.3 → absent" in told
    assert "  strategy.alpha.words: absent → 1.0" in told
    assert "  seeds: (0, 1) → (0,)" in told
    assert "  tasks.words.train: 12 → 14" in told
    assert "buffer" not in told
    assert "study.previous.json" in told


def told(tmp_path: Path, before: str, after: str) -> str:
    saved_study.save_study(study_of(tmp_path, before), tmp_path / "out")
    return study_changes.describe_changes(study_of(tmp_path, after), tmp_path / "out")


def test_seeds_of_each_orders_own_are_told(tmp_path):
    one, own, three = (STUDY.replace("[0, 1]", new) for new in ("[0]", "per_order", "{per_order: 3}"))
    assert "  seeds: (0,) → {'per_order': 1}" in told(tmp_path, one, own)
    assert "  seeds: {'per_order': 3} → (0, 1, 2)" in told(
        tmp_path, three, STUDY.replace("[0, 1]", "[0, 1, 2]")
    )


def test_tasks_in_another_order_are_told_with_the_orders_that_they_make(tmp_path):
    digits, words = (line + "\n" for line in STUDY.splitlines() if "reader: embedded" in line)
    said = told(tmp_path, STUDY, STUDY.replace(digits + words, words + digits))
    assert "  tasks: digits, words → words, digits" in said
    assert "  orders[0]: digits > words → words > digits" in said
    assert len(said.splitlines()) == 4  # the head, these two, and what a run does


def test_other_weights_under_the_same_path_are_told(tmp_path):
    real = study_of(tmp_path, STUDY.replace("workers: {engine: simulated}\n", ""))
    saved_study.save_study(real, tmp_path / "out")
    assert study_changes.describe_changes(real, tmp_path / "out") == ""
    other = with_data(real, fingerprint="f" * 64)
    assert f"  model.weights: {real.data.fingerprint[:12]} → ffffffffffff" in study_changes.describe_changes(
        other, tmp_path / "out"
    )


def test_another_law_of_a_simulated_learner_is_told_as_that(tmp_path):
    said = told(tmp_path, STUDY, STUDY + "simulation: {noise: 0.25}\n")
    assert "  simulation.noise: " in said
    assert " → 0.25" in said
    assert "model.weights" not in said


def test_long_values_are_told_by_where_they_differ(tmp_path):
    values = ", ".join(f"0.{i:02d}" for i in range(1, 31))
    space = f"search: {{space: {{strategy.alpha: [{values}, %s]}}, trials: 4}}\n"
    (line,) = (
        one
        for one in told(tmp_path, STUDY + space % "0.9", STUDY + space % "1.0").splitlines()
        if "alpha" in one
    )
    assert line.endswith("0.29, 0.3, 1.0)")
    assert ", 0.9) → …" in line


def test_a_value_that_is_written_out_and_was_the_default_is_no_change(case, tmp_path):
    saved_study.save_study(case, tmp_path / "out")
    written = study_of(tmp_path, STUDY + f"adapter: {{rank: {Adapter().rank}}}\n")
    assert written.file.content != case.file.content
    assert list(study_changes.differences(case, written)) == []


def test_the_version_before_is_kept_and_can_be_put_back(case, tmp_path):
    out = tmp_path / "out"
    saved_study.save_study(case, out)
    saved_study.save_study(study_of(tmp_path, STUDY.replace("alpha: 0.3", "alpha: 0.7")), out)
    assert saved_study.require_saved_study(out).strategy.alpha == 0.7  # pyright: ignore
    (out / saved_study.PREVIOUS_STUDY).replace(out / saved_study.SAVED_STUDY)
    assert saved_study.require_saved_study(out).strategy.alpha == 0.3  # pyright: ignore


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"raw": []}', '{"raw": {"name": 3}, "root": 1}', "null"]
)
def test_a_damaged_study_file_is_said_and_replaced(case, tmp_path, content):
    (tmp_path / saved_study.SAVED_STUDY).write_text(content, encoding="utf-8")
    assert "cannot be read" in study_changes.describe_changes(case, tmp_path)
    assert warm_start.restore_warm_starts(case, tmp_path) == case
    saved_study.save_study(case, tmp_path)
    assert (tmp_path / saved_study.PREVIOUS_STUDY).read_text(encoding="utf-8") == content
    assert (
        json.loads((tmp_path / saved_study.SAVED_STUDY).read_text(encoding="utf-8"))["raw"]["name"] == "case"
    )
