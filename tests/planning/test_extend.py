"""A finished study gets one more task and pays for that task alone; warm starts from an older study."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from marked import first_quick

import dgg_ray
from dgg_ray import Study, cli, load_study
from dgg_ray.config import saved_study, yaml_edit
from dgg_ray.core.errors import StudyError
from dgg_ray.planning.extend import extend
from dgg_ray.search import comparison, warm_start
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.storage.stage_store import open_store
from dgg_ray.training.simulated_runner import SimulatedRunner

STUDY = """\
# Question: does a comment stay?
name: small
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 12, validation: 10, test: 10}   # the first
  - {name: words, reader: embedded, train: 12, validation: 10, test: 11}
  # the last
strategy: {name: dgg, alpha: 0.2, buffer: 5}
orders: {design: cyclic} # both
search:
  space:
    strategy.alpha: {per_task: [0, 0.5, 1]}   # α
    strategy.buffer: [5, 10]
  trials: 4

# how
protocol: {baselines: [finetune, joint]}
workers: {engine: simulated}
"""


@pytest.fixture()
def folder(tmp_path, monkeypatch) -> Path:
    """Return a folder with the study; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(STUDY)
    return tmp_path


def run_simulated(file: Path, out: Path) -> set[str]:
    """Run a simulated study into a folder; return the tasks of each stage that was trained."""
    study = warm_start.restore_warm_starts(load_study(file), out)
    saved_study.save_study(study, out)
    store = study.store(out)
    runner, before = SimulatedRunner.of(study, store), {record["key"] for record in store}

    def done(chains) -> bool:
        for item in (item for chain in chains for item in chain):
            runner.run(item)
        return bool(chains)

    search = comparison.make_search(study) if study.search else None
    reader = EvidenceReader(study, store)
    while search and (proposal := search.ask()) is not None:
        while done(reader.missing(proposal[1])):
            pass
        search.tell(proposal[0], reader.evidence(proposal[1]))
    done(comparison.Comparison(study, search).chains)
    new = [r for r in store if r["key"] not in before and r["trained_task"]]
    return {" > ".join([*r["earlier"], r["trained_task"]]) for r in new}


def faults(load) -> dict[str, str]:
    """Return the faults' sentences by path."""
    with pytest.raises(StudyError) as caught:
        load()
    return {fault.path: str(fault) for fault in caught.value.faults}


# -- the text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "value", "after"),
    [
        ("a: 1 # one\n\n# end\n", ("b",), [2, 3], "a: 1 # one\nb: [2, 3]\n\n# end\n"),
        ("a: 1", ("a",), {"x": "y"}, "a: {x: y}"),
        ("a: 1 # one\nb: 2", ("a",), [["x"], ["y"]], "a:\n  - [x]\n  - [y] # one\nb: 2"),
        ("a:\n  # why\n  b: 1\nc: 2", ("a",), [["x"]], "a:\n  # why\n  - [x]\nc: 2"),
        ("{a: [1, 2], b: {}}", ("a", 2), 3, "{a: [1, 2, 3], b: {}}"),
        ("{a: [1, 2], b: {}}", ("b", "c"), [[3]], "{a: [1, 2], b: {c: [[3]]}}"),
        ("a:\n- 1\n- 2 # two\n# three\nb: 3", ("a", 2), 3, "a:\n- 1\n- 2 # two\n- 3\n# three\nb: 3"),
        (
            "a:\n  - b: 1\n    c: |\n      text\n\nd: 2",
            ("a", 1),
            5,
            "a:\n  - b: 1\n    c: |\n      text\n  - 5\n\nd: 2",
        ),
        ("a: 'it''s'  # α\n", ("a",), "no: 1", "a: 'no: 1'  # α\n"),
        ("a: 1\n", ("a",), "x\x85y\u2028z", 'a: "x\\Ny\\Lz"\n'),  # line breaks to YAML alone
    ],
)
def test_one_value_of_a_text_changes_and_nothing_else(text, path, value, after):
    assert yaml_edit.set_value(text, path, value) == after
    content = yaml.safe_load(after)
    for step in path:
        content = content[step]
    assert content == value


def test_a_whole_file_keeps_every_text():
    content = {"a": "x\x85y", "b": "\u2028", "c": "plain text", "d": "no", "e": "α: β"}
    assert yaml.safe_load(yaml_edit.to_file_text(content)) == content


def test_a_path_that_leads_nowhere_is_a_key_error():
    for path in (("b", "c"), ("a", "b")):
        with pytest.raises(KeyError):
            yaml_edit.set_value("a: 1\n", path, 1)


