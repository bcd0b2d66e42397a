"""What has been recorded once and must not move: keys, ids, orders, draws, and tables to the byte.

A value that moves here means that finished stages are trained anew or that results change. Where that is
meant, `python tests/test_golden.py` records the values again, and the commit says why they moved.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mock_benchmarks as mock
import pandas as pd
import pyarrow
import pytest
from PIL import Image

from dgg_ray import Study, load_study, run_study
from dgg_ray.config import yaml_reader
from dgg_ray.core import environment, rng
from dgg_ray.core.orders import DESIGNS, design, held_out_orders
from dgg_ray.models.auto import Auto
from dgg_ray.models.llava_1_5 import Llava15
from dgg_ray.models.qwen2_5_vl import Qwen25VL
from dgg_ray.models.smolvlm import SmolVLM

FILE = Path(__file__).parent / "golden.json"
STUDIES = Path(__file__).parent.parent / "studies"
BENCHMARKS = {"ucit": mock.ucit, "vqav2": mock.vqav2}
TASKS = ("digits", "words", "shapes", "charts", "counting", "relations")
PURPOSES = (
    *("replay", "shuffle", "gate", "adapter", "dropout 0", "dropout 1", "validation", "limit train"),
    *("limit validation", "limit test", "order", "latin", "latin positions", "williams", "held out"),
    *("stagewise", "grid", "audit", "curves", "nature", "training", "time", "embedded/digits"),
    *("embedded/words", "sources", "examples"),
)
SIMULATED = {
    "per_task": """\
name: golden
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 40, validation: 20, test: 20}
  - {name: words, reader: embedded, train: 40, validation: 20, test: 20}
  - {name: shapes, reader: embedded, train: 40, validation: 20, test: 20}
strategy: {name: dgg, alpha: 0.1, buffer: 4}
orders: [[digits, words, shapes]]
seeds: [0]
search:
  method: stagewise
  space: {strategy.alpha: {per_task: [0, 0.1, 0.3, 1.0]}, strategy.buffer: [4, 10]}
  objective: faa
  beam: 2
  values_per_task: 3
  audit_fraction: 0.2
protocol: {held_out: 3, baselines: [runner_up, curve_optimum, constant, two_task, replay, finetune, joint,
    l2sp]}
simulation: {wait: 0.0}
workers: {engine: simulated}
""",
    "many_orders": """\
name: golden
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 40, validation: 20, test: 20}
  - {name: words, reader: embedded, train: 40, validation: 20, test: 20}
  - {name: charts, reader: embedded, train: 40, validation: 20, test: 20}
strategy: {name: dgg, alpha: 0.1, buffer: 4}
orders: {design: random, count: 4}
seeds: per_order
search:
  method: tpe
  trials: 12
  space: {strategy.alpha: [0, 0.1, 0.2, 0.4, 0.7, 1], strategy.buffer: [0, 4, 10], adapter.rank: [4, 8]}
  objective: faa
protocol: {final_seeds: [0, 1], baselines: [replay, finetune, joint]}
simulation: {wait: 0.0}
workers: {engine: simulated}
""",
}


def digest(thing: Any) -> str:
    return hashlib.sha256(json.dumps(thing).encode()).hexdigest()


# -- what is recorded ------------------------------------------------------------------------------


def study(path: Path, folder: Path) -> Study:
    """A study of the repository, on small data of the test's own where it wants a folder."""
    settings, _, _ = yaml_reader.read_yaml(path.read_text(encoding="utf-8"))
    if path.stem in BENCHMARKS:
        BENCHMARKS[path.stem](folder)
        settings["model"] = "embedded"
        settings.pop("adapter", None)  # its layers are those of the published model
    else:
        for number, task in enumerate(settings["tasks"]):
            for file in (task[split] for split in ("train", "test") if isinstance(task.get(split), str)):
                records(folder / file, folder / task["images"], number)
    return load_study(settings, folder)


