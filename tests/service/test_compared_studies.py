"""Settings of several studies are compared on the blocks that they share, and on no others."""

import numpy as np
import pytest
from service_samples import TASKS, begin, parsed, run, sample

import dgg_ray
from dgg_ray.core.errors import ResultsError
from dgg_ray.service import views

pytestmark = pytest.mark.whole
ORDERS = [["words", "charts", "digits"], ["charts", "digits", "words"], ["digits", "words", "charts"]]
COMMON = {"search": None, "orders": ORDERS, "seeds": [0]}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Studies by name: `a` and `b` differ in α, `later` in its seed, `more` in the data of one task."""
    more = [{**task, "train": 16} if task["name"] == "charts" else task for task in TASKS]
    changes = {
        "a": {},
        "b": {"strategy": {"name": "dgg", "alpha": 1, "buffer": 4}},
        "later": {"seeds": [7]},
        "more": {"tasks": more},
    }
    return {
        name: run(sample(name=name, **{**COMMON, **own}), tmp_path_factory.mktemp(name))
        for name, own in changes.items()
    }


def compared(studies, *names):
    subjects = [(studies[name.partition(":")[0]], name.partition(":")[2]) for name in names]
    return parsed(views.compare(subjects))


def faa(outcome, setting=None) -> np.ndarray:
    return np.array([outcome.scores(order, setting=setting).iloc[-1].mean() for order in range(3)])


def test_scores_and_differences_are_paired_over_the_shared_blocks(studies):
    found = compared(studies, "a", "b", "a:replay")
    a, b, replay = found["rows"]
    assert [row["name"] for row in found["rows"]] == ["a: dgg", "b: dgg", "a: replay"]
    assert len(found["blocks"]) == a["blocks"] == b["blocks"] == 3
    own, other = faa(studies["a"]), faa(studies["b"])
    assert a["metrics"]["faa"]["score"] == pytest.approx(own.mean())
    assert a["metrics"]["faa"]["difference"] is None
    cell = b["metrics"]["faa"]
    assert cell["difference"] == pytest.approx((other - own).mean())
    # for both differences at once: t with 2 degrees of freedom at 1 - 0.05 / 2 / 2 is 6.2053
    half = 6.2053 * (other - own).std(ddof=1) / 3**0.5
    low, high = cell["difference_low"], cell["difference_high"]
    assert (low, high) == pytest.approx((cell["difference"] - half, cell["difference"] + half), rel=1e-4)
    by_study = faa(studies["a"], "replay") - own
    assert replay["metrics"]["faa"]["difference"] == pytest.approx(by_study.mean())
    assert found["warnings"] == []


def test_curves_end_at_the_final_score(studies):
    found = compared(studies, "a", "b")
    ends = {line["name"]: line["points"][-1] for line in found["curves"]["learning"]}
    assert ends["a"]["tasks"] == 3
    assert ends["a"]["score"] == pytest.approx(faa(studies["a"]).mean())
    assert ends["b"]["score"] == pytest.approx(faa(studies["b"]).mean())


def test_what_differs_is_said_in_the_studies_own_words(studies):
    assert compared(studies, "a", "b")["differences"] == ["strategy.alpha: 0.3 in a; 1.0 in b."]
    said = compared(studies, "a", "b", "later")["differences"]
    assert said == [
        "strategy.alpha: 0.3 in a and later; 1.0 in b.",
        "seeds: (0,) in a and b; (7,) in later.",
    ]


def test_studies_without_a_shared_block_have_no_difference_and_a_warning(studies):
    found = compared(studies, "a", "later")
    assert found["blocks"] == []
    assert found["rows"][0]["metrics"]["faa"]["score"] == pytest.approx(faa(studies["a"]).mean())
    assert found["rows"][1]["metrics"]["faa"]["difference"] is None
    assert found["warnings"][0].startswith("No block (order and seed, with equal data) was finished by all")
    assert "No difference can be given between a and later." in found["warnings"]


def test_a_difference_is_given_where_only_a_third_setting_shares_no_block(studies):
    found = compared(studies, "a", "b", "later")
    _, b, later = found["rows"]
    assert found["blocks"] == []
    assert b["metrics"]["faa"]["difference"] == pytest.approx((faa(studies["b"]) - faa(studies["a"])).mean())
    assert later["metrics"]["faa"]["difference"] is None
    assert "No difference can be given between a and later." in found["warnings"]


def test_equal_blocks_with_other_data_are_not_shared(studies):
    found = compared(studies, "a", "more")
    assert found["blocks"] == []
    assert found["warnings"][0] == (
        "a and more have other data, scorers or answer lengths of charts: their scores on these tasks cannot "
        "be compared."
    )


def test_the_test_split_is_compared_only_where_every_setting_has_finished_a_run_on_it(studies, tmp_path):
    two_stages = run(sample(name="begun", **COMMON), tmp_path, 2)  # of the first run's three
    found = parsed(views.compare([(studies["a"], ""), (two_stages, "")]))
    assert found["split"] == "validation"
    assert found["warnings"][0].startswith("Not every setting has finished a run on the test split")
    assert found["warnings"][1].startswith("No block (order and seed, with equal data)")
    assert compared(studies, "a", "b")["split"] == "test"


def test_what_cannot_be_compared_is_refused(studies, tmp_path):
    with pytest.raises(ResultsError, match="is of 2 to 8 settings, got 1"):
        compared(studies, "a")
    with pytest.raises(ResultsError, match="of a is listed twice"):
        compared(studies, "a", "a:chosen")
    begin(sample(name="empty"), tmp_path)
    with pytest.raises(ResultsError, match="no setting has been evaluated completely yet"):
        views.compare([(studies["a"], ""), (dgg_ray.open(tmp_path), "")])
