"""Views of a study that was really trained: answers, pictures, adapters."""

import io
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from service_samples import run, sample, seen

from dgg_ray.analysis import examples
from dgg_ray.core.errors import ResultsError
from dgg_ray.service import views

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One block of three tasks, for dgg and replay."""
    study = sample(
        orders=[["words", "charts", "digits"]],
        seeds=[0],
        search=None,
        workers=None,
        training={"batch_size": 4, "learning_rate": 1e-2, "epochs": 3},
        protocol={"max_new_tokens": 2, "baselines": ["replay"]},
    )
    return run(study, tmp_path_factory.mktemp("trained"))


def test_the_sizes_of_adapters_are_those_of_the_table_of_methods(trained):
    table = pd.read_csv(trained.out / "methods.csv").set_index("label")
    for row in seen(trained, "comparison")["rows"]:
        assert row["trainable"] == table["trainable"][row["label"]] > 0
        assert row["stored"] == table["stored"][row["label"]] > 0


def test_forgotten_answers_are_those_of_the_report(trained):
    table = pd.read_csv(trained.out / "examples.csv")
    assert len(table), "the sample forgets nothing"
    found = seen(trained, "examples", per_page=100)
    assert found["total"] == len(found["items"]) == len(table)
    names = set(zip(table["task"], table["id"], strict=True))
    assert {(item["task"], item["id"]) for item in found["items"]} == names
    for item in found["items"]:
        assert item["score_before"] - item["score_after"] >= examples.MIN_SCORE_DROP
        assert (item["runs"], item["runs_of"]) == (1, 1)


def test_every_answer_is_that_of_the_predictions(trained):
    predictions = trained.predictions(questions=True)
    found = seen(trained, "examples", filter="all", per_page=100)
    assert found["total"] == 30
    assert found["stages"] == [0, 1, 2]
    for item in found["items"]:
        own = predictions[(predictions["task"] == item["task"]) & (predictions["id"] == item["id"])]
        end = own[own["stage"] == 2].iloc[0]
        assert (item["after"], item["score_after"]) == (end["prediction"], end["score"])
        assert item["question"] == end["question"].strip()
        if item["task"] == "digits":  # the last task: nothing was trained after it
            assert (item["before"], item["score_before"]) == ("", None)
        else:
            then = own[own["trained_task"] == item["task"]].iloc[0]
            assert (item["before"], item["score_before"]) == (then["prediction"], then["score"])


def test_wrong_answers_after_any_stage_are_counted_by_its_scores(trained):
    predictions = trained.predictions("words")
    for stage in (0, 1, 2):
        wrong = predictions[(predictions["stage"] == stage) & (predictions["score"] < examples.WRONG_BELOW)]
        found = seen(trained, "examples", task="words", filter="wrong", stage=str(stage))
        assert found["total"] == len(wrong)
    with pytest.raises(ResultsError, match="no stage is called '3'; there are 0, 1, 2"):
        views.view(trained, "examples", {"stage": 3})


def test_two_settings_differ_where_one_is_right_and_the_other_wrong(trained):
    own, other = (trained.predictions(setting=setting) for setting in (None, "replay"))
    keys = ["task", "id"]
    ends = [table[table["stage"] == 2].set_index(keys)["score"] for table in (own, other)]
    found = seen(trained, "examples", other_setting="replay", per_page=100)
    assert found["total"] == int((ends[0] - ends[1] >= examples.MIN_SCORE_DROP).sum())
    everything = seen(trained, "examples", other_setting="replay", filter="all", per_page=100)
    for item in everything["items"]:
        place = item["task"], item["id"]
        assert (item["score_before"], item["score_after"]) == (ends[0].loc[place], ends[1].loc[place])


def test_pages_hold_every_item_once(trained):
    pages = [seen(trained, "examples", filter="all", page=page, per_page=7) for page in range(1, 6)]
    assert [len(page["items"]) for page in pages] == [7, 7, 7, 7, 2]
    assert {page["pages"] for page in pages} == {5}
    names = [(item["task"], item["id"]) for page in pages for item in page["items"]]
    assert len(set(names)) == 30
    assert seen(trained, "examples", filter="all", page=6, per_page=7)["items"] == []


def test_a_picture_is_that_of_the_example(trained):
    item = seen(trained, "examples", task="digits", filter="all")["items"][0]
    assert item["picture"] == f"pictures/digits/{item['id']}?split=test"
    data, media_type = views.picture(trained, {"task": "digits", "id": item["id"], "split": "test"})
    assert media_type == "image/png"
    own = trained.study.read_task("digits").examples["test"]
    expected = next(example.image for example in own if example.id == item["id"])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)
    assert views.picture(trained, {"task": "digits", "id": item["id"]})[1] == "image/png"


def test_an_adapter_is_zipped_as_it_is_exported(trained, tmp_path):
    file = views.write_file(trained, tmp_path / "files", "adapter", {"setting": "replay"})
    exported = trained.export(tmp_path / "exported", "replay")
    with zipfile.ZipFile(file) as opened:
        names = {name.partition("/")[2]: name for name in opened.namelist()}
        assert {len(name.split("/")) for name in opened.namelist()} == {2}  # in a folder of its own
        files = [path for path in exported.folder.rglob("*") if path.is_file()]
        assert names.keys() == {path.name for path in files}
        for path in files:
            assert opened.read(names[path.name]) == path.read_bytes()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_report_is_written_with_the_files_that_it_links_to(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(views.files.page, "figure_names", list)
    page = views.write_file(trained, tmp_path, "report", {})
    assert page.read_text(encoding="utf-8").lstrip().startswith("<!DOCTYPE html>")
    assert (page.parent / "table.csv").read_bytes() == (trained.out / "table.csv").read_bytes()
