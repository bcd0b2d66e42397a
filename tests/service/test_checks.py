"""What a server allows a submitted study, and the faults that it finds."""

import sys

import pytest
from server_samples import text

from dgg_ray.core.errors import StudyError
from dgg_ray.service import checks
from dgg_ray.service.checks import Rules

SECRET = "/etc/passwd"


@pytest.fixture
def rules(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "inside.json").write_text("[]")
    (data / "link.json").symlink_to(SECRET)
    (data / "folder").symlink_to("/etc")
    return Rules(str(tmp_path / "store"), str(data), (str(data), "s3://ours/data"), str(tmp_path / "studies"))


def paths(content, rules):
    return [fault.path for fault in checks.policy_faults(content, rules)]


@pytest.mark.parametrize(
    "place",
    [
        SECRET,
        "../../../../etc/passwd",
        "folder/passwd",
        "link.json",
        "~/.ssh/id_rsa",
        "~root/x",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "a/../../x",
        "s3://others/data/x.json",
        "s3://ours/data/../secret.json",
        "s3://ours/database/x.json",
        "https://example.org/x.json",
    ],
)
@pytest.mark.parametrize("key", ["train", "images"])
def test_no_place_outside_the_roots_is_read(rules, place, key):
    study = {"tasks": [{"name": "a", "reader": "llava", key: place}]}
    assert paths(study, rules) == [f"tasks[0].{key}"]


@pytest.mark.parametrize(
    "place", ["inside.json", "missing.json", "s3://ours/data/x.json", "a word", "{data}/x"]
)
def test_places_below_the_roots_are_read(rules, place):
    place = place.replace("{data}", rules.data)
    assert paths({"tasks": [{"name": "a", "reader": "llava", "train": place}]}, rules) == []


@pytest.mark.parametrize(
    ("study", "path"),
    [
        ({"model": {"name": "auto", "path": SECRET}}, "model.path"),
        ({"search": {"warm_start_from": ["/home/other/out"]}}, "search.warm_start_from[0]"),
        ({"search": {"space": {"strategy.safety": [SECRET]}}}, "search.space.strategy.safety[0]"),
        ({"strategy": {"name": "hpa", "safety": SECRET}}, "strategy.safety"),
        ({"output": {"store": "s3://others"}}, "output.store"),
        ({"output": {"trackers": ["wandb"]}}, "output.trackers"),
    ],
)
def test_no_file_and_no_other_store_is_named(rules, study, path):
    assert paths(study, rules) == [path]


SEARCHED = "    strategy.alpha: {per_task: [0, 0.5]}\n"
NAMED = {
    "strategy": {"{name: dgg, alpha: 0.2, buffer: 5}": "own_code:X", SEARCHED: ""},
    "strategy.name": {"{name: dgg, alpha: 0.2, buffer: 5}": "{name: 'own_code:X'}", SEARCHED: ""},
    "model.name": {"model: embedded": "model: {name: 'own_code:X'}"},
    "tasks[0].reader": {"digits, reader: embedded": "digits, reader: 'own_code:X'"},
    "search.objective": {"  trials: 4": "  trials: 4\n  objective: 'own_code:x'"},
    "search.constraints[0]": {"  trials: 4": "  trials: 4\n  constraints: 'own_code:x >= 0.1'"},
    "search.space.strategy.name": {SEARCHED: "    strategy.name: [dgg, 'own_code:X']\n"},
    "protocol.baselines[0]": {"workers:": "protocol: {baselines: ['own_code:X']}\nworkers:"},
    "protocol.baselines[0].name": {
        "workers:": "protocol: {baselines: [{name: 'own_code:X', search: {strategy.buffer: [1]}}]}\nworkers:"
    },
}


