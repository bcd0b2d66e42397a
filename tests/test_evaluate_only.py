"""Tasks that are never trained and only evaluated: what a study may say of them, and what becomes of it."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml
from study_samples import GOOD, faults

from dgg_ray import load_study, run_study, study_to_dict
from dgg_ray.analysis.outside_scores import changes_outside, scores_along
from dgg_ray.analysis.run_table import final_table
from dgg_ray.config import registry, study_changes
from dgg_ray.config.json_schema import schema
from dgg_ray.config.sections import Constraint, Orders, Protocol, Search, SearchParameter
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.config.validation import split_rules
from dgg_ray.core.errors import StudyError
from dgg_ray.core.scores import ScoreMatrix
from dgg_ray.execution.trackers import TrackedRun, items_by_stage
from dgg_ray.metrics.plasticity import plasticity
from dgg_ray.metrics.retention import retention
from dgg_ray.planning.extend import extend
from dgg_ray.planning.plan import plan
from dgg_ray.report.figures import retention as retention_figure
from dgg_ray.search import warm_start
from dgg_ray.search.comparison import SPLITS, untouched_item
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.search.objective import continue_like, extrapolate_run
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.simulated_cluster import simulate_study
from dgg_ray.testing.synthetic_study import synthetic_study

GENERAL = "  - {name: relations, reader: embedded, validation: 11, test: 13, evaluate_only: true}\n"
WITH = GOOD.replace("  - {name: words", f"{GENERAL}  - {{name: words")  # it is the second of the file
EXACT = ResponseModel(noise=0.0, evaluation_noise=False, spread=0.0)
NAN = np.nan


# -- the study file --------------------------------------------------------------------------------


def test_such_a_task_has_no_training_examples_and_stands_in_no_order(load):
    study = load(WITH)
    assert study.task_names == ("digits", "words", "charts")
    assert study.evaluate_only == ("relations",)
    assert study.data.tasks["relations"].sizes == {"train": 0, "validation": 11, "test": 13}
    assert all("relations" not in order for order, _ in (*study.blocks, *study.final_blocks))
    assert "relations" not in str(sorted(path for path in study.most_expensive.strategy.alpha))
    assert study.read_task("relations").examples["train"] == ()


def test_such_a_task_changes_no_key_order_or_id(load):
    without, study = load(GOOD), load(WITH)
    assert (study.id, study.blocks, study.final_blocks) == (without.id, without.blocks, without.final_blocks)
    keys = [[[stage.key for stage in run.stages] for run in of.runs] for of in (study, without)]
    assert keys[0] == keys[1]
    parts = [registry.part_hashes(of.file.content) for of in (study, without)]
    assert parts[0] == parts[1]  # a shared store takes both under one name


def test_the_schema_and_the_dictionary_of_a_study_know_such_tasks(load):
    jsonschema.validate(yaml.safe_load(WITH), schema())
    wrong = yaml.safe_load(WITH)
    wrong["tasks"][1]["evaluate_only"] = "yes"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema())
    study = load(WITH)
    entries = study_to_dict(study)["tasks"]
    assert [entry.get("evaluate_only") for entry in entries] == [None, True, None, None]
    assert load_study(study_to_dict(study)).evaluate_only == ("relations",)


def test_a_change_between_trained_and_only_evaluated_is_named(load):
    trained = load(WITH.replace(", evaluate_only: true", ", train: 12"))
    then, now = study_changes.flat_settings(trained), study_changes.flat_settings(load(WITH))
    assert "tasks.relations.evaluate_only" not in then
    assert now["tasks.relations.evaluate_only"] == "true"
    assert warm_start.changed_task_faults(trained, load(WITH), Path("old")) == []  # train is new, not changed


@pytest.mark.parametrize(
    ("old", "new", "path", "said"),
    [
        ("evaluate_only: true", "evaluate_only: maybe", "tasks[1].evaluate_only", "must be true or false"),
        ("true}", "true, evaluate_onyl: true}", "tasks[1].evaluate_onyl", "no such setting"),
        (
            "orders: {design: random, count: 2}",
            "orders: [[digits, words, charts, relations]]",
            "orders[0]",
            "once; relations is never trained (`evaluate_only: true`), got",
        ),
        (
            "seeds:",
            "protocol: {held_out: [[relations, digits, words, charts]]}\nseeds:",
            "protocol.held_out[0]",
            "relations is never trained (`evaluate_only: true`)",
        ),
        (
            "alpha: 0.2",
            "alpha: {digits: 0.1, relations: 0.5}",
            "strategy.alpha.relations",
            "is only evaluated (`evaluate_only: true`), so no setting can be its own",
        ),
        (
            "strategy.alpha: {per_task: [0, 0.5]}",
            "strategy.alpha.relations: [0, 0.5]",
            "search.space.strategy.alpha.relations",
            "relations is only evaluated (`evaluate_only: true`), so no setting is its own",
        ),
        (
            "seeds:",
            "protocol: {baselines: [{mine: {strategy.alpha.relations: 1}}]}\nseeds:",
            "protocol.baselines[0].mine.strategy.alpha.relations",
            "relations is only evaluated",
        ),
    ],
)
def test_what_cannot_be_said_of_such_a_task_is_a_fault(load, old, new, path, said):
    assert old in WITH
    found = faults(load, WITH.replace(old, new, 1))
    assert said in found[path]
    assert found[path].startswith("line ")


def test_at_least_two_tasks_must_be_trained(load):
    only = WITH.replace("test: 10}", "test: 10, evaluate_only: true}")
    assert faults(load, only)["tasks"].endswith("has 0; 4 are only evaluated")
    one = only.replace(", evaluate_only: true}", "}", 1)
    assert (
        "needs at least 2 tasks that are trained, has 1; 3 are only evaluated" in faults(load, one)["tasks"]
    )


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("objective: retention", "search.objective"),
        ("constraints: retention >= -2 points", "search.constraints[0]"),
        ("constraints: ['faa >= 1 %', retention >= finetune - 2 points]", "search.constraints[1]"),
    ],
)
def test_retention_without_such_a_task_is_a_fault_and_with_one_it_is_none(load, setting, path):
    text = GOOD.replace("  trials: 4", f"  trials: 4\n  {setting}")
    assert "needs a task with `evaluate_only: true`, and there is none" in faults(load, text)[path]
    assert load(WITH.replace("  trials: 4", f"  trials: 4\n  {setting}")).evaluated_outside == ("relations",)


def test_a_bound_may_be_below_0():
    assert Constraint.parse("retention >= -2 points") == Constraint("retention", None, -0.02)
    assert Constraint.parse("retention >= - 0.5 %") == Constraint("retention", None, -0.005)
    assert Constraint.parse("faa >= 60 %") == Constraint("faa", None, 0.6)


def test_a_task_whose_validation_equals_its_test_is_refused_only_where_settings_are_chosen_on_it(load):
    def faults_with(objective):
        study = load(WITH.replace("  trials: 4", f"  trials: 4\n  objective: {objective}"))
        general = study.data.tasks["relations"]
        same = replace(general, digests={**general.digests, "validation": general.digests["test"]})
        return list(split_rules(study, {**study.data.tasks, "relations": same}))

    assert faults_with("faa") == []
    assert "validation and test hold the same examples" in faults_with("retention")[0].rule


def llava_records(folder: Path, name: str, count: int) -> str:
    rows = [{"question_id": str(i), "text": f"{name} {i}?", "answer": f"a{i}"} for i in range(count)]
    (folder / name).write_text(json.dumps(rows))
    return name


def test_files_need_no_train_where_a_task_is_only_evaluated(load, tmp_path):
    files = {name: llava_records(tmp_path, f"{name}.json", n) for name, n in (("val", 3), ("test", 4))}
    entry = f"{{name: relations, reader: llava, test: {files['test']}, evaluate_only: true"
    text = WITH.replace(GENERAL.strip(" -\n"), f"{entry}, validation: {files['val']}}}")
    assert load(text).data.tasks["relations"].sizes == {"train": 0, "validation": 3, "test": 4}
    no_validation = faults(load, text.replace(f", validation: {files['val']}", ""))
    assert "is required without `train`" in no_validation["tasks[1].validation"]
    trained = faults(load, text.replace("evaluate_only: true", "evaluate_only: false"))
    assert "a task with `evaluate_only: true` needs none" in trained["tasks[1].train"]


READER = """\
from dataclasses import dataclass

