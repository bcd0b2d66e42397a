"""A study file: what is accepted, and that every fault is said at once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import yaml
from study_samples import GOOD, faults

from dgg_ray import load_study
from dgg_ray.config import loader, saved_study, yaml_reader
from dgg_ray.config.json_schema import schema
from dgg_ray.core.errors import StudyError
from dgg_ray.models import embedded
from dgg_ray.search.optuna_search import OptunaSearch
from dgg_ray.storage.stage_store import open_store
from dgg_ray.strategies.dgg import DGG


def test_a_good_study_is_frozen_with_all_that_its_keys_need(load):
    study = load(GOOD)
    assert study.strategy == DGG(alpha=0.2, buffer=5)
    assert study.data.tasks["words"].sizes == {"train": 12, "validation": 10, "test": 10}
    assert len(study.data.fingerprint) == 64
    assert study.search.space["training.learning_rate"].low == 1e-4  # YAML 1.1 alone reads 1e-4 as text
    assert len(study.runs) == 2 * 2
    with pytest.raises(AttributeError):
        study.name = "other"  # type: ignore[misc]


def test_the_studies_in_the_repository_follow_the_schema():
    form = jsonschema.Draft202012Validator(schema())
    form.check_schema(form.schema)
    for file in Path("studies").glob("*.yaml"):
        text = file.read_text()
        form.validate(yaml_reader.read_yaml(text)[0])
        assert [word for word in ("Question", "Cost", "Found") if f"# {word}" not in text] == []


def test_the_schema_refuses_what_the_reader_refuses():
    form = schema()
    bad = yaml.safe_load(GOOD) | {"strategy": {"name": "dgg", "alhpa": 0.2}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, form)


def test_every_fault_is_told_at_once_with_line_rule_value_and_nearest_name(load):
    text = """\
name: small
model: embeded
tasks:
  - {name: digits, reader: embedded, trian: 12}
  - {name: wrods, reader: embedded}
  - {name: charts, reader: embedded}
