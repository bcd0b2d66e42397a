"""The sections of a study file, frozen: each field is a setting, checked against its bounds on reading."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from dgg_ray.core.errors import STRICT

Value = float | int | str | bool
ALPHA = "strategy.alpha"
MOST = 10_000  # orders, seeds, blocks: more would take longer to list than anybody waits
FROM_SEARCH = ("runner_up", "constant", "two_task", "curve_optimum")  # baselines that the search itself gives


@dataclass(frozen=True)
class Orders:
    """Which orders of the tasks are learned; `dgg-ray plan` compares the designs, orders.py defines them.

    design: how the orders are made: `given` ones, or the file's own; `all`; `random` ones; a Latin square:
        `cyclic`, from the file's order, `latin`, drawn, or `williams`, balanced for what stands right before;
        `shared_prefix`, whose beginnings serve several orders, which saves stages; `extreme`, by the
        likeness of the examples.
    count: number of orders; None is 1 `random` one, one square of `latin`, the whole of another design. Fewer
        rows than a square's are allowed, and not balanced. More of them keep those that were there.
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
    """Seeds that no two orders share; `seeds: per_order` in a study is one for each.

    per_order: seeds of each order. With SEEDS_APART in between, seed s of order i is SEEDS_APART · s + i, so
        that more orders, or more seeds of each, keep the blocks that were there.
    """

    __pydantic_config__ = STRICT

    per_order: Annotated[int, Ge(1), Le(1000)] = 1


SEEDS_APART = 1000  # and the most orders that can have seeds of their own


@dataclass(frozen=True)
class SearchParameter:
    """One searched setting: a list of values, or a range; between whole numbers, of whole numbers.

    values: the values to try, in a list.
    low: the lower end of a range.
    high: the upper end of a range.
    log: whether a range is searched on a logarithmic scale.
    per_task: whether each task has a value of its own, by name, instead of one for all.
    """

    __pydantic_config__ = STRICT

    values: Annotated[tuple[Value, ...], MinLen(1)] | None = None
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    per_task: bool = False

    @property
    def largest(self) -> Value:
        """Its largest number; where it has none, its first value."""
        values = [value for value in self.values or (self.high,) if value is not None]
        return max(values, key=lambda value: value if isinstance(value, int | float) else 0)


@dataclass(frozen=True)
class Search:
    """How settings are proposed and judged: on the validation split, each metric a mean over the blocks.

    space: what is searched: the dotted path of a setting, such as `strategy.alpha`, with a list of values or
        a range `{low, high, log}`; `{per_task: …}` around either searches a value for each task.
    method: how values are proposed: `stagewise` tries values at each task on the best states so far, which
        takes for granted that what one task's value does hangs little on the others' (stagewise.py). `tpe`,
        `nsga2` (Optuna), `random` and `grid`, every combination, propose whole settings.
    trials: number of whole settings proposed; `grid` and `stagewise` have no use for it.
    objective: metrics to maximise; several give a Pareto front.
    constraints: conditions that the chosen setting must meet too, such as `plasticity >= finetune - 2
        points` (objective.py).
    seed: the seed of the search's own draws.
    parallel: number of whole settings judged at once. Setting n is proposed knowing those up to n - parallel,
        whatever the machine's speed, so that a study repeats exactly.
    prune_level: level at which a setting that is behind is given up after a block or a task (pruning.py); at
        most this share of the best settings is lost to it, if all scatter alike from order to order. The
        seeds of several orders make it no quicker. None judges all on every block.
    beam: for `stagewise`, number of states kept at each task.
    values_per_task: for `stagewise`, number of values tried on each state.
    global_candidates: for `stagewise`, number of combinations of the settings that are not per task, halved along the
        tasks.
    audit_fraction: for `stagewise`, share of the stages spent on finishing branches that were dropped.
    warm_start_from: results folders of finished studies whose best settings are tried first; of one that this
        study extends by a task, all of them (warm_start.py).
    """

    __pydantic_config__ = STRICT

    space: Mapping[str, SearchParameter]
    method: Literal["tpe", "random", "grid", "nsga2", "stagewise"] = "tpe"
    trials: Annotated[int, Ge(1), Le(10 * MOST)] = 20
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


@dataclass(frozen=True)
class Protocol:
    """What is examined, and what the winner is compared with.

    evaluate: which tasks are evaluated after each stage of the final runs: those `seen`, the `next` one too (for
        forward transfer), or `all`. The search evaluates those seen.
    max_new_tokens: length of the longest answer that the model may give, in tokens.
    selection_split: the split on which settings are chosen; with `test` the report says so in bold.
    held_out: number of blocks (order and seed) of the final runs that took no part in the choice, each a
        new random order with a new seed, so that they are independent; or these orders as lists of task
        names, as `dgg-ray extend` writes them. 0 compares on the search's orders.
    final_seeds: without held-out blocks, the seeds of the final runs; None is the study's seeds. Where each
        order has its own seeds, these are made its own too: 0 is its first.
    baselines: what the recommended setting is compared with on the final blocks. Strategies, at its rank
        and its buffer; variants of it, `LABEL: {dotted path of a setting: value, …}`; and what the search
        itself could have given: `runner_up`, `constant` (the best value that is the same for all
        tasks), `two_task` (the value that was best after two tasks, kept for all), `curve_optimum` (each
        task's α where its curve is best for the mean final score, whatever the search's objective).
    """

    __pydantic_config__ = STRICT

    evaluate: Literal["seen", "next", "all"] = "next"
    max_new_tokens: Annotated[int, Ge(1)] = 16
    selection_split: Literal["validation", "test"] = "validation"
    held_out: Annotated[int, Ge(0), Le(MOST)] | tuple[tuple[str, ...], ...] = 0
    final_seeds: tuple[int, ...] | None = None
    baselines: tuple[str | Mapping[str, Mapping[str, Value]], ...] = ("finetune", "replay", "joint")


