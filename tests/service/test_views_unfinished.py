"""Every view can be made at every moment of a study, and is strict JSON."""

import pytest
from service_samples import begin, numbers, run, sample, seen

import dgg_ray
from dgg_ray.service import views
from dgg_ray.service.views import files

pytestmark = pytest.mark.whole
ERROR = {"error": "ValueError", "message": "a corrupt image", "traceback": "line 1\nline 2", "location": ""}


def begun(folder):
    begin(sample(), folder)
    return dgg_ray.open(folder)


def first_stage_failed(folder):
    study = sample()
    begin(study, folder)
    stage = next(iter(dgg_ray.open(folder).archive.runs.values()))[1].stages[0]
    study.store(folder).record_failure(stage, ERROR)
    return dgg_ray.open(folder)


def one_item(folder):
    return run(sample(), folder, 1)


def a_later_stage_failed(folder):
    outcome = run(sample(), folder, 4)
    outcome.study.store(folder).record_failure(last_stage(outcome), ERROR)
    return dgg_ray.open(folder)


def last_stage(outcome):
    """The last stage of the first setting that the search proposed, in its last order and seed."""
    _, run = list(outcome.archive.runs.values())[3]
    assert (run.order, run.seed) == (("digits", "charts", "words"), 1)
    return run.stages[-1]


def without_search(folder):
    return run(sample(search=None), folder)


def one_block(folder):
    return run(sample(orders=[["words", "charts", "digits"]], seeds=[0]), folder)


def interrupted_comparison(folder):
    return run(sample(protocol={"held_out": 2, "baselines": ["replay"]}, seeds=[0]), folder, 24)


MOMENTS = (
    *(begun, first_stage_failed, one_item, a_later_stage_failed),
    *(without_search, one_block, interrupted_comparison),
)


@pytest.fixture(params=MOMENTS, ids=lambda moment: moment.__name__)
def study(request, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "figure_names", lambda: ["forest", "search"])
    return request.param(tmp_path)


def test_every_view_can_be_made_at_every_moment(study):
    for name in views.VIEWS:
        found = seen(study, name)
        assert isinstance(found, dict), name
        if name in ("comparison", "matrices"):
            scores = [n for row in found.get("matrices", []) for n in numbers(row["R"])]
            assert all(0 <= score <= 1 for score in scores)


def test_settings_can_be_named_before_one_is_chosen(tmp_path):
    outcome = one_item(tmp_path)
    found = seen(outcome, "examples")
    assert "name one to see its answers" in found["note"]
    assert {row["setting"] for row in found["settings"]} == set(outcome.results.table["setting"])
    for row in found["settings"]:
        assert seen(outcome, "examples", setting=row["setting"])["settings"] == found["settings"]


def test_a_study_that_has_only_begun_says_so(tmp_path):
    outcome = begun(tmp_path)
    found = seen(outcome, "summary")
    assert (found["begun"], found["status"], found["best"]) == (False, "not begun", None)
    assert found["answer"] == ["Nothing is finished yet."]
    assert seen(outcome, "settings")["rows"] == []
    counts = seen(outcome, "tree")["counts"]
    assert (counts["finished"], counts["missing"]) == (0, sum(counts.values()))


def test_a_failed_stage_is_listed_with_its_run_and_error(tmp_path):
    outcome = a_later_stage_failed(tmp_path)
    setting = outcome.results.search.candidates[0].setting
    (item,) = seen(outcome, "failures")["items"]
    assert (item["setting"], item["order"], item["seed"]) == (setting, "digits > charts > words", 1)
    assert (item["error"], item["message"], item["traceback"]) == (
        "ValueError",
        "a corrupt image",
        "line 1\nline 2",
    )
    assert (
        "1 stage failed (ValueError while training digits > charts > words)"
        in seen(outcome, "summary")["failed"][0]
    )
    tree = seen(outcome, "tree")
    (failed,) = [node for node in tree["nodes"] if node["state"] == "failed"]
    assert (failed["task"], failed["seed"], failed["depth"]) == ("words", 1, 2)
    assert failed["error"] == "ValueError: a corrupt image"
    assert failed["settings"] == [setting]


def test_one_block_has_a_score_without_an_interval(tmp_path):
    outcome = one_block(tmp_path)
    score = seen(outcome, "comparison")["rows"][0]["metrics"]["faa"]
    assert (score["low"], score["high"], score["n"]) == (None, None, 1)
    assert seen(outcome, "orders")["sentences"] == [
        "Only one order of the tasks was run, so how much the result depends on it is not known."
    ]


def test_a_study_without_a_search_says_that_nothing_was_searched(tmp_path):
    found = seen(without_search(tmp_path), "search")
    assert found["sentences"] == ["Nothing was searched: the setting is the study's own."]
    assert found["history"] == []