def test_the_new_file_is_the_old_one_with_the_task_and_nothing_else(folder):
    made = extend(Path("small.yaml"), {"charts": "embedded"})
    assert str(made).endswith("next: dgg-ray run small-charts.yaml")
    before, after = STUDY.splitlines(), made.file.read_text().splitlines()
    entry = "  - {name: charts, reader: embedded, train: 12, validation: 10}"  # tests differ in size
    orders = ["orders:", "  - [digits, words, charts]", "  - [words, digits, charts] # both"]
    assert [line for line in before if line not in after] == [
        "name: small",
        "orders: {design: cyclic} # both",
    ]
    assert [line for line in after if line not in before] == ["name: small-charts", entry, *orders]
    assert load_study(made.file).task_names == ("digits", "words", "charts")


@pytest.mark.parametrize(
    ("orders", "new"),
    [
        ("", None),
        ("orders: [[words, digits]] # one\n", "orders: [[words, digits, charts, shapes]] # one\n"),
        (
            "orders:\n  given:\n    - [words, digits]\n    - [digits,\n       words]\n",
            "\n    - [words, digits, charts, shapes]\n    - [digits,\n       words, charts, shapes]\n",
        ),
        ("orders: {design: all}\n", "- [digits, words, charts, shapes]\n  - [words, digits, charts, shapes]"),
    ],
)
def test_every_old_order_is_the_beginning_of_a_new_one(folder, orders, new):
    (folder / "small.yaml").write_text(STUDY.replace("orders: {design: cyclic} # both\n", orders))
    made = extend(Path("small.yaml"), {"charts": "embedded", "shapes": "embedded"})
    old, now = load_study("small.yaml").all_orders, load_study(made.file).all_orders
    assert now == [(*order, "charts", "shapes") for order in old]
    assert (new or "") in made.file.read_text()
    assert (new is None) == ("orders:" not in made.file.read_text())


def test_a_file_that_cannot_be_edited_says_what_to_write(folder):
    text = STUDY.replace("name: small\n", "name: &n small\nquestion: *n\n")
    (folder / "small.yaml").write_text(text)
    message = faults(lambda: extend(Path("small.yaml"), {"charts": "embedded"}))["study"]
    assert "anchors" in message
    assert "tasks.2: {name: charts, reader: embedded" in message
    assert not (folder / "small-charts.yaml").exists()


@pytest.mark.parametrize(
    ("tasks", "options", "path", "message"),
    [
        ({"words": "embedded"}, {}, "--task words", "the study has a task of this name"),
        (
            {"charts": "embeded"},
            {},
            "--task charts",
            "no such folder or file, got 'embeded'. Did you mean 'emb",
        ),
        ({"charts": "."}, {}, "--task charts", "must hold test.json or test.jsonl"),
        ({"charts": "."}, {"reader": "lava"}, "--reader", "Did you mean 'llava'?"),
        ({"chart": "embedded"}, {}, "tasks[2].name", "Did you mean 'charts'?"),
        ({"charts": "embedded"}, {"name": "small"}, "--name", "must differ from the old study's name"),
        ({"charts": "embedded"}, {"results": Path("out")}, "--from", "must be the results folder of a study"),
        ({"charts": "embedded"}, {"new": Path("small.yaml")}, "--out-file", "must be a new file"),
    ],
)
def test_a_task_that_cannot_be_added_is_a_fault_and_nothing_is_written(folder, tasks, options, path, message):
    assert message in faults(lambda: extend(Path("small.yaml"), tasks, **options))[path]
    assert [p.name for p in folder.iterdir()] == ["small.yaml"]


def test_files_in_llavas_format_are_found_with_their_images(folder, capsys):
    for name in ("train", "test"):
        (folder / "menus").mkdir(exist_ok=True)
        records = [{"question_id": i, "text": f"{name} {i}?", "answer": "a plum"} for i in range(20)]
        (folder / "menus" / f"menus_{name}.json").write_text(json.dumps(records))
    assert cli.main(["extend", "small.yaml", "--task", "menus=menus/menus_train.json"]) == 0
    message = "{name: menus, reader: llava, train: menus/menus_train.json, test: menus/menus_test.json}"
    assert message in capsys.readouterr().out
    for name in ("train", "test"):
        (folder / "menus" / f"menus_{name}.json").rename(folder / "menus" / f"{name}.json")
    (folder / "menus" / "images").mkdir()
    made = extend(Path("small.yaml"), {"menus": "menus"}, new=Path("other.yaml"))
    assert "train: menus/train.json, test: menus/test.json, images: menus/images}" in made.file.read_text()
    assert load_study(made.file).data.tasks["menus"].sizes["test"] == 20


