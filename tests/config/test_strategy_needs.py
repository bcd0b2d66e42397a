"""A study in which a method cannot be trained is refused before anything starts."""

import pytest
from study_samples import faults

STUDY = """
name: needs
model: {name: embedded}
tasks:
  - {name: digits, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: charts, reader: embedded, train: 12, validation: 10, test: 10}
strategy: {name: STRATEGY}
adapter: {rank: 2, budget: stored}
protocol: {baselines: [finetune]}
"""
SLOTS = """
from dataclasses import dataclass
from dgg_ray.adapters.lora_slots import LoraSlots
from dgg_ray.plugin import Strategy


@dataclass(frozen=True)
class Slots(Strategy):
    def layout(self):
        return LoraSlots()
"""


def with_strategy(name: str, more: str = "") -> str:
    return STUDY.replace("STRATEGY", name) + more


@pytest.mark.parametrize("name", ["lwf", "ewc"])
def test_an_engine_that_a_strategy_cannot_use(load, name):
    found = faults(load, with_strategy(name, "workers: {engine: zero3}\n"))
    assert f"{name} needs one of the engines auto, zero1, zero2" in found["strategy.name"]
    assert "workers.engine zero3" in found["strategy.name"]


def test_an_engine_that_a_baseline_cannot_use(load):
    text = with_strategy("finetune", "workers: {engine: zero3}\n").replace("[finetune]", "[replay, a_gem]")
    assert list(faults(load, text)) == ["protocol.baselines[1]"]


@pytest.mark.parametrize(
    ("baseline", "path"),
    [
        ("{name: lwf, search: {strategy.strength: [0.1, 1]}, trials: 2}", "protocol.baselines[0]"),
        ("half: {strategy.buffer: 5}", "protocol.baselines[0].half"),
    ],
)
def test_tuned_baselines_and_variants_are_checked_as_strategies_are(load, baseline, path):
    protocol = f"{{old_data: false, baselines: [{baseline}]}}"
    text = with_strategy("l2sp", "workers: {engine: zero3}\n").replace("{baselines: [finetune]}", protocol)
    assert list(faults(load, text)) == [path]


def test_each_searched_strategy_and_the_largest_buffer_are_checked(load):
    search = "search: {space: {strategy.name: [l2sp, lwf], strategy.buffer: [0, 5]}, trials: 2}\n"
    text = with_strategy("l2sp", "workers: {engine: zero3}\n" + search)
    text = text.replace("{baselines", "{old_data: false, baselines")
    found = faults(load, text)
    assert "lwf needs one of the engines" in found["search.space.strategy.name"]
    assert "old_data: false forbids" in found["search.space"]


def test_a_missing_encoder_of_a_baseline_is_a_fault(load):
    text = with_strategy("finetune").replace(
        "[finetune]",
        "[{name: disco, search: {strategy.temperature: "
        "[0.1, 1]}, settings: {strategy.encoder: /nowhere}, trials: 2}]",
    )
    assert "no such folder" in faults(load, text)["protocol.baselines[0].encoder"]


@pytest.mark.parametrize("name", ["a_gem", "gem", "replay"])
def test_old_data_where_the_protocol_forbids_it(load, name):
    text = with_strategy(name).replace("{baselines", "{old_data: false, baselines")
    assert "which protocol.old_data: false forbids" in faults(load, text)["strategy.name"]


def test_a_method_without_old_data_is_allowed_where_it_is_forbidden(load):
    assert load(with_strategy("ewc").replace("{baselines", "{old_data: false, baselines"))


def test_a_budget_too_small_for_the_slots_of_all_tasks(load, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "too_small.py").write_text(SLOTS)
    found = faults(load, with_strategy("too_small:Slots"))
    assert list(found) == ["adapter.rank"]
    assert (
        "is too small for too_small:Slots over 3 tasks with adapter.budget stored, got 2"
        in found["adapter.rank"]
    )


def test_the_rank_of_a_slot_follows_the_budget(load, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "slot_rank.py").write_text(SLOTS)
    text = with_strategy("slot_rank:Slots").replace("rank: 2", "rank: 7")
    stored = load(text)
    trainable = load(text.replace("stored", "trainable"))
    for study, rank in ((stored, 2), (trainable, 7)):
        assert {stage.adapter.rank for run in study.runs for stage in run.stages} == {rank}
        assert {stage.adapter.scale for run in study.runs for stage in run.stages} == {2.0}