@pytest.mark.parametrize("place", NAMED)
def test_no_module_is_imported_wherever_a_study_names_it(rules, place, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (tmp_path / "own_code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = checks.check(text(**NAMED[place]), rules)["faults"]
    assert not ran.exists()
    named = [fault for fault in found if "no import path is taken here" in fault["rule"]]
    assert [fault["path"].removesuffix(".name") for fault in named] == [place.removesuffix(".name")]


def test_checking_many_texts_leaves_the_search_path_alone(rules):
    before = list(sys.path)
    checks.check(text(), rules)
    assert sys.path == before


def test_a_sound_study_has_no_faults_and_says_what_it_needs(rules):
    found = checks.check(text(), rules)
    assert found["faults"] == []
    assert (found["name"], found["needs"]) == ("small", {"cpus": 1})
    gpus = text().replace("{engine: simulated}", "{engine: simulated, groups: 2, group_size: 2, gpus: 0.5}")
    assert checks.check(gpus, rules)["needs"] == {"gpus": 2.0}


def test_every_fault_has_its_line_and_no_path_of_the_server(rules):
    broken = text().replace("model: embedded", "model: embeded").replace("trials: 4", "trials: none")
    found = checks.check(broken, rules)["faults"]
    assert [(fault["path"], fault["line"], fault["near"]) for fault in found] == [
        ("model.name", 2, "embedded"),
        ("search.trials", 14, ""),
    ]
    assert not any("/" in fault["text"] for fault in found)


def test_what_is_not_allowed_is_named_beside_the_other_faults(rules):
    broken = text().replace("reader: embedded, train: 12", f"reader: llava, train: {SECRET}", 1)
    found = checks.check(broken.replace("trials: 4", "trials: none"), rules)["faults"]
    assert [(fault["path"], fault["line"]) for fault in found] == [
        ("tasks[0].train", 4),
        ("search.trials", 14),
    ]


@pytest.mark.parametrize(
    "broken", ["", "a: [", "[]", "\x00", "name: x\nname: y", "a: &a [*a]", "!!python/x 1"]
)
def test_any_text_gives_faults_rather_than_an_error(rules, broken):
    assert checks.check(broken, rules)["faults"]


def test_a_clone_keeps_comments_and_changes_what_is_asked(rules):
    original = text().replace("strategy:", "# the method\nstrategy:")
    changes = {"strategy.buffer": 7, "training.epochs": 2, "tasks[1].train": 11}
    cloned = checks.clone(original, "second", changes)
    assert "# the method" in cloned
    study = checks.load_text(cloned, rules)
    assert (study.name, study.strategy.buffer, study.training.epochs) == ("second", 7, 2)
    assert study.readers["words"].train == 11
    with pytest.raises(checks.StudyError, match=r"tasks\[9\].train"):
        checks.clone(original, "third", {"tasks[9].train": 1})


def test_strategies_are_listed_with_how_well_they_are_known():
    found = {s["name"]: s for s in checks.strategies()}
    assert found["dgg"]["known_from"]
    assert {p["name"] for p in found["replay"]["parameters"]} >= {"buffer"}


def test_a_study_is_extended_by_tasks_that_the_server_allows(rules):
    two = "\n".join(line for line in text().splitlines() if "charts" not in line) + "\n"
    new = checks.extend(two, rules, {"charts": "embedded"}, "llava", None)
    found = checks.load_text(new, rules)
    assert (found.name, found.task_names) == ("small-charts", ("digits", "words", "charts"))
    old = checks.load_text(two, rules)
    assert [order[:2] for order in found.all_orders] == list(old.all_orders)
    for tasks, path, rule in [
        ({"charts": "/etc"}, "tasks.charts", "must lie below"),
        ({"charts": "../other"}, "tasks.charts", "must lie below"),
        ({"digits": "embedded"}, "task digits", "has a task of this name"),
    ]:
        with pytest.raises(StudyError) as caught:
            checks.extend(two, rules, tasks, "llava", None)
        (fault,) = caught.value.faults
        assert (fault.path, rule in fault.rule) == (path, True)


def test_a_search_starts_from_results_of_this_server_and_no_others(rules):
    results = f"{rules.results}/older"
    for place, path in [(results, []), ("/etc", ["search.warm_start_from[0]"])]:
        raw = {"search": {"warm_start_from": [place]}}
        assert [fault.path for fault in checks.policy_faults(raw, rules)] == path
    outside = {"search": {"warm_start_from": [f"{rules.results}/../other"]}}
    assert [fault.path for fault in checks.policy_faults(outside, rules)] == ["search.warm_start_from[0]"]