# -- the stages ------------------------------------------------------------------------------------

METHODS = ["stage_model", "tpe", "random", "nsga2", "grid", "stagewise"]


@pytest.mark.parametrize("method", first_quick(METHODS))
def test_an_extended_study_trains_the_new_task_and_nothing_else(folder, method):
    text = STUDY.replace("trials: 4", f"trials: 4\n  method: {method}\n  global_candidates: 2")
    (folder / "small.yaml").write_text(text)
    run_simulated(folder / "small.yaml", folder / "out/small")
    file = extend(Path("small.yaml"), {"charts": "embedded"}).file
    trained = run_simulated(file, folder / "out/small-charts")
    assert trained
    assert [path for path in trained if "charts" not in path] == []


@pytest.mark.parametrize("method", ["stage_model", "random"])
def test_a_limit_of_stages_grows_by_those_of_the_new_task(folder, method):
    text = STUDY.replace("trials: 4", f"stages: 14 # all\n  method: {method}")
    (folder / "small.yaml").write_text(text)
    run_simulated(folder / "small.yaml", folder / "out/small")
    old = load_study("small.yaml")
    made = extend(Path("small.yaml"), {"charts": "embedded"})
    new = load_study(made.file)
    evaluated = dgg_ray.open(folder / "out/small").results.evaluated
    assert new.search.stages == 14 + len(evaluated) * len(old.blocks)
    assert any("search.stages" in note for note in made.notes)
    run_simulated(made.file, folder / "out/small-charts")
    # Every setting goes on, and the new task's α differs between them.
    settings = dgg_ray.open(folder / "out/small-charts").table.drop_duplicates("setting")
    assert settings["strategy.alpha.charts"].nunique() > 1


