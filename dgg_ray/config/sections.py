"""The sections of a study file as frozen dataclasses; each field is a setting, checked when it is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import Discriminator, Tag

from dgg_ray.core.errors import STRICT

Value = float | int | str | bool
STRATEGY_NAME = "strategy.name"  # a strategy may be searched too
ALPHA = "strategy.alpha"  # for the analysis and the report of α curves, which are about DGG's α alone
MOST = 10_000  # orders, seeds, blocks: listing more would take too long
FROM_SEARCH = (
    "runner_up",
    "constant",
    "two_task",
    "curve_optimum",
)  # baselines whose setting comes from the search


@dataclass(frozen=True)
class Orders:
    """The orders in which the tasks are trained; `dgg-ray plan` compares the designs (orders.py).

    design: how the orders are made. `given` takes the orders in `given`, or else the file's own order; `all`
        takes every order; `random` draws them. A Latin square is `cyclic` (from the file's order), `latin`
        (drawn) or `williams` (balanced for the task right before). `shared_prefix` lets several orders share
        each beginning, which saves stages. `extreme` takes orders by the similarity of the tasks' examples.
    count: number of orders. None is 1 for `random`, one square for `latin`, the whole of any other design.
        Part of a square is allowed, and not balanced. Raising it keeps the orders that were there.
    seed: the seed by which orders are drawn.
    given: orders as lists of task names, for the design `given`.
    prefix_length: number of tasks in a shared beginning, for `shared_prefix`; None is half of them.
    suffixes: number of orders on each shared beginning, for `shared_prefix`.
    """

    __pydantic_config__ = STRICT

    design: Literal["given", "all", "random", "cyclic", "latin", "williams", "shared_prefix", "extreme"] = (
        "given"
    )
    count: Annotated[int, Ge(1), Le(MOST)] | None = None
    seed: int = 0
    given: tuple[tuple[str, ...], ...] = ()
    prefix_length: Annotated[int, Ge(1)] | None = None
    suffixes: Annotated[int, Ge(1), Le(MOST)] = 2


@dataclass(frozen=True)
class OwnSeeds:
    """Seeds that no two orders share; `seeds: per_order` in a study gives each order one.

    per_order: number of seeds for each order. Seed s of order i is SEEDS_APART · s + i, so that more orders,
        or more seeds of each, keep the blocks that were there.
    """

    __pydantic_config__ = STRICT

    per_order: Annotated[int, Ge(1), Le(1000)] = 1


SEEDS_APART = 1000  # also the largest number of orders that can have seeds of their own


@dataclass(frozen=True)
class SearchParameter:
    """One searched setting: a list of values, or a range. A range between whole numbers holds whole numbers.

    values: the values to try, in a list.
    low: the lower end of a range.
    high: the upper end of a range.
    log: whether a range is searched on a logarithmic scale.
    per_task: whether each task has its own value, by the task's name, instead of one value for all.
    """

    __pydantic_config__ = STRICT

    values: Annotated[tuple[Value, ...], MinLen(1)] | None = None
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    per_task: bool = False

    @property
    def largest(self) -> Value:
        """Its largest number, or its first value if none is a number."""
        values = [value for value in self.values or (self.high,) if value is not None]
        return max(values, key=lambda value: value if isinstance(value, int | float) else 0)


@dataclass(frozen=True)
class Search:
    """The search: it proposes settings and evaluates them on the validation split, averaged over blocks.

    space: what is searched: the dotted path of a setting, such as `strategy.alpha`, with a list of values or
        a range `{low, high, log}`; `{per_task: …}` around either searches a value for each task. With a list
        of strategies for `strategy.name`, `strategy.SETTING` is searched for each of them that has it, and
        `strategy.NAME.SETTING` for one alone.
    method: how values are proposed. `stage_model` proposes whole settings whose predicted end is best; it
        learns from every stage what training a task with a value does. `stagewise` tries values task by task
        on the best states so far; it assumes that the effect of one task's value depends little on the
        others'. `tpe` and `nsga2` (Optuna), `random`, and `grid` (every combination) propose whole settings
        by their final values alone. `auto` is `stage_model` where a setting is searched per task for the
        objective `faa`, with one strategy and no constraints, and else `tpe`.
    trials: number of whole settings proposed; `grid` and `stagewise` ignore it, and all do with `stages`.
    stages: in place of `trials`, the largest number of different stages that the settings may need. The
        search ends before the first setting that would need more.
    objective: metrics to maximise; several give a Pareto front.
    constraints: conditions that the chosen setting must also meet, such as `plasticity >= finetune - 2
        points`.
    seed: the seed of the search's own draws.
    parallel: number of whole settings evaluated at once. Setting n is proposed from the results of the
        settings up to n - parallel, however fast the machine is, so that a study repeats exactly.
    prune_level: significance level at which a setting that is behind is pruned after a block or a task. The
        best setting is pruned in at most this share of studies, if all settings scatter alike between
        orders. Several seeds of the same orders prune no sooner. None evaluates every setting on all blocks.
    beam: for `stagewise`, number of states kept at each task.
    values_per_task: for `stagewise`, number of values tried on each state.
    global_candidates: for `stagewise`, number of combinations of the settings that are not per task; half of
        them are dropped at even steps along the tasks.
    audit_fraction: for `stagewise`, share of the stages spent on finishing branches that were dropped.
    warm_start_from: results folders of finished studies whose best settings are tried first. If this study
        extends one of them by a task, all of its settings are.
    """

    __pydantic_config__ = STRICT

    space: Mapping[str, SearchParameter]
    method: Literal["auto", "stage_model", "stagewise", "tpe", "nsga2", "random", "grid"] = "auto"
    trials: Annotated[int, Ge(1), Le(10 * MOST)] = 20
    stages: Annotated[int, Ge(1), Le(100 * MOST)] | None = None
    objective: Annotated[tuple[str, ...], MinLen(1)] = ("faa",)
    constraints: tuple[str, ...] = ()
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0
    parallel: Annotated[int, Ge(1), Le(MOST)] = 2
    prune_level: Annotated[float, Gt(0), Lt(0.5)] | None = None
    beam: Annotated[int, Ge(1), Le(MOST)] = 2
    values_per_task: Annotated[int, Ge(2), Le(MOST)] = 5
    global_candidates: Annotated[int, Ge(1), Le(MOST)] = 4
    audit_fraction: Annotated[float, Ge(0), Le(0.5)] = 0.1
    warm_start_from: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.method == "auto":
            per_task = any(parameter.per_task for parameter in self.space.values())
            simple = self.objective == ("faa",) and not self.constraints and STRATEGY_NAME not in self.space
            object.__setattr__(self, "method", "stage_model" if per_task and simple else "tpe")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics by which settings are chosen: those of the objective and of the constraints."""
        constraints = (Constraint.parse(text) for text in self.constraints)
        return tuple(dict.fromkeys([*self.objective, *(c.metric for c in constraints if c)]))


@dataclass(frozen=True)
class TunedBaseline:
    """A baseline that is tuned by a search of its own, on the blocks of the study's search and after it.

    It has the study's selection split, objective, constraints, seed, `parallel` and `prune_level`. What it
    does not search, it takes from the recommended setting: adapter, training and buffer. Its other settings
    are those of `settings`, else its defaults. The first setting tried is this one, so on the blocks of the
    search it is never worse than its default.

    name: the strategy.
    search: what is searched, as in `search.space`.
    trials: number of settings tried, the default among them; `grid` ignores it.
    method: how values are proposed, as in `search.method`.
    label: its name in the comparison; None is the strategy's.
    settings: settings that stay as they are, by dotted path.
    """

    __pydantic_config__ = STRICT

    name: str
    search: Annotated[Mapping[str, SearchParameter], MinLen(1)]
    trials: Annotated[int, Ge(1), Le(10 * MOST)] = 20
    method: Literal["tpe", "random", "grid", "nsga2"] = "tpe"
    label: Annotated[str, MinLen(1)] | None = None
    settings: Mapping[str, Value] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its label in the comparison."""
        return self.label or self.name


def baseline_form(given: object) -> str:
    """Tell the three forms of a baseline apart: the tag of `Baseline` that it is read as."""
    if isinstance(given, Mapping):
        return "tuned" if isinstance(given.get("name"), str) or "search" in given else "variants"
    return "tuned" if isinstance(given, TunedBaseline) else "name"


Baseline = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[TunedBaseline, Tag("tuned")]
    | Annotated[Mapping[str, Mapping[str, Value]], Tag("variants")],
    Discriminator(baseline_form),
]


@dataclass(frozen=True)
class Protocol:
    """The evaluations, and the baselines that the recommended setting is compared with.

    evaluate: the tasks that are evaluated after each stage of the final runs: those `seen` so far, the `next`
        one too (for forward transfer), or `all` (for zero-shot transfer). The search evaluates those seen.
        Tasks with `evaluate_only: true` are evaluated after each stage of the final runs in any case, and in
        the search where its objective or a constraint reads them.
    old_data: whether methods may read examples of earlier tasks; `false` refuses every one that does, such as
        replay.
    max_new_tokens: length of the longest answer that the model may give, in tokens.
    selection_split: the split on which settings are chosen; with `test`, the report warns in bold.
    held_out: number of blocks (order and seed) of the final runs that take no part in the choice. Each is a
        new random order with a new seed, so that they are independent. Or a list of orders, as
        `dgg-ray extend` writes them. 0 compares on the search's own orders.
    final_seeds: the seeds of the final runs without held-out blocks; None is the study's seeds. Where each
        order has its own seeds, they are counted per order: 0 is an order's first seed.
    baselines: what the recommended setting is compared with on the final blocks. Strategies run at its rank
        and its buffer, with their defaults, or `{name: l2sp, search: {strategy.strength: [0.1, 1]}, trials:
        12}` with a search of their own. Variants of it are written `LABEL: {dotted path of a setting: value,
        …}`. Baselines from the search are `runner_up`; `constant`, the best value that is the same for all
        tasks; `two_task`, the value that was best after two tasks, kept for all; and `curve_optimum`, each
        task's α where its curve is best for the mean final score, whatever the search's objective.
    """

    __pydantic_config__ = STRICT

    evaluate: Literal["seen", "next", "all"] = "next"
    old_data: bool = True
    max_new_tokens: Annotated[int, Ge(1)] = 16
    selection_split: Literal["validation", "test"] = "validation"
    held_out: Annotated[int, Ge(0), Le(MOST)] | tuple[tuple[str, ...], ...] = 0
    final_seeds: tuple[int, ...] | None = None
    baselines: tuple[Baseline, ...] = ("finetune", "replay", "joint")


@dataclass(frozen=True)
class Workers:
    """The processes that train. A worker group is `group_size` workers that train one stage together.

    groups: largest number of worker groups at once; they start while stages wait, and end when none does.
    group_size: number of workers that train one stage together.
    cpus: CPU cores of each worker.
    gpus: GPUs of each worker; 0 trains on CPUs.
    threads: threads of PyTorch in each worker; 0 leaves the choice to PyTorch.
    engine: how the workers of a group share a stage: `auto` is DDP, or a plain loop for a single worker;
        `zero1` to `zero3` shard the training state with DeepSpeed. The method is the same on all
        (engines.py).
        `simulated` trains nothing: scores and times follow a known response model (simulation.py).
    offload: with ZeRO, keep the optimizer state on the CPU.
    checkpoint_minutes: minutes between mid-stage checkpoints; 0 writes none. One is also written at once when
        a machine is about to be taken away.
    checkpoint_steps: optimizer steps between mid-stage checkpoints; 0 writes none.
    max_retries: number of times that a stage is started again after its worker group was lost, unless it gets
        further each time.
    hang_timeout_minutes: time without a step or a batch of answers after which a worker is ended, and its
        stage counts as lost; 0 is never. The default is far above what a step of any model here takes.
    idle_timeout_s: seconds without work after which a worker group gives its machine back.
    price_per_hour: price of an hour of one worker, in any currency; 0 means not given.
    cache_gb: gigabytes of each node's disk that are used for what is fetched by URL.
    """

    __pydantic_config__ = STRICT

    groups: Annotated[int, Ge(1), Le(MOST)] = 1
    group_size: Annotated[int, Ge(1), Le(MOST)] = 1
    cpus: Annotated[float, Gt(0)] = 1
    gpus: Annotated[float, Ge(0)] = 0
    threads: Annotated[int, Ge(0)] = 1
    engine: Literal["auto", "zero1", "zero2", "zero3", "simulated"] = "auto"
    offload: bool = False
    checkpoint_minutes: Annotated[float, Ge(0)] = 10.0
    checkpoint_steps: Annotated[int, Ge(0)] = 0
    max_retries: Annotated[int, Ge(0)] = 2
    hang_timeout_minutes: Annotated[float, Ge(0)] = 30.0
    idle_timeout_s: Annotated[float, Gt(0)] = 20.0
    price_per_hour: Annotated[float, Ge(0)] = 0.0
    cache_gb: Annotated[float, Gt(0)] = 50.0

    @property
    def zero(self) -> int:
        """The stage of ZeRO; 0 is none."""
        return int(self.engine[-1]) if self.engine.startswith("zero") else 0

    @property
    def setup(self) -> str:
        """Name the hardware and the engine; times measured on one setup do not hold for another."""
        device = f"gpu{self.gpus:g}" if self.gpus else f"cpu{self.threads}"
        return f"{self.group_size}x{device}-{self.engine}{'-offload' * self.offload}"

    def alone(self) -> Workers:
        """Return one process on this machine in place of these workers."""
        engine = "simulated" if self.engine == "simulated" else "auto"
        return replace(self, groups=1, group_size=1, engine=engine, offload=False)


@dataclass(frozen=True)
class Budget:
    """The most that a study may spend, over all its runs; at least one limit. A stage starts only if it is
    predicted to end within it.

    gpu_hours: hours of a GPU, of all workers together.
    worker_hours: hours of a worker, of all of them together.
    money: worker-hours at workers.price_per_hour.
    disk_gb: largest size of the store, in 10⁹ bytes; stages of other studies count too.
    """

    __pydantic_config__ = STRICT

    gpu_hours: Annotated[float, Gt(0)] | None = None
    worker_hours: Annotated[float, Gt(0)] | None = None
    money: Annotated[float, Gt(0)] | None = None
    disk_gb: Annotated[float, Gt(0)] | None = None

    def __str__(self) -> str:
        limits = {
            "GPU-hours": self.gpu_hours,
            "worker-hours": self.worker_hours,
            "money": self.money,
            "GB on disk": self.disk_gb,
        }
        return " or ".join(f"{limit:g} {unit}" for unit, limit in limits.items() if limit)


@dataclass(frozen=True)
class Output:
    """The places of the results.

    store: where finished stages are kept: a folder, or a URL on an object store (`s3://bucket/path`,
        `gs://…`, `abfs://…`) that studies may share. None is DIR/stages.
    trackers: experiment trackers that every setting is reported to while the study runs.
    """

    __pydantic_config__ = STRICT

    store: str | None = None
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()


@dataclass(frozen=True)
class Constraint:
    """A condition: metric ≥ bound + (the metric of `baseline`, if there is one)."""

    metric: str
    baseline: str | None
    bound: float

    @classmethod
    def parse(cls, text: str) -> Constraint | None:
        """Parse a text such as `plasticity >= finetune - 2 points` or `retention >= -2 points`; else None."""
        number = r"(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>points?|%)?"
        match = re.fullmatch(rf"\s*(?P<metric>[\w.:]+)\s*>=\s*(?P<sign>-)?\s*{number}\s*", text)
        if match is None:
            baseline = rf"(?P<baseline>[a-z][\w.:]*)\s*(?:(?P<sign>[+-])\s*{number})?"
            match = re.fullmatch(rf"\s*(?P<metric>[\w.:]+)\s*>=\s*{baseline}\s*", text)
        if match is None:
            return None
        part = match.groupdict()
        bound = float(part["number"] or 0) / (100 if part["unit"] else 1)
        return cls(part["metric"], part.get("baseline"), -bound if part.get("sign") == "-" else bound)


def name_of(parameter: str) -> str:
    """A searched setting as the report prints it: `strategy.alpha.clevr` → `α for clevr`."""
    if parameter == ALPHA:
        return "α"
    if parameter.startswith(f"{ALPHA}."):
        return f"α for {parameter.removeprefix(f'{ALPHA}.')}"
    names = {STRATEGY_NAME: "strategy", "strategy.buffer": "buffer", "adapter.rank": "LoRA rank"}
    return names.get(parameter, parameter)
