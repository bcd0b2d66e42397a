"""What a study will do, before it does anything."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from dgg_ray.config.sections import Budget
from dgg_ray.config.study import Study
from dgg_ray.core.stage import Data, WorkItem, distinct, merged_items
from dgg_ray.cost import disk
from dgg_ray.cost.disk import Held
from dgg_ray.cost.makespan import Ask
from dgg_ray.cost.model import CostModel, Outlook
from dgg_ray.search import comparison, evidence
from dgg_ray.search.base import Method, Query, Whole
from dgg_ray.search.objective import Evidence
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.storage.store_view import Glance
from dgg_ray.training.simulated import MemoryStore, Simulated

if TYPE_CHECKING:
    from dgg_ray.planning.order_designs import Table


@dataclass(frozen=True)
class Plan:
    """Counts of a study, as far as they are known before it has run.

    settings: to be judged; orders, seeds: the blocks of the search.
    seeding: which orders share seeds, what that means, what the other way would cost; empty for one order.
    prune_level: what a race over these blocks can promise; empty without one.
    runs: setting × order × seed, those of the final comparison among them.
    asked: stages of all runs; distinct: after sharing; stored: of these, finished already.
    examples: training examples that the distinct stages which are not stored will see.
    steps: optimizer steps in which they will see them.
    answers: to be written in the exams that are not stored.
    outlook: what is left, as predicted, and what was spent.
    held: what the store holds, with what others put there.
    tasks: what was read of each, in the study's order.
    exact: False while what the sampler proposes later, or who wins, may still change the counts.
    budget: the study's; it can be checked once something was measured.
    designs: the designs of orders beside each other, where they were asked for.
    """

    study: str
    settings: int
    orders: int
    seeds: int
    runs: int
    asked: int
    distinct: int
    stored: int
    examples: int
    steps: int
    answers: int
    outlook: Outlook
    held: Held
    tasks: Mapping[str, Data]
    exact: bool
    seeding: str = ""
    pruning_test: str = ""
    budget: Budget | None = None
    designs: Table | None = None

    @property
    def shared(self) -> int:
        """Stages that need no training because another run has the same."""
        return self.asked - self.distinct

    @property
    def to_train(self) -> int:
        return self.distinct - self.stored

    def as_json(self) -> dict[str, Any]:
        tasks = {name: {**data.sizes, "scorer": data.scorer} for name, data in self.tasks.items()}
        counts = {"shared": self.shared, "to_train": self.to_train}
        told = {"tasks": tasks, "outlook": self.outlook.as_json(), "held": self.held._asdict()}
        return asdict(self) | told | counts

    def __str__(self) -> str:
        about = "" if self.exact else "about "
        blocks = f"{self.settings} settings × {self.orders} orders × {self.seeds} seeds"
        left = f"{about}{self.to_train}"
        unchecked = "" if self.outlook.rest else ", which cannot be checked before a probe"
        width = max(16, *map(len, self.tasks))
        return "\n".join(
            [
                f"{self.study}: {blocks}, then the comparison",
                *[f"  seeds             {self.seeding}"] * bool(self.seeding),
                *[f"  race              {self.pruning_test}"] * bool(self.pruning_test),
                f"  runs              {about}{self.runs}",
                f"  stages asked for  {about}{self.asked}",
                f"  shared            {about}{self.shared}",
                f"  in the store      {self.stored}",
                f"  to be trained     {left}, on {about}{self.examples:,} examples in all",
                f"  optimizer steps   {about}{self.steps:,}",
                f"  exam answers      {about}{self.answers:,}",
                str(self.outlook),
                *[f"  budget            {self.budget}{unchecked}"] * bool(self.budget),
                f"  disk used         {self.held}",
                *["  what the search proposes later may change all of these"] * (not self.exact),
                f"  {'task':<{width}}  {'train':>9}  validation  {'test':>9}  scorer",
                *(
                    f"  {name:<{width}}  {data.sizes['train']:>9,}  {data.sizes['validation']:>10,}  "
                    f"{data.sizes['test']:>9,}  {data.scorer}"
                    for name, data in self.tasks.items()
                ),
                *([str(self.designs)] if self.designs else []),
            ]
        )


def plan(study: Study, store: StageStore) -> Plan:
    """Counts of the study against what a store holds already. Nothing is started or written.

    What a sampler proposes depends on results that are not there yet; its proposals without them
    stand in, so that the counts of stages are an estimate unless the search is over.
    """
    store = Glance(store)
    told, final, settings, over = foresee(study, store)
    runs = len({(walk.at.id, walk.run.order, walk.run.seed) for one in told for walk in one.walks})
    runs += sum(len(at.runs()) for at in final.values())
    asks = [one.ask for one in told]
    asks.append(Ask([item for chain in evidence.final_works(final) for item in chain], len(asks)))
    work_items = [item for ask in asks for item in ask.work_items]
    asked = sum(bool(item.stage.trained_tasks) for item in work_items)
    work_items = merged_items(work_items)
    stages = distinct(item.stage for item in work_items if item.stage.trained_tasks)
    stored = {key for key, stage in stages.items() if store.record(stage) is not None}
    sizes = {name: data.sizes["train"] for name, data in study.tasks.items()}
    examples = steps = 0
    for key, stage in stages.items():
        if key not in stored:
            kept = sum(min(stage.buffer, sizes[name]) for name in stage.earlier)
            once = sum(sizes[name] for name in stage.trained_tasks) + kept
            examples += stage.training.epochs * once
            steps += stage.training.epochs * ceil(once / stage.training.batch_size)
    return Plan(
        study=study.name,
        settings=settings,
        orders=len(study.all_orders),
        seeds=len(study.seeds),
        runs=runs,
        asked=asked,
        distinct=len(stages),
        stored=len(stored),
        examples=examples,
        steps=steps,
        answers=answers(study, store, work_items),
        outlook=CostModel(study, store).outlook(asks),
        held=disk.held(study, store),
        tasks=study.tasks,
        exact=over,
        seeding=seeding(study),
        pruning_test=pruning_test(study),
        budget=study.budget,
    )


def pruning_test(study: Study) -> str:
    """On how many independent clusters of blocks a race rests, and what it loses."""
    if study.search is None or not study.search.prune_level:
        return ""
    from dgg_ray.stats.intervals import clusters_of  # SciPy, which a plan without a race does without

    count = len(set(clusters_of(study.named_blocks)))
    if count < 2:
        return "gives up nothing: all blocks share an order or a first stage"
    said = (
        f"over {count} independent clusters of {len(study.blocks)} blocks loses the best setting in at most "
    )
    return (
        said + f"{study.search.prune_level:.0%} of studies, if all settings scatter alike from order to order"
    )


def seeding(study: Study) -> str:
    """The trade-off between shared seeds and each order's own, in stages that a setting trains."""
    seeds = study.seeds if study.search else study.protocol.final_seeds or study.seeds
    if len(study.all_orders) < 2 or (not study.search and study.protocol.held_out):
        return ""
    own, shared = (
        len({(order[:t], seed) for order, seed in study.crossed(seeds, of) for t in range(1, len(order) + 1)})
        for of in (True, False)
    )
    once = any(at.strategy.simultaneous for at in study.compared_settings().values())
    joint = "; joint trains one run per seed" * (once and not study.protocol.held_out)
    if study.own_seeds:
        saved = f"shared ones would train {shared} stages a setting in place of {own}" if own > shared else ""
        costs = saved or "that costs a setting no stage"
        return f"each order has its own, so that orders are independent; {costs}{joint}"
    wanted = "per_order" if len(seeds) == 1 else f"{{per_order: {len(seeds)}}}"
    cost = (
        f"at {own} stages a setting in place of {shared}" if own > shared else "at no further stage a setting"
    )
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"the same {len(seeds)} seeds"
    speaks = "the choice leans on" if study.search else "results speak of"
    apart = f"`seeds: {wanted}` makes orders independent, {cost}{joint}"
    return f"all orders share {which}, and {speaks} it; {apart}"