HELD = STUDY.replace(
    "test: 11}", "test: 11}\n  - {name: shapes, reader: embedded, train: 12, validation: 10, test: 12}"
).replace("protocol: {baselines", "protocol: {held_out: 2, baselines")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{held_out: 2, baselines: [finetune, joint]}", "protocol: {held_out: [["),
        ("\n  baselines: [finetune, joint]\n  held_out: 2 # why", "\n  held_out:\n    - ["),
        (
            "{baselines: [finetune, joint], held_out: [[words, digits, shapes], [shapes, words, digits]]}",
            "digits, charts, counting]]}",
        ),
    ],
)
def test_the_comparison_goes_on_on_its_own_blocks(folder, before, after):
    text = HELD[: HELD.index("search:")] + f"protocol: {before}\nworkers: {{engine: simulated}}\n"
    (folder / "small.yaml").write_text(text)
    run_simulated(folder / "small.yaml", folder / "out/small")
    made = extend(Path("small.yaml"), {"charts": "embedded", "counting": "embedded"})
    old, new = load_study("small.yaml"), load_study(made.file)
    assert after in made.file.read_text()
    assert new.final_blocks == tuple(((*o, "charts", "counting"), seed) for o, seed in old.final_blocks)
    assert not {order for order, _ in new.final_blocks} & set(new.all_orders)
    before = [record["trained_task"] for record in new.store(folder)]
    run_simulated(made.file, folder / "out/small-charts-counting")
    trained = Counter(record["trained_task"] for record in new.store(folder)) - Counter(before)
    # DGG and fine-tuning on two blocks; joint training once for each block's seed.
    assert trained == {"charts": 4, "counting": 4, " + ".join(sorted(new.task_names)): 2}


@pytest.mark.whole
def test_an_extended_search_trains_the_new_task_alone_on_held_out_blocks(folder):
    # With this seed the winner keeps its values for the old tasks; any other is trained on these blocks.
    (folder / "small.yaml").write_text(HELD.replace("trials: 4", "method: stagewise\n  seed: 2"))
    run_simulated(folder / "small.yaml", folder / "out/small")
    made = extend(Path("small.yaml"), {"charts": "embedded"})
    trained = run_simulated(made.file, folder / "out/small-charts")
    assert any(path.endswith("shapes > charts") for path in trained)
    assert [path for path in trained if "charts" not in path] == []
    assert "trained again: joint, which trains all tasks at once" in str(made)
    assert "whose values for the old tasks were not compared before" in str(made)


def test_a_search_that_evaluated_nothing_starts_again_and_the_notes_say_so(folder):
    saved_study.save_study(load_study("small.yaml"), folder / "out/small")
    assert "trained again: the stages of the search" in str(
        extend(Path("small.yaml"), {"charts": "embedded"})
    )


def test_the_best_settings_of_a_finished_study_are_the_first_beam_of_its_extension(folder):
    text = STUDY.replace("trials: 4", "method: stagewise")
    (folder / "small.yaml").write_text(text)
    run_simulated(folder / "small.yaml", folder / "out/small")
    best = load_study(extend(Path("small.yaml"), {"charts": "embedded"}).file).data.warm_starts
    assert all(known.depth == 2 and known.objectives == () for known in best)
    search = comparison.make_search(load_study("small-charts.yaml"))
    assert search.ask()[1] == (best[0].setting, 2, None, None)


def test_a_task_with_other_examples_is_refused(folder):
    run_simulated(folder / "small.yaml", folder / "out/small")
    (folder / "small.yaml").write_text(
        STUDY.replace("train: 12, validation: 10, test: 11", "train: 13, test: 11")
    )
    message = "words: train and validation have other content than when"
    assert message in faults(lambda: extend(Path("small.yaml"), {"charts": "embedded"}))["tasks[1]"]
    study = load_study("small.yaml")
    assert message in faults(lambda: warm_start.restore_warm_starts(study, folder / "out/small"))["tasks[1]"]
    assert warm_start.restore_warm_starts(study, folder / "out/other") == study
    assert cli.main(["plan", "small.yaml"]) == 2


MENUS = "{name: menus, reader: llava, train: menus/train.json, test: menus/test.json, images: menus}"


def lay(folder: Path, entry: str = MENUS, train: int = 20, test: int = 20, answer: str = "a plum") -> None:
    """The study with a third task in LLaVA's format."""
    (folder / "menus").mkdir(exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        records = [{"question_id": i, "text": f"{split} {i}?", "answer": answer} for i in range(count)]
        (folder / "menus" / f"{split}.json").write_text(json.dumps(records))
    (folder / "other.json").write_text((folder / "menus/test.json").read_text().replace("plum", "pear"))
    (folder / "small.yaml").write_text(STUDY.replace("  # the last", f"  - {entry}\n  # the last"))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"test": 21}, "test has …(test of 21 examples, 20 then: menus/test.json, menus);"),
        (
            {"answer": "a pear"},  # of 20 texts a tenth is set apart
            "train and validation and test have …("
            "train of 18 examples, as many then: menus/train.json, menus; "
            "validation of 2 examples, as many then: menus/train.json, menus; "
            "test of 20 examples, as many then: menus/test.json, menus);",
        ),
        (
            {"entry": MENUS.replace("menus/test.json", "other.json")},
            "test has …(test of 20 examples, as many then: other.json, menus; "
            "test is other.json, was menus/test.json);",
        ),
        (
            {"entry": MENUS.replace("menus}", "menus, limit: 5}")},
            "train has …(train of 5 examples, 18 then: menus/train.json, menus; limit is 5, was None);",
        ),
    ],
)
def test_the_changed_files_of_a_task_are_named(folder, now, message):
    lay(folder)
    saved_study.save_study(load_study("small.yaml"), folder / "out/small")
    lay(folder, **now)
    message = message.replace("…", "other content than when out/small was run ")
    assert (
        f"tasks[2]: menus: {message}"
        in faults(lambda: extend(Path("small.yaml"), {"charts": "embedded"}))["tasks[2]"]
    )


# -- warm starts -----------------------------------------------------------------------------------


def warm_study(folder: Path, *changes: tuple[str, str]) -> Study:
    """Load another study that starts from the results of the first one."""
    text = STUDY.replace("name: small", "name: warm").replace(
        "trials: 4", "trials: 4\n  warm_start_from: out/small"
    )
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "warm.yaml").write_text(text)
    return load_study("warm.yaml")


@pytest.fixture()
def finished(folder) -> Path:
    run_simulated(folder / "small.yaml", folder / "out/small")
    return folder


def test_evaluated_settings_are_warm_starts_the_best_first(finished):
    old = saved_study.require_saved_study(finished / "out/small")
    search = EvidenceReader(old, open_store(finished / "out/small/stages")).fast_forward_past_failures(
        comparison.make_search(old)
    )
    study = warm_study(finished)
    values = [known.objectives[0] for known in study.data.warm_starts]
    evaluated = search.evaluated()
    assert values == [evaluated[number].objective[0] for number in search.ranking()]
    assert study.data.warm_starts[0].setting == search.winner()
    assert {known.depth for known in study.data.warm_starts} == {0}  # it has no task more
    assert comparison.make_search(study).ask()[1].setting == search.winner()