from dgg_ray.plugin import Example, Reader, Task


@dataclass(frozen=True)
class Mine(Reader):
    def read(self, name):
        examples = [Example(str(i), f"{i}?", "yes") for i in range(3)]
        return Task(name, {"validation": examples, "test": examples[:2]})
"""


def test_a_reader_of_ones_own_need_return_no_training_examples(load, tmp_path):
    (tmp_path / "benchmark_reader.py").write_text(READER)
    entry = "{name: relations, reader: benchmark_reader:Mine, evaluate_only: true}"
    text = WITH.replace(GENERAL.strip(" -\n"), entry)
    assert load(text).data.tasks["relations"].sizes == {"train": 0, "validation": 3, "test": 2}
    with pytest.raises(StudyError, match="must return examples for train"):
        load(text.replace(", evaluate_only: true", ""))


# -- the work --------------------------------------------------------------------------------------


def study_of(objective=("faa",), **sections):
    """Three trained tasks a, b, c and one, g, that is only evaluated; without noise."""
    search = Search(
        {"strategy.alpha": SearchParameter((0.0, 0.4, 1.0), per_task=True)},
        objective=objective,
        **sections.pop("search", {"method": "grid"}),
    )
    settings = {"evaluate_only": ("g",), "simulation": EXACT, "search": search} | sections
    return synthetic_study(("a", "g", "b", "c"), DGG(alpha=0.4, buffer=10), **settings)


def evaluated(item) -> set[tuple[str, str]]:
    return {(evaluation.task, evaluation.split) for evaluation in item.evaluations}


def test_the_final_runs_evaluate_it_after_each_stage_and_on_the_untouched_model():
    runs = study_of(protocol=Protocol(evaluate="seen")).runs
    items = runs.work_items(runs[0], SPLITS, "seen")
    assert [evaluated(item) for item in items] == [
        {(task, split) for split in SPLITS for task in tasks} for tasks in ("ga", "gab", "gabc")
    ]
    assert evaluated(untouched_item(runs)) == {("g", "validation"), ("g", "test")}


def test_the_search_evaluates_it_only_where_a_metric_reads_it():
    plain, asking = study_of(), study_of(("faa", "retention"))
    assert evaluated(plain.runs.work_items(plain.runs[0])[1]) == {(t, "validation") for t in "ab"}
    assert EvidenceReader(plain, MemoryStore()).untouched_item is None
    assert evaluated(asking.runs.work_items(asking.runs[0])[1]) == {(t, "validation") for t in "abg"}
    assert evaluated(EvidenceReader(asking, MemoryStore()).untouched_item) == {("g", "validation")}


def test_the_plan_counts_its_answers():
    without = synthetic_study(
        ("a", "b", "c"), DGG(), protocol=Protocol(evaluate="seen", baselines=("finetune",))
    )
    study = synthetic_study(
        ("a", "g", "b", "c"),
        DGG(),
        evaluate_only=("g",),
        protocol=Protocol(evaluate="seen", baselines=("finetune",)),
    )
    known, more = plan(without, MemoryStore()), plan(study, MemoryStore())
    assert (more.distinct, more.examples, more.steps) == (known.distinct, known.examples, known.steps)
    # after each distinct stage, and on the untouched model: 500 answers on each of two splits
    assert more.answers - known.answers == (known.distinct + 1) * 2 * 500


# -- scores and searches ---------------------------------------------------------------------------


def test_a_simulated_model_forgets_what_is_never_trained():
    model = ResponseModel(seed=7)
    top = model.task_constants("g").top
    assert model.untouched_score("g") == pytest.approx(0.7 * top)
    frail = model.task_constants("b").frail
    # (1-α)² = 0.25; half of the share that an earlier task without replay loses
    assert model.outside(0.4, "g", "b", 0.5) == pytest.approx(0.4 * (1 - frail / 2 * (1 - 0.85 * 0.75)))
    assert model.outside(0.4, "g", "b", 1.0) > model.outside(0.4, "g", "b", 0.0) > 0


def run_into(folder: Path, text: str):
    (folder / "study.yaml").write_text(text)
    return run_study(load_study(folder / "study.yaml"), folder / "out", local=True)


SIMULATED = """\
name: kept
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: relations, reader: embedded, validation: 11, test: 13, evaluate_only: true}
  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: counting, reader: embedded, validation: 12, test: 12, evaluate_only: true}