def answers(study: Study, store: StageStore, work_items: Iterable[WorkItem]) -> int:
    """Answers that are still to be written: an exam of one stage is sat once, whoever asks for it."""
    count = 0
    for item in merged_items(work_items):
        known = store.cells(item.stage)
        count += sum(study.tasks[e.task].sizes[e.split] for e in item.evaluations if e.key not in known)
    return count


class Asked(NamedTuple):
    """What a query asks for. after: how many of the queries before it, first to last, it has to wait for."""

    walks: list[evidence.Walk]
    after: int

    @property
    def ask(self) -> Ask:
        return Ask([item for walk in self.walks for item in walk.work_items], self.after)


def foresee(study: Study, store: StageStore) -> tuple[list[Asked], dict[str, Study], int, bool]:
    """(What the search asks for, the final comparison, settings looked at, whether nothing of it is a guess).

    What the store does not answer yet, a simulated learner does: its scores are no prediction, but as many
    branches are kept and dropped.
    """
    if study.search is None:
        return [], study.compared_settings(), 1, True
    shadow = Simulated.of(study, MemoryStore())
    over, found = True, list[Asked]()

    def answer(search: Method, query: Query) -> tuple[Evidence | None, list[evidence.Walk]]:
        nonlocal over
        known = evidence.evidence(study, store, query)
        over &= known is not None
        if known is None and not isinstance(search, Whole):  # whose proposals, maybe many, need no answer
            for part in evidence.parts(study, shadow.store, query):
                for item in (item for chain in evidence.missing(shadow.store, part) for item in chain):
                    shadow.obtain(item)
            return evidence.evidence(study, shadow.store, query), evidence.asked(study, shadow.store, query)
        return known, evidence.asked(study, store, query)

    def pursue(search: Method) -> Method:
        first, open_, told = len(found), deque[tuple[int, Query, int]](), 0
        while True:
            while (proposal := search.ask()) is not None:  # all that waits for no more than was told
                open_.append((*proposal, first + told))
            if not open_:
                return search
            number, query, after = open_.popleft()
            known, walks = answer(search, query)
            found.append(Asked(walks, after))
            search.tell(number, known)
            told += 1

    search = pursue(comparison.make_search(study))
    if search.winner() is None:  # nothing was judged: any setting stands for the one that will be
        stand_in = study.at(search.proposed[0].setting)
        return found, stand_in.compared_settings(), len(search.proposed), False
    more = {name: pursue(own) for name, own in comparison.baseline_searches(search).items()}
    settings = len({tuple(sorted(query.setting.items())) for query in search.proposed})
    return found, comparison.compared_settings(study, search, more), settings, over