def test_objective_values_are_not_passed_on_to_other_tasks(finished):
    more = warm_study(finished, ("  # the last", "  - {name: charts, reader: embedded}"))
    assert {known.objectives for known in more.data.warm_starts} == {()}


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ([("out/small", "out/smal")], "search.warm_start_from[0]", "holds no study"),
        (
            [("trials: 4", "trials: 4\n  objective: stability")],
            "search.warm_start_from[0]",
            "searched for stability, as",
        ),
        ([("trials: 4", "trials: 4\n  method: grid")], "search.warm_start_from", "is not used by `grid`"),
        (
            [("strategy.alpha: {per_task: [0, 0.5, 1]}", "adapter.rank: [2, 4]"), ("[5, 10]", "[7, 8]")],
            "search.warm_start_from[0]",
            "searched strategy.alpha for digits, words and strategy.buffer; usable here: nothing",
        ),
    ],
)
def test_an_unusable_warm_start_is_a_fault(finished, changes, path, message):
    assert message in faults(lambda: warm_study(finished, *changes))[path]


def test_a_warm_start_from_a_study_that_evaluated_nothing_is_a_fault(folder):
    saved_study.save_study(load_study("small.yaml"), folder / "out/small")
    assert "has evaluated a setting" in faults(lambda: warm_study(folder))["search.warm_start_from[0]"]


def test_a_partly_usable_warm_start_is_a_warning(finished):
    study = warm_study(finished, ("strategy.buffer: [5, 10]", "adapter.rank: [2, 4]"))
    note = "searched strategy.alpha for digits, words and strategy.buffer; usable here: strategy.alpha for"
    assert any(note in warning for warning in study.data.warnings)
    assert all(
        set(known.setting) == {"strategy.alpha.digits", "strategy.alpha.words"}
        for known in study.data.warm_starts
    )


def test_a_study_cannot_warm_start_from_itself(finished):
    study = warm_study(finished)
    messages = faults(lambda: warm_start.restore_warm_starts(study, finished / "out/small"))
    assert "give it another --out" in messages["search.warm_start_from"]


def test_the_warm_starts_of_the_first_run_are_kept(finished):
    study = warm_study(finished)
    run_simulated(finished / "warm.yaml", finished / "out/warm")
    (finished / "small.yaml").write_text(STUDY.replace("trials: 4", "trials: 9"))
    run_simulated(finished / "small.yaml", finished / "out/small")
    later = load_study("warm.yaml")
    assert len(later.data.warm_starts) > len(study.data.warm_starts)
    restored = warm_start.restore_warm_starts(later, finished / "out/warm")
    assert restored.data.warm_starts == study.data.warm_starts
    assert saved_study.require_saved_study(finished / "out/warm").data.warm_starts == study.data.warm_starts
    assert (
        run_simulated(finished / "warm.yaml", finished / "out/warm") == set()
    )  # the same proposals, all there
    narrower = replace(later.search, space={"strategy.buffer": later.search.space["strategy.buffer"]})
    asks_more = replace(later, search=narrower)
    assert warm_start.restore_warm_starts(asks_more, finished / "out/warm") == asks_more


# -- with real training ------------------------------------------------------------------------------------


@pytest.mark.whole
def test_two_extensions_with_real_training_pay_for_one_task_each(folder, capsys, monkeypatch):
    monkeypatch.setattr("dgg_ray.report.page.write_report", lambda *_: None)
    sizes = "train: 12, validation: 10, test: 10}"
    lines = "\n".join(
        f"  - {{name: {name}, reader: embedded, {sizes}" for name in ("digits", "words", "charts")
    )
    text = STUDY[: STUDY.index("  - {name: digits")] + lines + "\n" + STUDY[STUDY.index("strategy:") :]
    text = text.replace("workers: {engine: simulated}", "training: {batch_size: 12}").replace(
        "cyclic", "random, count: 2"
    )
    text = text.replace("    strategy.buffer: [5, 10]\n", "").replace("trials: 4", "trials: 2")
    text = text.replace(
        "{baselines: [finetune, joint]}", "{baselines: [finetune], evaluate: seen, max_new_tokens: 2}"
    )
    (folder / "small.yaml").write_text(text)
    run = ["--local", "--quiet"]
    assert cli.main(["run", "small.yaml", *run]) == 0
    for old, task in (("small", "shapes"), ("small-shapes", "counting")):
        capsys.readouterr()
        assert cli.main(["extend", f"{old}.yaml", "--task", f"{task}=embedded"]) == 0
        assert cli.main(["run", f"{old}-{task}.yaml", *run]) == 0
        # Two settings and fine-tuning, each over two orders: one stage a run, the new task's.
        assert "6 stages trained" in capsys.readouterr().out
        assert cli.main(["status", f"out/{old}-{task}", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["to_train"] == 0
