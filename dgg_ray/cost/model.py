"""The cost of a study, predicted from what a store has measured: stages, evaluations and profiles.

    kind          counted in           amount    rate by          measured in
    train         examples × epochs    seconds   task and rank    a stage's record, a profile
    setup         stages               seconds   rank             a stage's record, a profile
    answer        answers              seconds   task and rank    the scores of an evaluation, a profile
    adapter       stages               bytes     rank             a stage's record, a profile
    predictions   answers              bytes     task             an evaluation's record

A profile is a short run that times a few training steps and answers of a task. Module rates.py fits the
rates and their uncertainty. They hold for the machines on which they were measured: the model predicts
neither another GPU type nor the start-up of a worker group.

Wall time is the sum of the costs on the critical path (makespan.py), with the interval of that sum. The
interval holds for the work items that are predicted, not for what a sampler will propose. Where stages
scatter by 10 %, it holds in about 95 of 100 cases. It holds in more than 90 where all worker groups wait
for the last of them, which ends later than each one's mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from dgg_ray.core.interfaces import Adapter
from dgg_ray.core.stage import (
    PROFILE_ANSWERS,
    PROFILE_ROUNDS,
    PROFILE_STEPS,
    Evaluation,
    Stage,
    WorkItem,
)
from dgg_ray.cost.makespan import Node, WorkRequest, build_dag, critical_path
from dgg_ray.cost.rates import (
    TASK_RANGE,
    Estimate,
    Measurement,
    Part,
    RateModel,
    combine,
    format_amount,
)
from dgg_ray.storage.stage_store import StageStore

if TYPE_CHECKING:
    from dgg_ray.config.study import Study, Workers

RANK = "adapter.rank"
TRAINING_KINDS = ("train", "setup", "adapter")
PROFILE_KINDS = ("setup", "train", "answer")
DISK_KINDS = frozenset({"adapter", "predictions"})
PROFILE = "profile "  # the prefix of a profile's key among those of stages
UNMEASURED = "unknown: nothing was measured on such workers yet; run `dgg-ray profile STUDY`"
Record: TypeAlias = Mapping[str, Any]


class StoredRecords(NamedTuple):
    """Records of a stage and its evaluations, or of a profile.

    key: the stage's, or PROFILE and a number.
    """

    key: str
    records: Sequence[Record]


@dataclass(frozen=True)
class Cost:
    """The predicted cost of work on these workers.

    seconds: of one worker group that does all of it. wall: seconds from start to end, on all worker groups.
    bytes: on disk.
    """

    workers: Workers
    seconds: Estimate
    wall: Estimate
    bytes: Estimate

    def amounts(self) -> dict[str, Estimate]:
        """Return the amounts by unit; GPU-hours and money where the workers have them."""
        amounts = {unit: self.seconds.scaled(rate) for unit, rate in unit_rates(self.workers).items()}
        return amounts | {"wall hours": self.wall.scaled(1 / 3600), "GB on disk": self.bytes.scaled(1e-9)}


def unit_rates(workers: Workers) -> dict[str, float]:
    """Return how much of each unit a second of a worker group costs."""
    hours = workers.group_size / 3600
    rates = {"worker-hours": hours}
    if workers.gpus:
        rates["GPU-hours"] = hours * workers.gpus
    if workers.price_per_hour:
        rates["money"] = hours * workers.price_per_hour
    return rates


# -- measurements ----------------------------------------------------------------------------------


class CostModel:
    """A store's measurements for one study, and what the study has spent; it grows as stages finish.

    Only measurements on the same base model and the same `Workers.setup` count.

    spent: seconds of a worker group by stage or profile, for this study's own work; work of other studies
        costs it nothing.
    longest_profile: the most seconds that a profile of any study took, by task.
    evaluated: keys of the stored evaluations by stage key, of every stored stage.
    """

    def __init__(self, study: Study, store: StageStore) -> None:
        self.workers, self.store, self.fingerprint = study.workers, store, study.data.fingerprint
        self.study, self.setup = study.name, study.workers.setup
        self.sizes = {name: dict(data.sizes) for name, data in study.data.tasks.items()}
        self.measurements: dict[str, list[Measurement]] = {}
        self.spent: dict[str, float] = {}
        self.longest_profile: dict[str, float] = {}
        self.evaluated: dict[str, set[str]] = {}
        self._parts: dict[tuple[Any, ...], Part] = {}
        self._rates: dict[str, RateModel] | None = None
        self.read()

    def read(self) -> None:
        """Take in everything that the store holds."""
        self.add(self.read_profiles())
        self.add(StoredRecords(stage["key"], (stage, *others)) for stage, others in self.store.finished())

    def read_item(self, item: WorkItem) -> list[StoredRecords]:
        """Read the records of an item that was just done; changes nothing, so any thread may call it."""
        if item.profile:
            return list(self.read_profiles())
        record = self.store.record(item.stage)
        if not record:
            return []
        return [StoredRecords(item.stage.key, (record, *self.store.evaluation_records(item.stage.key)))]

    def read_profiles(self) -> Iterator[StoredRecords]:
        for number, profile in enumerate(self.store.profiles()):
            yield StoredRecords(f"{PROFILE}{number}", (profile,))

    def add(self, stored: Iterable[StoredRecords]) -> None:
        """Take in records of stages and profiles; records that are known already are replaced."""
        for key, records in stored:
            is_profile = key.startswith(PROFILE)
            if not is_profile:
                self.evaluated[key] = {
                    entry["evaluation"] for record in records[1:] for entry in record["scores"]
                }
            own = [record for record in records if record.get("study") == self.study]
            self.spent[key] = sum(seconds_of(record) for record in own)
            meaning = records[0]["meaning"]
            tasks = {name for name, _ in meaning["learns"]}
            if meaning["model"] == self.fingerprint and tasks <= self.sizes.keys():
                measure = self.measure_profile if is_profile else self.measure_stage
                self.measurements[key] = [m for m in measure(*records) if m.amount > 0 and self.knows(m.part)]
            self._rates = None

    def knows(self, part: Part) -> bool:
        return part.counts.keys() <= {"", *self.sizes}

    def measure_stage(self, stage: Record, *evaluations: Record) -> Iterator[Measurement]:
        """Measure a stage and its evaluations, as far as they were done on such workers."""
        if stage.get("workers") == self.setup:
            cost, parts = (
                stage["cost"],
                self.training_parts(stage["meaning"], stage.get("replayed", {}), stage.get("step_cost", 1.0)),
            )
            if parts:
                amounts = (cost["seconds"], cost["begin_seconds"], stage["bytes"])
                yield from map(Measurement, parts, amounts)
        rank = stage["meaning"].get("adapter", {}).get("rank", Adapter().rank)
        for record in evaluations:
            if record.get("workers") != self.setup:
                continue
            counts: Counter[str] = Counter()
            for entry in record["scores"]:
                yield Measurement(Part("answer", {entry["task"]: entry["n"]}, rank), entry["seconds"])
                counts[entry["task"]] += entry["n"]
            yield Measurement(Part("predictions", counts, rank), record["bytes"])

    def measure_profile(self, record: Record) -> Iterator[Measurement]:
        """Measure a profile, if it was taken on such workers."""
        if record["workers"] != self.setup:
            return
        ((task, _),) = record["meaning"]["learns"]
        self.longest_profile[task] = max(seconds_of(record), self.longest_profile.get(task, 0.0))
        rank = record["meaning"]["adapter"]["rank"]
        for kind in PROFILE_KINDS:
            counted = "" if kind == "setup" else task
            for timing in record[kind]:
                yield Measurement(Part(kind, {counted: timing["n"]}, rank), timing["seconds"])
        yield Measurement(Part("adapter", {"": 1.0}, rank), record["bytes"])

    @property
    def rates(self) -> dict[str, RateModel]:
        """The fitted rates by kind of part, of the kinds that were measured."""
        if self._rates is None:
            by_kind: dict[str, list[Measurement]] = {}
            for measurement in chain.from_iterable(self.measurements.values()):
                by_kind.setdefault(measurement.part.kind, []).append(measurement)
            self._rates = {
                kind: RateModel(["", *self.sizes], same_kind) for kind, same_kind in by_kind.items()
            }
        return self._rates

    @property
    def timed_tasks(self) -> set[str]:
        """Tasks of which training was measured."""
        measurements = chain.from_iterable(self.measurements.values())
        parts = (part for part, _ in measurements if part.kind == "train")
        return {name for part in parts for name in part.counts}

    # -- predictions -------------------------------------------------------------------------------

    def training_parts(self, meaning: Record, replayed: Mapping[str, int], step_cost: float) -> list[Part]:
        """Return the parts of training a stage, of TRAINING_KINDS; none for the untouched model.

        replayed: number of examples of each earlier task that the stage trains on.
        step_cost: of a step, in units of plain fine-tuning's; an example counts as so many.
        """
        if not meaning["learns"]:
            return []
        rank, epochs = meaning["adapter"]["rank"], meaning["training"]["epochs"]
        counts = {name: epochs * self.sizes[name]["train"] for name, _ in meaning["learns"]}
        counts |= {name: epochs * count for name, count in replayed.items() if count}
        counts = {name: step_cost * count for name, count in counts.items()}
        return [self.part(kind, counts if kind == "train" else {"": 1.0}, rank) for kind in TRAINING_KINDS]

    def part(self, kind: str, counts: Mapping[str, float], rank: int) -> Part:
        """Return one object for equal contents: there are few contents, and very many stages."""
        return self._parts.setdefault((kind, rank, *counts.items()), Part(kind, counts, rank))

    def parts(self, stage: Stage, trains: bool, evaluations: Iterable[Evaluation]) -> list[Part]:
        """Return the parts of a stage's evaluations, and of its training if it is trained."""
        parts: list[Part] = []
        if trains:
            train_sizes = {name: sizes["train"] for name, sizes in self.sizes.items()}
            parts = self.training_parts(stage.meaning, stage.replayed_examples(train_sizes), stage.step_cost)
        for evaluation in evaluations:
            counts = {evaluation.task: float(self.sizes[evaluation.task][evaluation.split])}
            parts += [self.part(kind, counts, stage.adapter.rank) for kind in ("answer", "predictions")]
        return parts

    def remaining(self, requests: Iterable[WorkRequest]) -> list[Node] | None:
        """Return the work that is left; None where a kind of it was never measured."""
        measured = self.rates.keys() | DISK_KINDS  # a profile stores no predictions
        nodes: list[Node] = []
        for node in build_dag(requests, self.evaluated, self.parts):
            if any(part.kind not in measured for part in node.cost):
                return None
            nodes.append(node)
        return nodes

    def sum(self, parts: Iterable[Part], disk: bool = False) -> Estimate:
        """Estimate the seconds that the parts take one after another, or their bytes on disk."""
        by_kind: dict[str, list[Part]] = {}
        for part in parts:
            if (part.kind in DISK_KINDS) == disk and part.kind in self.rates:
                by_kind.setdefault(part.kind, []).append(part)
        return combine([self.rates[kind].sum(same_kind) for kind, same_kind in by_kind.items()])

    def seconds(self, work_items: Iterable[WorkItem]) -> Estimate | None:
        """Estimate the seconds of the items that are left, one after another; None where not measured."""
        nodes = self.remaining([WorkRequest(work_items)])
        return None if nodes is None else self.sum(part for node in nodes for part in node.cost)

    def profile_seconds(self, item: WorkItem) -> float | None:
        """Bound the seconds of a profile, by the rates and the longest profile; None where not measured.

        The interval of a task that was never timed is wide; TASK_RANGE limits its effect here.
        """
        (task,), rank = item.stage.trained_tasks, item.stage.adapter.rank
        examples = PROFILE_STEPS * item.stage.training.batch_size
        answers = sum(min(self.sizes[e.task][e.split], PROFILE_ANSWERS) for e in item.evaluations)
        counts = {"setup": {"": 1.0}, "train": {task: examples}, "answer": {task: answers}}
        if not counts.keys() <= self.rates.keys():
            return None
        one_round = [self.part(kind, count, rank) for kind, count in counts.items()]
        estimate = self.sum(one_round * (1 + PROFILE_ROUNDS))
        return max(min(estimate.high, estimate.mean * TASK_RANGE), *self.longest_profile.values(), 0.0)

    def predict(self, requests: Iterable[WorkRequest]) -> Cost | None:
        """Predict the cost of the requested work that is left; None where it was not measured."""
        nodes = self.remaining(requests)
        if nodes is None:
            return None
        parts = [(i, part) for i, node in enumerate(nodes) for part in node.cost]
        means = np.zeros(len(nodes))
        for kind in self.rates.keys() - DISK_KINDS:
            if same_kind := [(i, part) for i, part in parts if part.kind == kind]:
                amounts = self.rates[kind].means([part for _, part in same_kind])
                np.add.at(means, [i for i, _ in same_kind], amounts)
        path = critical_path([node.predecessors for node in nodes], means.tolist(), self.workers.groups)
        wall = self.sum(part for i in path for part in nodes[i].cost)
        every = [part for _, part in parts]
        return Cost(self.workers, self.sum(every), wall, self.sum(every, disk=True))

    def forecast(self, requests: Iterable[WorkRequest]) -> CostForecast:
        return CostForecast(self.predict(requests), sum(self.spent.values()), self.workers)


