"""The plan of a study: its runs, stages and costs, before anything is started.

A search is carried through without training (`dry_run_search`), so that its stages can be counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from dgg_ray.config import registry
from dgg_ray.config.search_rules import count_beginnings
from dgg_ray.config.sections import Budget
from dgg_ray.config.study import Study, StudyRuns
from dgg_ray.core.interfaces import SPLITS
from dgg_ray.core.stage import Stage, TaskData, WorkItem, distinct_stages, merged_items
from dgg_ray.cost import disk
from dgg_ray.cost.disk import DiskUsage
from dgg_ray.cost.makespan import WorkRequest
from dgg_ray.cost.model import CostForecast, CostModel
from dgg_ray.planning.text_table import format_table
from dgg_ray.search.base import Query, SearchMethod
from dgg_ray.search.comparison import Comparison, final_chains
from dgg_ray.search.evidence import EvidenceReader, RunRequest
from dgg_ray.search.objective import Evidence
from dgg_ray.search.whole_settings import WholeSettings
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.storage.store_view import view_of
from dgg_ray.training.simulated_runner import SimulatedRunner

if TYPE_CHECKING:
    from dgg_ray.planning.order_designs import DesignTable


@dataclass(frozen=True)
class Plan:
    """The counts of a study, as far as they are known before it has run.

    settings: how many are evaluated. orders, seeds: of the blocks of the search.
    runs: setting × order × seed, the runs of the final comparison among them.
    requested: stages of all runs. distinct: after sharing. stored: of these, in the store already.
    examples: training examples in the distinct stages that are not stored.
    steps: optimizer steps on these examples.
    answers: to be generated for the evaluations that are not stored.
    cost_forecast: what the study has spent, and what the rest of it will cost.
    disk_usage: of the whole store, other studies' files included.
    tasks: the data of each task, in the study's order.
    exact: whether the counts are certain; else later proposals of the sampler or the winner may change them.
    seeding: which orders share seeds, what that means and what the alternative costs; empty for one order.
    pruning_test: what the pruning test over these blocks can promise; empty without one.
    budget: the study's; it can be checked once something was measured.
    designs: a comparison of order designs, where one was requested.
    tuned: label of a tuned baseline → number of settings that its own search evaluates.
    """

    study: str
    settings: int
    orders: int
    seeds: int
    runs: int
    requested: int
    distinct: int
    stored: int
    examples: int
    steps: int
    answers: int
    cost_forecast: CostForecast
    disk_usage: DiskUsage
    tasks: Mapping[str, TaskData]
    exact: bool
    seeding: str = ""
    pruning_test: str = ""
    budget: Budget | None = None
    designs: DesignTable | None = None
    tuned: Mapping[str, int] = field(default_factory=dict)

    @property
    def shared(self) -> int:
        """Stages that need no training because another run has the same stage."""
        return self.requested - self.distinct

    @property
    def to_train(self) -> int:
        return self.distinct - self.stored

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "tasks": {name: {**data.sizes, "scorer": data.scorer} for name, data in self.tasks.items()},
            "cost_forecast": self.cost_forecast.as_json(),
            "disk_usage": self.disk_usage._asdict(),
            "shared": self.shared,
            "to_train": self.to_train,
        }

    def __str__(self) -> str:
        blocks = f"{self.settings} settings × {self.orders} orders × {self.seeds} seeds"
        lines = [f"{self.study}: {blocks}, then the comparison"]
        lines += [f"  {label:<16}  {value}" for label, value in self.rows()]
        if not self.exact:
            lines.append("  the search's later proposals may change all of these counts")
        lines += format_table([("task", *SPLITS, "scorer"), *self.task_rows()], left=(0, 1 + len(SPLITS)))
        if self.designs:
            lines.append(str(self.designs))
        return "\n".join(lines)

    def rows(self) -> list[tuple[str, str]]:
        """Return the counts as labels with values."""
        about = "" if self.exact else "about "
        rows = []
        if self.seeding:
            rows.append(("seeds", self.seeding))
        if self.tuned:
            rows.append(("tuned baselines", describe_tuning(self.tuned)))
        if self.pruning_test:
            rows.append(("pruning", self.pruning_test))
        rows += [
            ("runs", f"{about}{self.runs}"),
            ("stages requested", f"{about}{self.requested}"),
            ("shared", f"{about}{self.shared}"),
            ("in the store", f"{self.stored}"),
            ("to be trained", f"{about}{self.to_train}, on {about}{self.examples:,} examples in all"),
            ("optimizer steps", f"{about}{self.steps:,}"),
            ("answers to score", f"{about}{self.answers:,}"),
            *self.cost_forecast.rows(),
        ]
        if self.budget:
            unchecked = ", which cannot be checked before `dgg-ray profile`"
            rows.append(("budget", f"{self.budget}{'' if self.cost_forecast.remaining else unchecked}"))
        rows.append(("disk used", str(self.disk_usage)))
        return rows

    def task_rows(self) -> Iterator[tuple[str, ...]]:
        for name, data in self.tasks.items():
            sizes = (data.sizes[split] for split in SPLITS)  # one that is only evaluated trains on none
            yield (name, *(f"{size:,}" if size else "–" for size in sizes), data.scorer)


def plan(study: Study, store: StageStore) -> Plan:
    """Count the study's work and what a store holds of it already. Nothing is started or written.

    A sampler's proposals depend on results that do not exist yet. Its proposals without them stand in, so the
    counts of stages are an estimate unless the search is finished.
    """
    store = view_of(store)
    study = registry.with_decisions(study, store)
    dry_run = dry_run_search(EvidenceReader(study, store))
    runs = len({(r.runs.id, r.run.order, r.run.seed) for query in dry_run.requests for r in query.runs})
    runs += sum(len(of_setting) for of_setting in dry_run.settings.values())
    requests = [query.work_request for query in dry_run.requests]
    final = [item for chain in final_chains(dry_run.settings) for item in chain]
    requests.append(WorkRequest(final, after=len(requests)))
    requested = [item for request in requests for item in request.work_items]
    work_items = merged_items(requested)
    stages = distinct_stages(item.stage for item in work_items if item.stage.trained_tasks)
    missing = [stage for stage in stages.values() if store.record(stage) is None]
    examples, steps = count_training(study, missing)
    return Plan(
        study=study.name,
        settings=dry_run.proposed,
        orders=len(study.all_orders),
        seeds=len(study.seeds),
        runs=runs,
        requested=sum(bool(item.stage.trained_tasks) for item in requested),
        distinct=len(stages),
        stored=len(stages) - len(missing),
        examples=examples,
        steps=steps,
        answers=count_answers(study, store, work_items),
        cost_forecast=CostModel(study, store).forecast(requests),
        disk_usage=disk.disk_usage(study, store),
        tasks=study.data.tasks,
        exact=dry_run.exact,
        seeding=describe_seeding(study),
        pruning_test=describe_pruning_test(study),
        budget=study.budget,
        tuned=dry_run.tuned,
    )


def describe_tuning(tuned: Mapping[str, int]) -> str:
    """Describe the searches of the baselines: `l2sp on 12 settings, each on the blocks of the search`."""
    counts = [f"{label} on {count} setting{'s' * (count != 1)}" for label, count in tuned.items()]
    return f"{', '.join(counts)}, each on the blocks of the search"


def count_training(study: Study, stages: Iterable[Stage]) -> tuple[int, int]:
    """Count the training examples and the optimizer steps of stages."""
    sizes = {name: data.sizes["train"] for name, data in study.data.tasks.items()}
    examples = steps = 0
    for stage in stages:
        replayed = sum(stage.replayed_examples(sizes).values())
        in_epoch = sum(sizes[name] for name in stage.trained_tasks) + replayed
        examples += stage.training.epochs * in_epoch
        steps += stage.training.epochs * ceil(in_epoch / stage.training.batch_size)
    return examples, steps


def count_answers(study: Study, store: StageStore, work_items: Iterable[WorkItem]) -> int:
    """Count the answers of evaluations that are not stored; equal evaluations are counted once."""
    count = 0
    for item in merged_items(work_items):
        known = store.score_entries(item.stage)
        missing = (evaluation for evaluation in item.evaluations if evaluation.key not in known)
        count += sum(study.data.tasks[e.task].sizes[e.split] for e in missing)
    return count


def describe_pruning_test(study: Study) -> str:
    """Describe on how many independent clusters of blocks pruning rests, and its risk."""
    if study.search is None or not study.search.prune_level:
        return ""
    from dgg_ray.stats.intervals import block_clusters  # late: a plan without pruning does without SciPy

    count = len(set(block_clusters(study.named_blocks)))
    if count < 2:
        return "prunes nothing: all blocks share an order or a first stage"
    return (
        f"over {count} independent clusters of {len(study.blocks)} blocks, the best setting is lost in at "
        f"most {study.search.prune_level:.0%} of studies, if all settings scatter alike from order to order"
    )


def describe_seeding(study: Study) -> str:
    """Describe which orders share seeds, and what the alternative costs in stages per setting."""
    seeds = study.seeds if study.search else study.protocol.final_seeds or study.seeds
    if len(study.all_orders) < 2 or (not study.search and study.protocol.held_out):
        return ""
    own, shared = (count_stages_per_setting(study, seeds, own) for own in (True, False))
    simultaneous = any(runs.study.strategy.simultaneous for runs in study.compared_settings().values())
    joint = ""
    if simultaneous and not study.protocol.held_out:
        joint = "; joint trains one run per seed"
    if study.own_seeds:
        cost = "which costs no additional stage"
        if own > shared:
            cost = f"shared seeds would train {shared} stages per setting instead of {own}"
        return f"each order has its own, so orders are independent; {cost}{joint}"
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"the same {len(seeds)} seeds"
    what = "the search's choice depends" if study.search else "the results depend"
    alternative = "per_order" if len(seeds) == 1 else f"{{per_order: {len(seeds)}}}"
    cost = f"{own} stages per setting instead of {shared}" if own > shared else "no additional stage"
    return (
        f"all orders share {which}, and {what} on it; `seeds: {alternative}` would make orders independent, "
        f"at {cost}{joint}"
    )


def count_stages_per_setting(study: Study, seeds: Sequence[int], own: bool) -> int:
    """Count the distinct stages of a setting. own: whether each order has seeds of its own."""
    return count_beginnings(study.blocks_of(seeds, own))


# -- the dry run of the search ---------------------------------------------------------------------


class QueryRequests(NamedTuple):
    """The requests of a query. after: number of earlier queries, first to last, that it has to wait for."""

    runs: list[RunRequest]
    after: int

    @property
    def work_request(self) -> WorkRequest:
        return WorkRequest([item for request in self.runs for item in request.items], self.after)


class DryRun(NamedTuple):
    """A search that was carried through without training.

    requests: what each query requests, in the order of the queries.
    settings: label → runs of the final comparison.
    proposed: number of different settings that were proposed.
    exact: whether the store had the evidence for all of it, so that nothing is a guess.
    tuned: label of a tuned baseline → number of settings that its search proposed.
    """

    requests: list[QueryRequests]
    settings: dict[str, StudyRuns]
    proposed: int
    exact: bool
    tuned: Mapping[str, int] = {}


def dry_run_search(reader: EvidenceReader) -> DryRun:
    """Carry the search through without training.

    Where the store has no evidence yet, a simulated learner stands in: its scores are no prediction, but as
    many branches are kept and dropped.
    """
    study = reader.study
    if not study.chooses:
        return DryRun([], study.compared_settings(), 1, True)
    runner = SimulatedRunner.of(study, MemoryStore())
    simulated = reader.with_store(runner.store)
    exact, requests = True, list[QueryRequests]()

    def answer(search: SearchMethod, query: Query) -> tuple[Evidence | None, list[RunRequest]]:
        nonlocal exact
        known = reader.evidence(query)
        exact &= known is not None
        # Whole settings, of which there may be many, are proposed without an answer.
        if known is None and not isinstance(search, WholeSettings):
            for part in simulated.requests(query):
                for item in (item for chain in simulated.missing_items(part) for item in chain):
                    runner.run(item)
            return simulated.evidence(query), simulated.requested(query)
        return known, reader.requested(query)

    def carry_out(search: SearchMethod) -> SearchMethod:
        first, waiting, answered = len(requests), deque[tuple[int, Query, int]](), 0
        while True:
            while (proposal := search.ask()) is not None:  # all that waits for no more than was answered
                waiting.append((*proposal, first + answered))
            if not waiting:
                return search
            number, query, after = waiting.popleft()
            known, runs = answer(search, query)
            requests.append(QueryRequests(runs, after))
            search.tell(number, known)
            answered += 1

    # Where nothing was evaluated, any setting stands for the one that will win.
    compared = Comparison.from_study(study, carry_out, stand_in=True)
    tuned = {label: count_settings(own) for label, own in compared.tuning.items()}
    proposed = count_settings(compared.search) if compared.search else 1
    return DryRun(requests, compared.settings, proposed, exact, tuned)


def count_settings(search: SearchMethod) -> int:
    """Count the different settings that a search proposed; without evidence it may propose one twice."""
    if search.winner() is None:
        return len(search.proposed)
    return len({tuple(sorted(query.setting.items())) for query in search.proposed})