@dataclass(frozen=True)
class Workers:
    """Who trains. A fleet is `group_size` workers that learn one stage together.

    groups: largest number of fleets (worker groups) at once; they start as stages wait and end when none
        does.
    group_size: number of workers that train one stage together.
    cpus: CPU cores of each worker.
    gpus: GPUs of each worker; 0 trains on CPUs.
    threads: threads of PyTorch in each worker; 0 leaves the choice to PyTorch.
    engine: how a fleet's workers share a stage: `auto` is DDP, or plain where one works alone; `zero1`
        to `zero3` shard it with DeepSpeed. The method is the same on all (engines.py). `simulated`
        learns nothing: scores and times follow a known law (simulated.py).
    offload: with ZeRO, keep the optimizer's memory on the CPU.
    checkpoint_minutes: minutes after which a stage is kept in its middle; 0 is never. It is kept at once,
        too, when a machine is about to be taken away.
    checkpoint_steps: optimizer steps after which a stage is kept in its middle; 0 is never.
    max_retries: number of times that a stage is taken up again after its fleet was lost, unless it gets further
        each time.
    hang_timeout_minutes: time without any step or batch of answers after which a worker is ended, and its stage
        counts as lost; 0 is never. The default is far above what a step of any model here takes.
    idle_timeout_s: seconds without work after which a fleet gives its machine back.
    price_per_hour: price of an hour of one worker, in any currency; 0 is not given.
    cache_gb: gigabytes of each node's disk that are used for what was fetched by URL.
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
        """Stage of ZeRO; 0 is none."""
        return int(self.engine[-1]) if self.engine.startswith("zero") else 0

    @property
    def setup(self) -> str:
        """Who shares a stage, on what and how: seconds measured on one setup tell nothing of another."""
        device = f"gpu{self.gpus:g}" if self.gpus else f"cpu{self.threads}"
        return f"{self.group_size}x{device}-{self.engine}{'-offload' * self.offload}"

    def alone(self) -> Workers:
        """One process on this machine in their place."""
        engine = "simulated" if self.engine == "simulated" else "auto"
        return replace(self, groups=1, group_size=1, engine=engine, offload=False)


@dataclass(frozen=True)
class Budget:
    """The most that a study may spend, over all its runs; at least one. No stage starts that is not
    predicted to end within it.

    gpu_hours: hours of a GPU, of all workers together.
    worker_hours: hours of a worker, of all of them together.
    money: worker-hours at workers.price_per_hour.
    disk_gb: largest size of the store, in 10⁹ bytes, whoever filled it: other studies' stages count too.
    """

    __pydantic_config__ = STRICT

    gpu_hours: Annotated[float, Gt(0)] | None = None
    worker_hours: Annotated[float, Gt(0)] | None = None
    money: Annotated[float, Gt(0)] | None = None
    disk_gb: Annotated[float, Gt(0)] | None = None

    def __str__(self) -> str:
        said = {"GPU-hours": self.gpu_hours, "worker-hours": self.worker_hours, "money": self.money}
        said["GB on disk"] = self.disk_gb
        return " or ".join(f"{cap:g} {unit}" for unit, cap in said.items() if cap)


@dataclass(frozen=True)
class Output:
    """Where results go.

    store: where finished stages are kept: a folder, or the URL of a place on an object store,
        `s3://bucket/path`, `gs://…`, `abfs://…`, that studies may share; None is DIR/stages.
    trackers: experiment trackers that are told of every setting while the study runs (trackers.py).
    """

    __pydantic_config__ = STRICT

    store: str | None = None
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()


@dataclass(frozen=True)
class Constraint:
    """metric ≥ bound + (the metric of `baseline`, where there is one)."""

    metric: str
    baseline: str | None
    bound: float

    @classmethod
    def parse(cls, text: str) -> Constraint | None:
        """`plasticity >= finetune - 2 points`, `faa >= replay`, `stability >= 60 %`; None for other texts."""
        number = r"(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>points?|%)?"
        found = re.fullmatch(rf"\s*(?P<metric>[\w.:]+)\s*>=\s*{number}\s*", text)
        if found is None:
            baseline = rf"(?P<rival>[a-z][\w.:]*)\s*(?:(?P<sign>[+-])\s*{number})?"
            found = re.fullmatch(rf"\s*(?P<metric>[\w.:]+)\s*>=\s*{baseline}\s*", text)
        if found is None:
            return None
        part = found.groupdict()
        bound = float(part["number"] or 0) / (100 if part["unit"] else 1)
        return cls(part["metric"], part.get("rival"), -bound if part.get("sign") == "-" else bound)


def name_of(parameter: str) -> str:
    """A searched setting as the report prints it: `strategy.alpha.clevr` → `α for clevr`."""
    if parameter == ALPHA:
        return "α"
    if parameter.startswith(f"{ALPHA}."):
        return f"α for {parameter.removeprefix(f'{ALPHA}.')}"
    return {"strategy.buffer": "buffer", "adapter.rank": "LoRA rank"}.get(parameter, parameter)