def records(file: Path, images: Path, number: int) -> None:
    """Twenty-four questions about one colour each, in LLaVA's format."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(24):
        name = f"{number}-{file.stem}-{i}.png"
        Image.new("RGB", (8, 8), (10 * i, 20 * number, 99)).save(images / name)
        turns = [{"from": "human", "value": f"<image>\nWhich shade? {i}"}, {"from": "gpt", "value": f"s{i}"}]
        rows.append({"id": f"{file.stem}-{i}", "image": name, "conversations": turns})
    file.write_text(json.dumps(rows))


def keys_of(study: Study) -> dict[str, Any]:
    """Ids and keys: of the first run stage by stage, of all others together."""
    compared_settings = {
        name: [stage.key for run in baseline for stage in run.stages]
        for name, baseline in study.compared_settings().items()
    }
    evaluations = {
        f"{task} {split}": evaluation.key
        for (task, split), evaluation in sorted(study.runs.evaluations.items())
    }
    return {
        "id": study.id,
        "fingerprint": study.data.fingerprint,
        "blocks": digest([study.blocks, study.final_blocks]),
        "first run": [stage.key for stage in study.runs[0].stages],
        "runs": digest([[stage.key for stage in run.stages] for run in study.runs]),
        "compared": {name: digest(keys) for name, keys in compared_settings.items()},
        "evaluations": digest(evaluations),
        "untouched": study.runs.untouched_stage.key,
        "stages": len({key for keys in compared_settings.values() for key in keys}),
    }


def drawn() -> dict[str, Any]:
    """The first words of every purpose, and what is made of them."""
    made: dict[str, Any] = {p: [str(w) for w in rng.words(8, 3, "words", p, 2)] for p in PURPOSES}
    made["permutation"] = rng.permutation(12, 1, "digits", "shuffle", 4)
    made["uniform"] = rng.uniform(1, "digits", "gate", 4)
    made["integer"] = rng.integer(1, "", "adapter")
    made["below"] = rng.below(100, 1, "", "audit", 4)
    return made


def designs() -> dict[str, Any]:
    """Orders of every design, for three to six tasks; the first eight."""
    alike = [[1 - abs(i - j) / 6 for j in range(6)] for i in range(6)]
    return {
        f"{name} {count}": [
            "".join(str(TASKS.index(task)) for task in order)
            for order in design(
                name, TASKS[:count], 8, seed=5, given=[TASKS[:count][::-1]], similarity=alike[:count]
            )
        ]
        for name in DESIGNS
        for count in range(3, 7)
    } | {"held out": [" ".join(order) for order in held_out_orders(TASKS[:4], [TASKS[:4]], 3, 1)]}


def fingerprints(folder: Path) -> dict[str, str]:
    """Of a folder of weights, for each kind of model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llava", "architectures": ["None"]}')
    (folder / "model.safetensors").write_bytes(bytes(64))
    kinds = (Auto, Llava15, Qwen25VL, SmolVLM)
    return {kind.__name__: kind(path=str(folder)).fingerprint() for kind in kinds}


def table_of(text: str, folder: Path) -> Path:
    """The folder of a study's results, run in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(text)
    run_study(load_study(folder / "study.yaml"), folder / "out", local=True)
    return folder / "out"


def tables(out: Path) -> dict[str, str]:
    """Hashes of a study's table of scores. The bytes of Parquet are those of one version of its writer.

    Tables with statistics are not recorded: their last digits depend on the kind of processor.
    """
    return {
        "table.csv": hashlib.sha256((out / "table.csv").read_bytes()).hexdigest(),
        f"table.parquet of {pyarrow.__version__}": hashlib.sha256(
            (out / "table.parquet").read_bytes()
        ).hexdigest(),
    }


def recorded() -> Mapping[str, Any]:
    return json.loads(FILE.read_text())


# -- the tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_keys_and_ids_of_the_repositorys_studies_stay(path, tmp_path, monkeypatch):
    monkeypatch.setattr("dgg_ray.scorers._captions.missing", lambda java: "")
    assert keys_of(study(path, tmp_path)) == recorded()["studies"][path.stem]


def test_what_is_drawn_stays():
    assert drawn() == recorded()["draws"]


def test_the_orders_of_every_design_stay():
    assert designs() == recorded()["designs"]


def test_the_fingerprints_of_models_stay(tmp_path):
    assert fingerprints(tmp_path / "weights") == recorded()["fingerprints"]


@pytest.mark.whole
@pytest.mark.parametrize("name", SIMULATED)
def test_tables_of_simulated_studies_stay_to_the_byte(name, tmp_path):
    out = table_of(SIMULATED[name], tmp_path)
    rows = pd.read_csv(out / "table.csv").query("stage >= 0 and strategy != 'joint'")
    at = [order.split(" > ")[stage] for order, stage in zip(rows["order"], rows["stage"], strict=True)]
    assert at == list(rows["trained_task"])  # of runs that were left before their last task, too
    found, known = tables(out), recorded()["tables"][name]
    assert {k: found[k] for k in found.keys() & known.keys()} == {
        k: known[k] for k in found.keys() & known.keys()
    }


@pytest.mark.slow
def test_the_quickstarts_table_stays_to_the_byte(tmp_path):
    known = recorded()["quickstart"]
    if known["machine"] != machine():
        pytest.skip("recorded on another machine type, whose arithmetic may round otherwise")
    found = tables(table_of((STUDIES / "quickstart.yaml").read_text(), tmp_path))
    assert {k: found[k] for k in found.keys() & known.keys()} == {
        k: known[k] for k in found.keys() & known.keys()
    }


def machine() -> str:
    return environment.machine_type(environment.process_environment()).id


def record(folder: Path, quickstart: Path | None) -> None:
    known = {
        "studies": {p.stem: keys_of(study(p, folder / p.stem)) for p in sorted(STUDIES.glob("*.yaml"))},
        "draws": drawn(),
        "designs": designs(),
        "fingerprints": fingerprints(folder / "weights"),
        "tables": {name: tables(table_of(text, folder / name)) for name, text in SIMULATED.items()},
        "quickstart": {"machine": machine(), **tables(quickstart)}
        if quickstart
        else recorded()["quickstart"],
    }
    FILE.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    import tempfile

    from dgg_ray.scorers import _captions

    _captions.missing = lambda java: ""
    with tempfile.TemporaryDirectory() as made:
        record(Path(made), Path(sys.argv[1]) if len(sys.argv) > 1 else None)
