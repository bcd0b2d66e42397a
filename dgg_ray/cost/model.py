"""What a study will cost, from what a store has measured: finished stages, sittings and profiles.

    part      counted in          took      rate by          measured in
    learn     examples × epochs   seconds   task and rank    a stage's record, a profile
    begin     stages              seconds   rank             a stage's record, a profile
    answer    answers             seconds   task and rank    a sitting's cells, a profile
    adapter   stages              bytes     rank             a stage's record, a profile
    sheet     answers             bytes     task             a sitting's record

How rates are fitted, and how sure a prediction is, stands in rates.py. It holds for machines as they were
when measured: another kind of GPU is not foreseen, nor a fleet's own start. Wall time is what the works take
that the end has to wait for (makespan.py), with the interval of their sum. That interval is for the works as
they are foreseen, not for what a sampler will propose. With stages that scatter by 10 % it holds about 95 of
100 times, and above 90 where all fleets wait for the last of them, which is later than each one's mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dgg_ray.core.interfaces import Adapter
from dgg_ray.core.stage import ANSWERS, ROUNDS, STEPS, Evaluation, Stage, WorkItem, replayed
from dgg_ray.cost.makespan import Ask, Node, longest, nodes
from dgg_ray.cost.rates import TASKS_RANGE, Estimate, Part, Rate, Seen, show, total
from dgg_ray.storage.stage_store import StageStore

if TYPE_CHECKING:
    from dgg_ray.config.study import Study, Workers

RANK = "adapter.rank"
DISK = {"adapter", "sheet"}
PROBE = "probe "  # what its key begins with among those of the stages
UNMEASURED = "not known: nothing was measured on such workers; `dgg-ray profile STUDY` does it"
Record: TypeAlias = Mapping[str, Any]
Told: TypeAlias = tuple[str, Sequence[Record]]  # a stage's key, or PROBE and a number, and its records


@dataclass(frozen=True)
class Cost:
    """What work will take on these workers.

    seconds: of a fleet, one stage after another; wall: from start to end, on all fleets; bytes: on disk.
    """

    workers: Workers
    seconds: Estimate
    wall: Estimate
    bytes: Estimate

    def amounts(self) -> dict[str, Estimate]:
        """Unit → how much; GPU-hours and money where the workers have them."""
        found = {unit: self.seconds.times(rate) for unit, rate in units(self.workers).items()}
        return found | {"wall hours": self.wall.times(1 / 3600), "GB on disk": self.bytes.times(1e-9)}


def units(workers: Workers) -> dict[str, float]:
    """Unit → what a second of a fleet is in it."""
    hours = workers.group_size / 3600
    found = {"worker-hours": hours}
    if workers.gpus:
        found["GPU-hours"] = hours * workers.gpus
    if workers.price_per_hour:
        found["money"] = hours * workers.price_per_hour
    return found


# -- what was measured -----------------------------------------------------------------------------


class CostModel:
    """All that a store tells of a study's rates, and of what it spent; grows as stages finish.

    Only what was measured on the same base model and the same Workers.setup counts.
    spent: seconds of a fleet by stage or profile, of this study's own work; another's costs it nothing.
    took: most seconds of a profile, of whatever study, by task.
    sat: keys of the exams that were sat, by the key of their stage, as far as was read.
    """

    def __init__(self, study: Study, store: StageStore) -> None:
        self.workers, self.store, self.model = study.workers, store, study.fingerprint
        self.study, self.setup = study.name, study.workers.setup
        self.sizes = {name: dict(data.sizes) for name, data in study.tasks.items()}
        self.seen: dict[str, list[tuple[Part, float]]] = {}
        self.spent: dict[str, float] = {}
        self.took: dict[str, float] = {}
        self.sat: dict[str, set[str]] = {}
        self.made: dict[tuple[Any, ...], Part] = {}
        self.read()

    def read(self) -> None:
        """Take up everything that the store holds."""
        self.learn(self.probed())
        self.learn((record["key"], (record, *sittings)) for record, sittings in self.store.finished())

    def measured(self, item: WorkItem) -> list[Told]:
        """What the store tells of work that was just done; takes nothing up, so that any thread may ask."""
        if item.profile:
            return list(self.probed())
        record = self.store.record(item.stage)
        return [(item.stage.key, (record, *self.store.sittings(item.stage.key)))] if record else []

    def probed(self) -> Iterator[Told]:
        return ((f"{PROBE}{number}", (profile,)) for number, profile in enumerate(self.store.profiles()))

    def learn(self, told: Iterable[Told]) -> None:
        """Take it up."""
        for key, records in told:
            if key.startswith(PROBE):
                self.add(key, records, self.of_probe)
                continue
            self.sat[key] = {cell["evaluation"] for sitting in records[1:] for cell in sitting["cells"]}
            self.add(key, records, self.of_stage)

    def add(self, key: str, records: Sequence[Record], of: Callable[..., Iterator[Seen]]) -> None:
        mine = [record for record in records if record.get("study") == self.study]
        self.spent[key] = sum(seconds(record) for record in mine)
        meaning = records[0]["meaning"]
        if meaning["model"] == self.model and {name for name, _ in meaning["learns"]} <= self.sizes.keys():
            found = [*of(*records)]
            self.seen[key] = [(part, took) for part, took in found if took > 0 and self.knows(part)]
        self.__dict__.pop("rates", None)

    def knows(self, part: Part) -> bool:
        return part.counts.keys() <= {"", *self.sizes}

    def of_stage(self, record: Record, *sittings: Record) -> Iterator[Seen]:
        if record.get("workers") == self.setup:
            cost, parts = record["cost"], self.parts(record["meaning"], record["earlier"])
            took = (cost["seconds"], cost["begin_seconds"], record["bytes"]) if parts else ()
            yield from zip(parts, took, strict=True)
        rank = record["meaning"].get("adapter", {}).get("rank", Adapter().rank)
        for sitting in (sitting for sitting in sittings if sitting.get("workers") == self.setup):
            for cell in sitting["cells"]:
                yield Part("answer", {cell["task"]: cell["n"]}, rank), cell["seconds"]
            counts: Counter[str] = Counter()
            for cell in sitting["cells"]:
                counts[cell["task"]] += cell["n"]
            yield Part("sheet", counts, rank), sitting["bytes"]

    def of_probe(self, record: Record) -> Iterator[Seen]:
        if record["workers"] != self.setup:
            return
        ((name, _),) = record["meaning"]["learns"]
        self.took[name] = max(seconds(record), self.took.get(name, 0.0))
        rank = record["meaning"]["adapter"]["rank"]
        for kind, of in (("begin", ""), ("learn", name), ("answer", name)):
            for timed in record[kind]:
                yield Part(kind, {of: timed["n"]}, rank), timed["seconds"]
        yield Part("adapter", {"": 1.0}, rank), record["bytes"]

    @cached_property
    def rates(self) -> dict[str, Rate]:
        kinds: dict[str, list[Seen]] = {}
        for part, took in (pair for pairs in self.seen.values() for pair in pairs):
            kinds.setdefault(part.kind, []).append((part, took))
        return {kind: Rate(["", *self.sizes], seen) for kind, seen in kinds.items()}

    @property
    def timed(self) -> set[str]:
        """Tasks that were measured."""
        seen = (part for pairs in self.seen.values() for part, _ in pairs if part.kind == "learn")
        return {name for part in seen for name in part.counts}

    # -- what is to come ---------------------------------------------------------------------------

    def parts(self, meaning: Record, earlier: Sequence[str]) -> list[Part]:
        """What learning a stage consists of."""
        if not meaning["learns"]:
            return []
        rank, epochs = meaning["adapter"]["rank"], meaning["training"]["epochs"]
        train = {name: sizes["train"] for name, sizes in self.sizes.items()}
        kept = replayed(meaning["effect"])
        counts = {name: epochs * train[name] for name, _ in meaning["learns"]}
        counts |= {name: epochs * min(kept, train.get(name, kept)) for name in earlier if kept}
        once = {"": 1.0}
        return [self.part(*of, rank) for of in (("learn", counts), ("begin", once), ("adapter", once))]

    def part(self, kind: str, counts: Mapping[str, float], rank: int) -> Part:
        """The same one for the same content: there are few, of very many stages."""
        return self.made.setdefault((kind, rank, *counts.items()), Part(kind, counts, rank))

    def parts_of(self, stage: Stage, trained_tasks: bool, evaluations: Iterable[Evaluation]) -> list[Part]:
        found = self.parts(stage.meaning, stage.earlier) if trained_tasks else []
        for evaluation in evaluations:
            counts = {evaluation.task: float(self.sizes[evaluation.task][evaluation.split])}
            found += [self.part(kind, counts, stage.adapter.rank) for kind in ("answer", "sheet")]
        return found

    def known(self, asks: Iterable[Ask]) -> list[Node] | None:
        """What is left; None where a kind of it was not measured."""
        kinds, found = self.rates.keys() | DISK, list[Node]()  # a profile keeps no answers
        for node in nodes(asks, self.sat, self.parts_of):
            if any(part.kind not in kinds for part in node.parts):
                return None
            found.append(node)
        return found

    def sum(self, parts: Iterable[Part], disk: bool = False) -> Estimate:
        """Seconds that the parts take one after another, or bytes."""
        kinds: dict[str, list[Part]] = {}
        for part in parts:
            if (part.kind in DISK) == disk and part.kind in self.rates:
                kinds.setdefault(part.kind, []).append(part)
        return total([self.rates[kind].sum(some) for kind, some in kinds.items()])

    def seconds(self, work_items: Iterable[WorkItem]) -> Estimate | None:
        """That the works take which are left, one after another; None where that was not measured."""
        found = self.known([Ask(work_items)])
        return None if found is None else self.sum(part for node in found for part in node.parts)

    def probing(self, item: WorkItem) -> float | None:
        """Most seconds of a profile, by the rates and the longest one so far; None where nothing was measured.

        A task that was never timed has a wide interval; TASKS_RANGE is the most that is made of it here.
        """
        (task,), rank, size = (
            item.stage.trained_tasks,
            item.stage.adapter.rank,
            item.stage.training.batch_size,
        )
        answers = sum(
            min(self.sizes[evaluation.task][evaluation.split], ANSWERS) for evaluation in item.evaluations
        )
        once = {"begin": {"": 1.0}, "learn": {task: STEPS * size}, "answer": {task: answers}}
        if not once.keys() <= self.rates.keys():
            return None
        found = self.sum([self.part(kind, of, rank) for kind, of in once.items()] * (1 + ROUNDS))
        return max(min(found.high, found.mean * TASKS_RANGE), *self.took.values(), 0.0)

    def predict(self, asks: Iterable[Ask]) -> Cost | None:
        """Of what is left; None where that was not measured."""
        if (found := self.known(asks)) is None:
            return None
        parts = [(i, part) for i, node in enumerate(found) for part in node.parts]
        means = np.zeros(len(found))
        for kind in self.rates.keys() - DISK:
            if some := [(i, part) for i, part in parts if part.kind == kind]:
                np.add.at(means, [i for i, _ in some], self.rates[kind].each([part for _, part in some]))
        path = longest([node.after for node in found], means.tolist(), self.workers.groups)
        wall = self.sum(part for i in path for part in found[i].parts)
        every = [part for _, part in parts]
        return Cost(self.workers, self.sum(every), wall, self.sum(every, disk=True))

    def outlook(self, asks: Iterable[Ask]) -> Outlook:
        return Outlook(self.predict(asks), sum(self.spent.values()), self.workers)


def seconds(record: Record) -> float:
    """What a stage or a profile, or a sitting, took."""
    cost = record.get("cost", {})
    return (
        cost.get("seconds", 0.0)
        + cost.get("begin_seconds", 0.0)
        + sum(cell["seconds"] for cell in record.get("cells", ()))
    )


@dataclass(frozen=True)
class Outlook:
    """What is left of a study and what it spent. rest: None where nothing was measured; spent: seconds."""

    rest: Cost | None
    spent: float
    workers: Workers

    def as_json(self) -> dict[str, Any]:
        rest = {unit: amount._asdict() for unit, amount in self.rest.amounts().items()} if self.rest else None
        return {"rest": rest, "spent": {u: self.spent * rate for u, rate in units(self.workers).items()}}

    def __str__(self) -> str:
        lines = (
            [f"  {unit:<16}  {show(amount)}" for unit, amount in self.rest.amounts().items()]
            if self.rest
            else []
        )
        spent = ", ".join(f"{self.spent * rate:.3g} {unit}" for unit, rate in units(self.workers).items())
        return "\n".join([*(lines or [f"  cost              {UNMEASURED}"]), f"  spent so far      {spent}"])


# -- profiles ----------------------------------------------------------------------------------------


def profiling_items(study: Study) -> list[WorkItem]:
    """A profile of every task at every rank that the study uses."""
    return [
        WorkItem(
            study.at({RANK: rank}).run_of((name,), 0).stages[0],
            (study.evaluation(name, "validation"),),
            study.workers.setup,
        )
        for rank in ranks(study)
        for name in study.names
    ]


def ranks(study: Study) -> list[int]:
    """Those of the search, or both ends of its range, or the adapter's own; and the baselines'."""
    parameter = study.search.space.get(RANK) if study.search else None
    found = (parameter.values or (parameter.low, parameter.high)) if parameter else (study.adapter.rank,)
    baselines = [
        at[RANK]
        for r in study.protocol.baselines
        if not isinstance(r, str)
        for at in r.values()
        if RANK in at
    ]
    return sorted({int(rank) for rank in (*found, *baselines) if rank is not None})
