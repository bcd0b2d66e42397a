"""The methods on DDP and on ZeRO-2: two processes store what one process stores."""

from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import two_process_methods as methods
import two_processes as two
from method_samples import MethodWorld, make_learner
from safetensors.torch import load_file

ENGINES = ("ddp", "zero2") if find_spec("deepspeed") else ("ddp",)
TOLERANCE = 1e-5

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> MethodWorld:
    folder = tmp_path_factory.mktemp("one_process")
    methods.run(make_learner(), folder)
    return methods.world_of(folder)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> dict[str, MethodWorld]:
    """The stores of two processes, for each engine; started once."""
    folder = tmp_path_factory.mktemp("two_processes")
    two.start_two(methods.__file__, folder, ENGINES)
    return {engine: methods.world_of(folder / engine) for engine in ENGINES}


def second_stage(world: MethodWorld, method: str):
    return world.stages(methods.METHODS[method])[-1]


def by_file(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All values of each file, one after another."""
    files: dict[str, list[torch.Tensor]] = {}
    for name in sorted(tensors):
        files.setdefault(name.partition("/")[0], []).append(tensors[name].double().flatten())
    return {file: torch.cat(values) for file, values in files.items()}


def assert_near(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """The same tensors of the same shapes; each file's values at most `TOLERANCE` · their norm away."""
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in wanted.items()}
    values = by_file(found)
    for file, value in by_file(wanted).items():
        assert (values[file] - value).norm() <= TOLERANCE * value.norm(), file


def facts(world: MethodWorld) -> dict[str, torch.Tensor]:
    files = sorted(Path(world.folder).glob("facts/*/*.safetensors"))
    return {f"{file.stem}/{name}": t for file in files for name, t in load_file(file).items()}


def predictions(world: MethodWorld, method: str) -> list[dict]:
    ((_, folder),) = world.store.stored_answers(second_stage(world, method), [methods.FIRST.key])
    return pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist()


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_store_the_stage_of_one(engine, method, one_process, two_processes):
    world = two_processes[engine]
    wanted = one_process.files(second_stage(one_process, method))
    assert_near(world.files(second_stage(world, method)), wanted)
    assert predictions(world, method) == predictions(one_process, method)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_store_the_facts_of_one(engine, one_process, two_processes):
    assert_near(facts(two_processes[engine]), facts(one_process))


def test_the_state_of_octopus_is_whole(one_process, two_processes):
    for world in (one_process, *two_processes.values()):
        files = world.files(second_stage(world, "octopus"))
        weights = [t for name, t in files.items() if name.startswith("adapter_model.safetensors/")]
        state = [t for name, t in files.items() if name.startswith("strategy.safetensors/first.")]
        assert sorted(t.shape for t in state) == sorted(t.shape for t in weights)


def test_facts_of_stages_and_of_data_are_among_them(one_process):
    names = {name.rpartition("/")[2].partition(".")[0] for name in facts(one_process)}
    assert names >= {"fisher", "elements", "text"}


@pytest.mark.parametrize("method", ["a_gem", "ema", "ewc", "gem", "lwf"])
def test_a_method_moves_the_weights_by_more_than_the_tolerance(method, one_process):
    found, plain = (by_file(one_process.files(second_stage(one_process, m))) for m in (method, "finetune"))
    for file, values in plain.items():
        assert (found[file] - values).norm() > 100 * TOLERANCE * values.norm()