strategy: {name: dgg, alpha: {charts: 1.5, chart: 0.1}, buffer: -2}
adapter: {rank: 0}
training: {epochs: many, warmup: 2}
orders: [[digits, wrods], [digits, wrods, charts]]
seeds: [1, 1]
sarch: {}
"""
    assert faults(load, text) == {
        "sarch": "line 12  sarch: no such setting. Did you mean 'search'?",
        "model.name": "line 2  model.name: must be one of auto, embedded, llava_1_5, qwen2_5_vl, smolvlm, "
        "or of your own: package.module:Class "
        "or the entry point of a package that is installed on this machine, "
        "got 'embeded'. Did you mean 'embedded'?",
        "tasks[0].trian": "line 4  tasks[0].trian: no such setting. Did you mean 'train'?",
        "tasks[1].name": "line 5  tasks[1].name: must be one of the embedded tasks digits, shapes, counting, "
        "relations, words, charts, got 'wrods'. Did you mean 'words'?",
        "strategy.alpha.charts": "line 7  strategy.alpha.charts: must be at most 1, got 1.5",
        "strategy.buffer": "line 7  strategy.buffer: must be at least 0, got -2",
        "adapter.rank": "line 8  adapter.rank: must be at least 1, got 0",
        "training.epochs": "line 9  training.epochs: must be a whole number, got 'many'",
        "training.warmup": "line 9  training.warmup: must be at most 1, got 2",
        "orders[0]": "line 10  orders[0]: must name each of digits, wrods, charts once, "
        "got ['digits', 'wrods']",
        "seeds": "line 11  seeds: must be different numbers, at least one, got [1, 1]",
    }


@pytest.mark.parametrize(
    ("old", "new", "path", "said"),
    [
        ("name: small\n", "", "name", "is required"),
        ("name: small\n", "name: a/b\n", "name", "it names a folder, got 'a/b'"),
        ("model: embedded\n", "", "model", "is required"),
        ("alpha: 0.2", "alpha: -0.1", "strategy.alpha", "must be at least 0, got -0.1"),
        ("alpha: 0.2", "alpha: [0.1]", "strategy.alpha", "must be a number or a mapping"),
        ("alpha: 0.2", "alpha: {digit: 0.1}", "strategy.alpha.digit", "Did you mean 'digits'?"),
        ("name: words", "name: digits", "tasks[1].name", "two tasks have this name"),
        ("name: dgg", "name: dg", "strategy.name", "Did you mean 'dgg'?"),
        ("reader: embedded", "reader: lava", "tasks[0].reader", "Did you mean 'llava'?"),
        ("count: 2", "count: 0", "orders.count", "must be at least 1, got 0"),
        ("design: random", "design: randon", "orders.design", "Did you mean 'random'?"),
        (
            "design: random, ",
            "",
            "orders.count",
            "is used by `random`, `cyclic`, `latin`, `williams`, `shared_",
        ),
        (
            "count: 2",
            "count: 7",
            "orders.count",
            "must be at most 6: 'random' has so many orders of 3 tasks, got",
        ),
        (
            "design: random, count: 2",
            "design: cyclic, count: 4",
            "orders.count",
            "has so many orders of 3 tasks; others have more: all 6, random 6, latin 6, williams 6, ",
        ),
        (
            "design: random, count: 2",
            "design: all, seed: 3",
            "orders.seed",
            "is used by `random`, `latin`, `williams` and `shared_prefix` alone, not by 'all', got 3",
        ),
        (
            "count: 2",
            "prefix_length: 1",
            "orders.prefix_length",
            "is used by `shared_prefix` alone, not by 'random', got 1",
        ),
        ("count: 2", "given: [[words, charts, digits]]", "orders.given", "is used by `given` alone"),
        (
            "design: random, count: 2",
            "design: shared_prefix, prefix_length: 3",
            "orders.prefix_length",
            "must be at most 1: a longer prefix of 3 tasks leaves no two suffixes, got 3",
        ),
        (
            "design: random, count: 2",
            "design: shared_prefix, suffixes: 3",
            "orders.suffixes",
            "must be at most 2, the orders of the tasks after a prefix of 1, got 3",
        ),
        (
            "strategy.alpha: {p",
            "strategy.alhpa: {p",
            "search.space.strategy.alhpa",
            "Did you mean 'strategy.alpha'?",
        ),
        (
            "training.learning_rate",
            "trainig.epochs",
            "search.space.trainig.epochs",
            "Did you mean 'training'?",
        ),
        (
            "[0, 0.5]",
            "[0, 1.5]",
            "search.space.strategy.alpha",
            "must be at most 1 (strategy.alpha.digits), got 1.5",
        ),
        ("low: 1e-4", "low: 1e-1", "search.space.training.learning_rate", "needs low < high"),
        ("low: 1e-4", "low: 0", "search.space.training.learning_rate", "log needs low > 0"),
        (
            "trials: 4",
            "trials: 4\n  method: grid",
            "search.space.training.learning_rate",
            "method `grid` needs a list",
        ),
        ("trials: 4", "objective: fa", "search.objective", "Did you mean 'faa'?"),
        ("trials: 4", "objective: forgetting", "search.objective", "falls as final scores rise"),
        (
            "trials: 4",
            "objective: forward_transfer",
            "search.objective",
            "has no value on evaluations of the tasks",
        ),
        ("trials: 4", "seed: -1", "search.seed", "must be at least 0, got -1"),
        (
            "design: random, count: 2",
            "given: [[words, charts, digits], [words, charts, digits]]",
            "orders.given",
            "different",
        ),
        ("orders: {design: random, count: 2}", "orders: []", "orders", "needs at least 1 order"),
        (
            "seeds: [0, 3]",
            "training: {learning_rate: .inf}",
            "training.learning_rate",
            "must be a finite number",
        ),
        (
            "seeds: [0, 3]",
            "protocol: {final_seeds: [2, 2]}",
            "protocol.final_seeds",
            "must be different numbers",
        ),
        ("seeds: [0, 3]", "seeds: [0, x]", "seeds[1]", "must be a whole number, got 'x'"),
        ("seeds: [0, 3]", "seeds: [0]\nseeds: [1]", "seeds", "is given twice"),
        ("train: 12", "train: 3", "tasks[0].train", "must be at least"),
        ("buffer: 5", "buffer: 05", "strategy.buffer", "line 7  strategy.buffer: begins with 0"),
        ("[0, 3]", "[1:30]", "seeds[0]", "holds a colon"),
        ("name: words", "name: no", "tasks[1].name", "put it in quotes, got no, which is read as false"),
        ("name: words, ", "", "tasks[1].name", "is required"),
        ("reader: embedded", "reader: []", "tasks[0].reader", "must be text, one of embedded, llava, got []"),
        ("model: embedded", "model: {name: []}", "model.name", "must be text, one of auto, embedded"),
        ("name: dgg", "name: {}", "strategy.name", "must be text, one of a_gem"),
        (
            "{design: random, count: 2}",
            "[[digits, no, charts]]",
            "orders[0][1]",
            "must be text: put it in quotes, got no, which is read as false",
        ),
        ("alpha: 0.2", "alpha: 0,2", "strategy.alpha", "written with a point, not with a comma, got 0,2"),
        ("[0, 3]", "[100000000000000000000]", "seeds[0]", "whole number of 63 bits"),
        ("[0, 3]", "[9007199254740993]", "seeds[0]", "must lie between -2^53 and 2^53"),
        ("count: 2", "count: 1000000000000", "orders.count", "must be at most 10000"),
        ("trials: 4", "trials: 4\noutput: {store: ~nosuchuser/x}", "output.store", "there is no such user"),
        (
            "seeds: [0, 3]",
            "protocol: {baselines: [replya]}",
            "protocol.baselines[0]",
            "Did you mean 'replay'?",
        ),
        (
            "seeds: [0, 3]",
            "protocol: {baselines: [{ungated: {strategy.gat: always}}]}",
            "protocol.baselines[0].ungated.strategy.gat",
            "Did you mean 'strategy.gate'?",
        ),
        (
            "seeds: [0, 3]",
            "protocol: {baselines: [{strong: {strategy.alpha: 3}}]}",
            "protocol.baselines[0].strong.strategy.alpha",
            "must be at most 1 (strategy.alpha), got 3",
        ),
        (
            "seeds: [0, 3]",
            "protocol: {baselines: [joint, {joint: {strategy.alpha: 1}}]}",
            "protocol.baselines[1]",
            "needs a label of its own",
        ),
        ("seeds: [0, 3]", "workers: {engine: zero4}", "workers.engine", "Did you mean 'zero"),
        ("seeds: [0, 3]", "workers: {offload: true}", "workers.offload", "needs one of the engines"),
        (
            "seeds: [0, 3]",
            "workers: {engine: zero2}\ntraining: {projector_learning_rate: 2e-5}",
            "training.projector_learning_rate",
            "a second rate is not possible with zero2",
        ),
    ],
)
def test_a_fault_names_its_path_its_rule_and_its_value(load, old, new, path, said):
    assert old in GOOD
    found = faults(load, GOOD.replace(old, new, 1))
    assert list(found) == [path]
    assert said in found[path]


def test_an_engine_whose_package_is_missing_says_how_to_get_it(load, monkeypatch):
    monkeypatch.setattr("dgg_ray.config.validation.find_spec", lambda name: None)
    found = faults(load, GOOD + "workers: {engine: zero1}\n")
    assert "pip install 'dgg_ray[deepspeed]'" in found["workers.engine"]


@pytest.mark.parametrize(
    ("settings", "more", "said"),
    [
        ("", "training: {projector_learning_rate: 1e-5}", "needs training.precision bf16, or model.dtype"),
        (
            "",
            "protocol: {baselines: [{p: {training.projector_learning_rate: 1e-5}}]}",
            "needs training.precision bf16",
        ),
        (
            ", dtype: float32",
            "workers: {engine: zero2}\n"
            "protocol: {baselines: [{p: {training.projector_learning_rate: 1e-5}}]}",
            "a second rate is not possible with zero2",
        ),
        (
            ", four_bit: true",
            "training: {projector_learning_rate: 1e-5, precision: bf16}\nworkers: {gpus: 1}",
            "weights of 4 bits cannot be trained",
        ),
    ],
)
def test_where_a_projector_cannot_be_trained(load, tmp_path, monkeypatch, settings, more, said):
    shutil.copytree(embedded.FOLDER, tmp_path / "llava")
    monkeypatch.setattr("dgg_ray.models._pretrained.find_spec", lambda name: object())
    model = f"model: {{name: llava_1_5, path: {tmp_path / 'llava'}{settings}}}"
    found = faults(load, GOOD.replace("model: embedded", model) + more + "\n")
    assert list(found) == ["training.projector_learning_rate"]
    assert said in found["training.projector_learning_rate"]


def test_named_layers_of_a_model_that_is_not_there_are_one_fault(load):
    text = GOOD.replace("model: embedded", "model: {name: llava_1_5, path: /no/such/folder}")
    assert list(faults(load, text + "adapter: {targets: [q_proj]}\n")) == ["model.path"]


def test_layers_that_the_model_has_not_are_told_before_anything_starts(load):
    found = faults(load, GOOD + "adapter: {targets: [q_proj, qproj]}\n")
    assert "got 'qproj'. Did you mean 'q_proj'?" in found["adapter.targets"]
    assert "down_proj, gate_proj, k_proj" in found["adapter.targets"]
    assert load(GOOD + "adapter: {targets: [q_proj, v_proj]}\n").adapter.targets == ("q_proj", "v_proj")


def test_weights_of_four_bits_cannot_be_cut_in_pieces(load, tmp_path, monkeypatch):
    shutil.copytree(embedded.FOLDER, tmp_path / "llava")
    monkeypatch.setattr("dgg_ray.models._pretrained.find_spec", lambda name: object())
    text = GOOD.replace(
        "model: embedded", f"model: {{name: llava_1_5, path: {tmp_path / 'llava'}, four_bit: true}}"
    )
    assert "use zero2" in faults(load, text + "workers: {engine: zero3, gpus: 1}\n")["model.four_bit"]
    assert "needs a GPU" in faults(load, text)["model.four_bit"]
    assert load(text + "workers: {engine: zero2, gpus: 1}\n").workers.zero == 2


def test_compared_settings_are_baselines_and_variants_on_the_final_blocks(load):
    baselines = "[finetune, replay, {ungated: {strategy.gate: always}}, {unscaled: {strategy.scale: false}}]"
    study = load(GOOD + f"protocol: {{baselines: {baselines}, final_seeds: [7]}}\n")
    found = study.compared_settings()
    assert list(found) == ["dgg", "finetune", "replay", "ungated", "unscaled"]
    assert found["ungated"].study.strategy == replace(study.strategy, gate="always")
    assert found["unscaled"].study.strategy == replace(study.strategy, scale=False)
    assert found["replay"].study.strategy.buffer == 5
    assert {seed for s in found.values() for _, seed in s.blocks} == {7}
    assert len({s.id for s in found.values()}) == 5


def test_a_relative_store_is_kept_from_where_the_study_was_run(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load(GOOD + "output: {store: shared}\n")
    saved_study.save_study(study, tmp_path / "out")
    monkeypatch.chdir("/")
    assert saved_study.require_saved_study(tmp_path / "out").store(tmp_path / "out") == open_store(
        tmp_path / "shared"
    )


@pytest.mark.parametrize("design", ["shared_prefix", "extreme"])
def test_a_design_that_two_tasks_have_not_names_those_that_they_have(load, design):
    text = "\n".join(line for line in GOOD.splitlines() if "charts" not in line)
    found = faults(load, text.replace("design: random, count: 2", f"design: {design}"))
    assert list(found) == ["orders.design"]
    assert "of 2 tasks; there are given, all, random, cyclic, latin, williams, got" in found["orders.design"]


def test_a_design_by_similarity_is_saved_with_the_study(load, tmp_path, monkeypatch):
    assert load(GOOD).data.similarity == ()
    study = load(GOOD.replace("design: random, count: 2", "design: extreme"))
    assert len(study.data.similarity) == 3
    first, back, *_ = study.all_orders
    assert first == back[::-1]
    assert len(set(study.all_orders)) == 4
    saved_study.save_study(study, tmp_path / "out")
    monkeypatch.setattr(type(study.readers["words"]), "read", lambda *_: pytest.fail("the data were read"))
    again = saved_study.require_saved_study(tmp_path / "out")
    assert (again.data.similarity, again.all_orders) == (study.data.similarity, study.all_orders)


def test_one_task_is_too_few(load):
    text = "\n".join(line for line in GOOD.splitlines() if "words" not in line and "charts" not in line)
    assert "needs at least 2 tasks, has 1" in faults(load, text)["tasks"]


def test_a_file_that_is_no_yaml_says_where(load):
    assert "line 3" in faults(load, "name: x\ntasks: [a,\nb: }\n")["study"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty file"),
        ("- 1", "[1]"),
        ("a: 1\n\tb: 2", "line 2"),
        ("a: \x07", "YAML"),
    ],
)
def test_a_file_that_is_no_study_is_one_fault(load, text, said):
    assert said in faults(load, text)["study"]


def test_a_missing_study_names_the_nearest_file(tmp_path):
    (tmp_path / "quickstart.yaml").touch()
    with pytest.raises(StudyError, match=r"Did you mean 'quickstart.yaml'"):
        load_study(tmp_path / "quikstart.yaml")


def test_faults_of_data_are_told_beside_those_of_the_file(load, tmp_path):
    (tmp_path / "train.json").write_text('[{"id": "1", "conversations"')
    (tmp_path / "test.json").write_text("[]")
    entry = "{name: own, reader: llava, train: train.json, test: test.json}"
    found = faults(
        load,
        GOOD.replace("  - {name: digits", f"  - {entry}\n  - {{name: digits").replace("count: 2", "count: 0"),
    )
    assert "orders.count" in found
    own = {path: said for path, said in found.items() if path.startswith("tasks[0].")}
    assert any("train.json" in said and "line 1" in said for said in own.values())
    assert any("test.json" in said for said in own.values())


def test_relative_paths_start_from_the_data_folder(tmp_path, monkeypatch):
    (tmp_path / "study.yaml").write_text(
        "name: x\nmodel: embedded\nstrategy: finetune\ntasks:\n"
        "  - {name: a, reader: llava, train: a.json, test: t.json}\n"
        "  - {name: b, reader: llava, train: /abs/b.json, test: t.json}\n"
    )
    raw = loader.parse_file(tmp_path / "study.yaml")[0]
    study, _ = loader.build_study(raw, "/data")
    assert study.readers["a"].train == Path("/data/a.json")
    assert study.readers["b"].train == Path("/abs/b.json")
    monkeypatch.setenv("DGG_RAY_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(StudyError, match="elsewhere"):
        load_study(tmp_path / "study.yaml")


def test_a_study_can_be_read_back_without_its_data(load, tmp_path, monkeypatch):
    study = load(GOOD)
    saved_study.save_study(study, tmp_path / "out")
    monkeypatch.setattr(type(study.readers["words"]), "read", lambda *_: pytest.fail("the data were read"))
    again = saved_study.load_saved_study(tmp_path / "out")
    assert [stage.key for run in again.runs for stage in run.stages] == [
        stage.key for run in study.runs for stage in run.stages
    ]
    assert saved_study.load_saved_study(tmp_path / "nothing") is None


def test_a_range_between_whole_numbers_is_searched_in_whole_numbers(load):
    study = load(
        GOOD.replace("strategy.alpha: {per_task: [0, 0.5]}", "adapter.rank: {low: 2, high: 32, log: true}")
    )
    ranks = {OptunaSearch(study).ask()[1].setting["adapter.rank"] for _ in range(3)}
    assert all(type(rank) is int and 2 <= rank <= 32 for rank in ranks)


def test_a_task_counts_under_its_name_wherever_it_stands(load):
    study = load(GOOD)
    at = study.at({"strategy.alpha.words": 0.5})
    alphas = {stage.task: stage.strategy.alpha_for(stage.task) for run in at.runs for stage in run.stages}
    assert alphas == {"digits": 0.2, "charts": 0.2, "words": 0.5}


def test_the_schema_is_json():
    assert json.loads(json.dumps(schema()))["required"] == ["name", "model", "tasks", "strategy"]


def test_a_password_in_a_stores_url_is_a_fault_that_does_not_print_it(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: x\nmodel: embedded\nstrategy: dgg\noutput: {store: 's3://me:secret@bucket/a'}\n"
        "tasks: [{name: digits, reader: embedded}, {name: words, reader: embedded}]\n"
    )
    with pytest.raises(StudyError, match=r"output.store: .*got 's3://…@bucket/a'") as caught:
        load_study(file)
    assert "secret" not in str(caught.value)


MANY = "".join(f"  - {{name: t{i}, reader: llava, train: a.json, test: b.json}}\n" for i in range(12))


@pytest.mark.parametrize(("tasks", "said"), [(12, "479,001,600"), (8, "40,320")])
def test_all_orders_of_many_tasks_are_one_fault_that_says_how_many(load, tasks, said):
    text = f"name: many\nmodel: embedded\nstrategy: dgg\ntasks:\n{MANY}"
    found = faults(load, "\n".join([*text.splitlines()[: 4 + tasks], "orders: {design: all}"]))
    assert f"all: {tasks} tasks have {said} orders, and a study has at most 10,000; give a" in found["orders"]


def test_a_study_is_read_as_utf8_whatever_the_locale_and_with_a_mark_as_utf16(tmp_path):
    text = GOOD + "question: α – β?\n"
    for name, encoding in (("a", "utf-8"), ("b", "utf-8-sig"), ("c", "utf-16")):
        (tmp_path / f"{name}.yaml").write_bytes(text.encode(encoding))
        assert load_study(tmp_path / f"{name}.yaml").question == "α – β?"
    (tmp_path / "d.yaml").write_bytes(text.encode("cp1252", "replace"))
    with pytest.raises(StudyError, match="utf-8"):
        load_study(tmp_path / "d.yaml")


@pytest.mark.parametrize("given", ["", "  method: auto\n"])
def test_a_saved_study_keeps_the_search_method_that_auto_stood_for(load, tmp_path, given):
    study = load(GOOD.replace("  trials: 4\n", f"  trials: 4\n{given}"))
    assert study.search.method == "stage_model"
    saved_study.save_study(study, tmp_path)
    assert saved_study.load_saved_study(tmp_path).search == study.search
    file = tmp_path / saved_study.SAVED_STUDY
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "search_method": "random"}))  # as if another version had chosen it
    assert saved_study.load_saved_study(tmp_path).search.method == "random"
    del content["search_method"]  # written before there was a choice
    file.write_text(json.dumps(content))
    assert saved_study.load_saved_study(tmp_path).search.method == "tpe"
