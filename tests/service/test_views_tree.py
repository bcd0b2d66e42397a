"""The stage tree as the page shows it."""

import time

import pytest
from service_samples import run, sample, seen

from dgg_ray.core.json_files import write_json
from dgg_ray.service.views import stage_tree

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """After 6 work items of a study without search: 2 orders × 2 seeds, then replay and joint."""
    return run(sample(search=None), tmp_path_factory.mktemp("half"), 6)


def test_what_several_settings_share_is_one_node(half_done):
    found = seen(half_done, "tree")
    nodes = {node["id"]: node for node in found["nodes"]}
    assert len(nodes) == len(found["nodes"]) == half_done.results.facts["distinct stages"]
    by_place = {}
    for node in found["nodes"]:
        by_place.setdefault((node["depth"], node["task"], node["seed"]), []).append(node)
    # The first task has no guidance and no replay: dgg and replay share its stage.
    (first,) = by_place[0, "words", 0]
    assert len(first["settings"]) == 2
    assert first["shared"] == 2
    assert len(by_place[1, "charts", 0]) == 4  # after words and after digits, by dgg and by replay
    assert [len(node["settings"]) for node in by_place[1, "charts", 0]] == [1] * 4
    (joint,) = by_place[0, "charts + digits + words", 0]
    assert (len(joint["settings"]), joint["shared"]) == (1, 2)  # one stage serves both orders
    # 2 first tasks + 2 orders × 2 later tasks × 2 settings + joint, for each of 2 seeds
    assert len(nodes) == 2 * (2 + 8 + 1)


def test_a_parent_comes_before_its_children_and_trained_one_task_less(half_done):
    found, seen_before = seen(half_done, "tree")["nodes"], {}
    for node in found:
        if node["parent"] is None:
            assert node["depth"] == 0
        else:
            assert seen_before[node["parent"]]["depth"] == node["depth"] - 1
        seen_before[node["id"]] = node


def test_states_are_those_of_the_store_and_of_the_running_stages(half_done):
    counts = seen(half_done, "tree")["counts"]
    assert counts["finished"] == half_done.results.facts["finished stages"]
    assert counts["running"] == counts["failed"] == 0
    missing = next(node for node in seen(half_done, "tree")["nodes"] if node["state"] == "missing")
    stage = next(
        stage
        for _, run in half_done.archive.runs.values()
        for stage in run.stages
        if stage.key.startswith(missing["id"])
    )
    live = {"at": time.time(), "running": [{"stage": str(stage), "group": "a", "steps": [3, 8]}], "queued": 2}
    write_json(half_done.out / "progress.json", live)
    found = seen(half_done, "tree")
    (half_done.out / "progress.json").unlink()
    (running,) = [node for node in found["nodes"] if node["state"] == "running"]
    assert (running["id"], running["step"], running["steps"]) == (missing["id"], 3, 8)
    assert found["counts"]["missing"] == counts["missing"] - 1


def test_depths_that_do_not_fit_are_summed_up_and_the_note_says_so(half_done, monkeypatch):
    everything = seen(half_done, "tree")
    monkeypatch.setattr(stage_tree, "MAX_NODES", 6)  # the 2 × (2 + 1) stages of the first depth
    found = seen(half_done, "tree")
    single = [node for node in found["nodes"] if "count" not in node]
    summed = [node for node in found["nodes"] if "count" in node]
    assert {node["depth"] for node in single} == {0}
    assert len(single) == 6
    assert [(node["depth"], node["task"], node["count"]) for node in summed] == [
        (1, "charts", 8),
        (2, "digits", 4),
        (2, "words", 4),
    ]
    assert found["note"].startswith("The tree has 22 stages. Those after 1 trained task are summed up")
    assert found["counts"] == everything["counts"]
