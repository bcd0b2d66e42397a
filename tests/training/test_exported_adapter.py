"""What is exported of any strategy is, in another process, what was evaluated."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import exported_adapters
import pyarrow.parquet
import pytest
import torch
from exported_adapters import asked_examples, logits_of
from method_samples import ORDER, MethodWorld, make_learner, make_tasks
from safetensors.torch import load_file

from dgg_ray.core import plugins
from dgg_ray.core.interfaces import Adapter
from dgg_ray.core.stage import Evaluation, Stage, WorkItem
from dgg_ray.models.embedded import Embedded
from dgg_ray.training.exported_adapter import write_adapter

STRATEGIES = {name: plugins.find("strategies", name)() for name in plugins.names("strategies")}
STAGES = [(name, n) for name, s in STRATEGIES.items() for n in range(1 if s.simultaneous else 2)]
ADAPTER = Adapter(rank=12)  # which two, four and six experts can share
EVALUATIONS = tuple(Evaluation(name, "test", f"{name} test") for name in ORDER)

pytestmark = pytest.mark.whole


@dataclass
class Exported:
    """A stage as it was evaluated and exported."""

    form: str
    logits: torch.Tensor
    predictions: list[str]


def export(world: MethodWorld, stage: Stage, target: Path) -> Exported:
    """Evaluate a finished stage and export it."""
    runner = world.runner()
    runner.run(WorkItem(stage, EVALUATIONS))
    runner.load_finished(stage)
    examples = asked_examples(world.tasks)
    logits = logits_of(world.learner, examples, runner.router(stage)(examples))
    ((_, answers),) = world.store.stored_answers(stage, [e.key for e in EVALUATIONS])
    rows = pyarrow.parquet.read_table(answers / "predictions.parquet").to_pylist()
    opened = world.store.open(stage)
    assert opened
    target.mkdir(parents=True)
    form = write_adapter(opened, stage, Embedded(), world.store, target)
    return Exported(form, logits, [row["prediction"] for row in rows])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def exported(folder) -> dict[tuple[str, int], Exported]:
    """Every strategy's stages; afterwards another process has loaded the folders."""
    world = MethodWorld(
        make_learner(), make_tasks(), folder / "store", ADAPTER, fingerprint=Embedded().fingerprint()
    )
    stages: dict[tuple[str, int], Exported] = {}
    for name, strategy in STRATEGIES.items():
        for n, stage in enumerate(world.train(strategy)):
            stages[name, n] = export(world, stage, folder / "exported" / f"{name}_{n}")
    tests = Path(exported_adapters.__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, exported_adapters.__file__, str(folder)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True)
    return stages


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_another_process_has_the_logits_and_answers_that_were_evaluated(name, stage, exported, folder):
    wanted, found = exported[name, stage], json.loads((folder / f"{name}_{stage}.json").read_text())
    assert found == wanted.predictions
    logits = load_file(folder / f"{name}_{stage}.safetensors")["logits"]
    # Slots that became one LoRA are summed in another order.
    tolerance = 1e-4 if wanted.form == "concatenated" else 1e-6
    assert (logits - wanted.logits).abs().max() <= tolerance


def test_no_two_strategies_have_the_same_logits_after_two_tasks(exported):
    """So that what was compared depends on the method: only plain LoRAs trained alike agree."""
    own = {name: e.logits for (name, n), e in exported.items() if n and e.form == "own"}
    assert len(own) > 8
    for (one, a), (other, b) in combinations(own.items(), 2):
        assert not torch.allclose(a, b, atol=1e-2), (one, other)