strategy: {name: dgg, alpha: 0.5, buffer: 4}
protocol: {baselines: [finetune, joint], evaluate: seen}
simulation: {noise: 0, evaluation_noise: false}
workers: {engine: simulated}
"""


def expected_scores(*tasks: tuple[str, float]) -> list[float]:
    """Scores on relations and counting after these trained tasks, each with its α."""
    model = ResponseModel()
    scores = []
    for name in ("relations", "counting"):
        score = model.untouched_score(name)
        for task, alpha in tasks:
            score = model.outside(score, name, task, alpha)
        scores.append(score)
    return scores


@pytest.mark.whole
def test_results_hold_the_scores_and_the_report_shows_them(tmp_path):
    result = run_into(tmp_path, SIMULATED)
    base, first = expected_scores(), expected_scores(("digits", 0.0))
    end = expected_scores(("digits", 0.0), ("words", 0.5))
    matrix = result.scores()
    assert list(matrix.columns) == ["digits", "words", "relations", "counting"]
    assert matrix[["relations", "counting"]].to_numpy() == pytest.approx(np.array([first, end]))

    results = result.results
    table = final_table(results, "test").set_index("strategy")
    assert table.loc["dgg", "retention"] == pytest.approx(np.subtract(end, base).mean())
    joint = expected_scores(("digits", 0.0), ("words", 0.0))
    assert table.loc["joint", "retention"] == pytest.approx(np.subtract(joint, base).mean())
    assert table.loc["finetune", "retention"] < table.loc["dgg", "retention"] < 0
    assert table.loc["dgg", "faa"] == pytest.approx(matrix.loc["words", ["digits", "words"]].mean())
    changes = changes_outside(results, "test").set_index(["label", "task"])
    assert changes.loc[("dgg", "counting"), "change"] == pytest.approx(end[1] - base[1])
    assert changes.loc[("joint", "relations"), "final"] == pytest.approx(joint[0])
    along = scores_along(results, "test").set_index(["label", "task", "stage"])["score"]
    assert along["dgg", "relations", 0] == pytest.approx(first[0])
    assert ("joint", "relations", 0) not in along.index

    page = result.report().read_text()
    assert "only evaluated" in page
    assert (tmp_path / "out/figures/retention.png").exists()
    assert len((tmp_path / "out/evaluate_only.csv").read_text().splitlines()) == 1 + 3 * 2
    assert "retention" in (tmp_path / "out/table.tex").read_text()


@pytest.mark.whole
def test_the_report_of_a_study_without_such_tasks_does_not_mention_them(tmp_path):
    lines = [line for line in SIMULATED.splitlines() if "evaluate_only" not in line]
    result = run_into(tmp_path, "\n".join(lines))
    page = result.report().read_text()
    assert retention_figure.draw(result.results) is None
    assert not (tmp_path / "out/evaluate_only.csv").exists()
    assert "retention" not in (tmp_path / "out/table.tex").read_text()
    assert "only evaluated" not in page
    assert final_table(result.results, "test")["retention"].isna().all()


@pytest.mark.parametrize(
    "search",
    [
        {"method": "grid"},
        {"method": "stagewise", "beam": 1},
        {"method": "random", "trials": 12, "prune_level": 0.05},
    ],
)
def test_a_search_for_retention_finds_the_most_guidance(search):
    study = study_of(("retention",), search=search, orders=Orders("cyclic"), protocol=Protocol(baselines=()))
    found = simulate_study(study).search
    best = found.winner()
    tried = [query.setting for query in found.proposed if found.asks_for_all(query)]
    assert best is not None
    # each task's α counts alike in sign: more guidance keeps more, so the winner is dominated by none tried
    assert not any(
        all(setting[path] >= value for path, value in best.items()) and dict(setting) != dict(best)
        for setting in tried
    )
    if search["method"] != "random":
        assert set(best.values()) == {1.0}


def test_a_constraint_on_retention_bounds_the_choice():
    def searched(*constraints):
        search = {"method": "grid", "constraints": constraints}
        study = study_of(("plasticity",), search=search, protocol=Protocol(baselines=()))
        return simulate_study(study).search

    free, bound = searched(), searched("retention >= -20 points")
    assert {setting for path, setting in free.winner().items()} == {0.0}
    assert np.isnan(free.answers[free.best()].scores[0].outside).all()  # nothing asked for it
    values = {
        number: (plasticity(evidence.scores[0]), retention(evidence.scores[0]))
        for number, evidence in bound.answers.items()
    }
    kept = {number: value for number, (value, change) in values.items() if change >= -0.2}
    assert 0 < len(kept) < len(values)
    assert values[bound.best()][0] == max(kept.values()) < max(value for value, _ in values.values())


RUN = ScoreMatrix(
    R=np.array([[0.8, NAN, NAN], [0.6, 0.5, NAN], [NAN] * 3]),
    sizes=np.ones(3),
    base=np.full(3, NAN),
    outside=np.array([[0.7], [0.6], [NAN]]),
    outside_base=np.array([0.75]),
)


def test_an_extrapolated_run_keeps_the_last_score_of_what_is_only_evaluated():
    ended = extrapolate_run(RUN, "abc", {"c": 0.4}, (0.5,), 0.0)
    assert ended.outside[:, 0].tolist() == [0.7, 0.6, 0.6]
    assert ended.R[2].tolist() == pytest.approx([0.3, 0.25, 0.4])


def test_a_run_that_is_continued_like_another_loses_the_same_share():
    other = replace(
        RUN,
        R=np.array([[0.8, NAN, NAN], [0.4, 0.5, NAN], [0.2, 0.5, 0.9]]),
        outside=np.array([[0.7], [0.4], [0.3]]),
    )
    ended = continue_like(RUN, other)
    assert ended.outside[:, 0].tolist() == pytest.approx([0.7, 0.6, 0.6 * 0.3 / 0.4])
    assert ended.R[2].tolist() == pytest.approx([0.3, 0.5, 0.9])


# -- other commands --------------------------------------------------------------------------------


def test_an_extended_study_keeps_such_tasks_and_trains_the_new_one_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SIMULATED)
    new = extend(tmp_path / "small.yaml", {"charts": "embedded"})
    study = load_study(new.file)
    assert study.evaluate_only == ("relations", "counting")
    assert study.task_names == ("digits", "words", "charts")
    assert study.all_orders == [("digits", "words", "charts")]
    assert study.file.content["tasks"][-1] == {
        "name": "charts",
        "reader": "embedded",
        "train": 12,
        "validation": 10,
        "test": 10,
    }
    with pytest.raises(StudyError, match="the study has a task of this name"):
        extend(tmp_path / "small.yaml", {"relations": "embedded"})


@pytest.mark.whole
def test_a_real_model_is_evaluated_on_it_after_each_stage(tmp_path):
    text = SIMULATED.replace("workers: {engine: simulated}\n", "training: {batch_size: 8}\n")
    text = text.replace("evaluate: seen}", "evaluate: seen, max_new_tokens: 2}")
    result = run_into(tmp_path, text.replace("baselines: [finetune, joint]", "baselines: []"))
    assert result.scores()[["relations", "counting"]].notna().all(axis=None)
    answers = result.predictions("relations")
    assert answers.groupby("stage").size().to_dict() == {0: 13, 1: 13}
    untouched = result.table[result.table["stage"] == -1]
    assert set(untouched["eval_task"]) == {"relations", "counting"}


@pytest.mark.whole
def test_such_a_task_that_is_added_later_trains_nothing_again(tmp_path):
    without = "\n".join(line for line in SIMULATED.splitlines() if "evaluate_only" not in line)
    before = run_into(tmp_path, without).results.costs
    after = run_into(tmp_path, SIMULATED)
    trained = after.results.costs[after.results.costs["trained_task"] != ""]
    assert set(trained["key"]) == set(before["key"])
    assert after.tally["trained"] == 0
    assert after.scores()[["relations", "counting"]].notna().all(axis=None)


def test_trackers_are_told_the_scores_on_it():
    result = simulate_study(study_of(search={"method": "random", "trials": 1}))
    runs = next(iter(result.final.values()))
    items = items_by_stage(runs, SPLITS, "seen")
    tracked = TrackedRun("final", "dgg", {}, runs, "test", items, reported=list(items)[:2])
    (run,) = runs
    expected = EXACT.untouched_score("g")
    for stage in run.stages[:2]:
        pull = runs.study.strategy.protection(stage.task, stage.earlier).pull if stage.earlier else 0.0
        expected = EXACT.outside(expected, "g", stage.task, pull)
    assert tracked.point(result.store)["score/g"] == pytest.approx(expected)
    assert "retention" not in tracked.metrics(result.store)  # the last stage is not reported