def seconds_of(record: Record) -> float:
    """Return the seconds that a stage, a profile or an evaluation took."""
    cost = record.get("cost", {})
    answers = sum(entry["seconds"] for entry in record.get("scores", ()))
    return cost.get("seconds", 0.0) + cost.get("begin_seconds", 0.0) + answers


@dataclass(frozen=True)
class CostForecast:
    """The spending of a study, and the predicted cost of the rest.

    remaining: None where nothing was measured. spent: seconds of a worker group.
    """

    remaining: Cost | None
    spent: float
    workers: Workers

    @property
    def unit(self) -> str:
        """The unit in which the workers' owner counts: money where there is a price, else hours."""
        return list(unit_rates(self.workers))[-1]

    def total(self, unit: str) -> Estimate | None:
        """The predicted spending of the study at its end; None where nothing was measured."""
        if self.remaining is None:
            return None
        spent = self.spent * unit_rates(self.workers)[unit]
        left = self.remaining.amounts()[unit]
        return Estimate(*(spent + amount for amount in left))

    def as_json(self) -> dict[str, Any]:
        spent = {unit: self.spent * rate for unit, rate in unit_rates(self.workers).items()}
        if self.remaining is None:
            return {"remaining": None, "spent": spent}
        amounts = {unit: amount._asdict() for unit, amount in self.remaining.amounts().items()}
        return {"remaining": amounts, "spent": spent}

    def rows(self) -> list[tuple[str, str]]:
        """Return the forecast as labels with values."""
        amounts = self.remaining.amounts().items() if self.remaining else ()
        rows = [(unit, format_amount(amount)) for unit, amount in amounts] or [("cost", UNMEASURED)]
        spent = (f"{self.spent * rate:.3g} {unit}" for unit, rate in unit_rates(self.workers).items())
        return [*rows, ("spent so far", ", ".join(spent))]

    def __str__(self) -> str:
        return "\n".join(f"  {label:<16}  {value}" for label, value in self.rows())


# -- profiles --------------------------------------------------------------------------------------


def profiling_items(study: Study) -> list[WorkItem]:
    """Return a profile of every task at every rank that the study uses."""
    items = []
    for rank in profiled_ranks(study):
        runs = study.at({RANK: rank}).runs
        for task in study.task_names:
            stage = runs.run((task,), 0).stages[0]
            items.append(WorkItem(stage, (runs.evaluation(task, "validation"),), study.workers.setup))
    return items


def profiled_ranks(study: Study) -> list[int]:
    """Return the ranks of the search, or both ends of their range, or the adapter's; and the baselines'."""
    ranks: list[Any] = [study.adapter.rank]
    searched = [baseline.search for baseline in study.tuned_baselines]
    if study.search and RANK in study.search.space:
        ranks, searched = [], [study.search.space, *searched]
    parameters = [space[RANK] for space in searched if RANK in space]
    ranks += [rank for p in parameters for rank in p.values or (p.low, p.high)]
    ranks += [setting[RANK] for setting in study.fixed_settings if RANK in setting]
    return sorted({int(rank) for rank in ranks if rank is not None})
