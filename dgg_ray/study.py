"""A study: one YAML file, checked and frozen. It travels whole; nobody passes its fields around.

    study = Study.load("studies/quickstart.yaml")
    result = study.run(out="out/quickstart")
    result.table, result.best, result.report()

Reading the file, and what is said of its faults, stands in `studyfile`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt, MinLen

from dgg_ray import orders as designs
from dgg_ray import plugins
from dgg_ray.contracts import STRICT, Adapter, Model, Reader, Strategy, Task, Training, digest
from dgg_ray.stages import Data, Exam, Run, Stage, Work, path, untouched

if TYPE_CHECKING:
    from dgg_ray.results import Outcome

Value = float | int | str | bool


@dataclass(frozen=True)
class Orders:
    """Which orders of the tasks: `given` ones, `all`, or `count` `random` ones."""

    __pydantic_config__ = STRICT

    design: Literal["given", "all", "random"] = "given"
    count: Annotated[int, Ge(1)] = 1
    seed: int = 0
    given: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Knob:
    """One searched setting: a list of values, or a range; between whole numbers, of whole numbers.

    per_task: one value for each task, by name, instead of one for all.
    """

    __pydantic_config__ = STRICT

    values: Annotated[tuple[Value, ...], MinLen(1)] | None = None
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    per_task: bool = False


@dataclass(frozen=True)
class Search:
    """How settings are proposed and judged.

    space: dotted path of a setting → its Knob.
    trials: settings proposed; `grid` ignores it and tries every combination.
    objective: metrics to maximise, mean over the blocks, on the validation split.
    parallel: settings judged at once. Setting n is proposed knowing those up to n - parallel, whatever
        the machine's speed, so that a study repeats exactly.
    """

    __pydantic_config__ = STRICT

    space: Mapping[str, Knob]
    trials: Annotated[int, Ge(1)] = 20
    objective: Annotated[tuple[str, ...], MinLen(1)] = ("faa",)
    sampler: Literal["tpe", "random", "grid", "nsga2"] = "tpe"
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0
    parallel: Annotated[int, Ge(1)] = 2


@dataclass(frozen=True)
class Protocol:
    """What is examined, and what the winner is compared with.

    exams: tasks examined after each stage of the final runs: those `seen`, the `next` one too (for
        forward transfer), or `all`. Searching examines those seen.
    max_new_tokens: longest answer, in tokens.
    final_seeds: seeds of the final runs, on test; None is the study's seeds. Others than the
        search's are a check that the choice was not luck.
    rivals: what the recommended setting is compared with on the final blocks. Strategies, at its rank
        and its buffer; or variants of it, `LABEL: {dotted path of a setting: value, …}`.
    """

    __pydantic_config__ = STRICT

    exams: Literal["seen", "next", "all"] = "next"
    max_new_tokens: Annotated[int, Ge(1)] = 16
    final_seeds: tuple[int, ...] | None = None
    rivals: tuple[str | Mapping[str, Mapping[str, Value]], ...] = ("finetune", "replay", "joint")


@dataclass(frozen=True)
class Workers:
    """Who trains. A fleet is `per_fleet` workers that learn one stage together.

    fleets: most fleets at once; they start as stages wait and end when none does.
    cpus, gpus: of each worker.
    threads: of PyTorch in each worker; 0 leaves the choice to PyTorch.
    engine: how a fleet's workers share a stage: `auto` is DDP, or plain where one works alone; `zero1`
        to `zero3` shard it with DeepSpeed. The method is the same on all (engines.py).
    offload: with ZeRO, keep the optimizer's memory on the CPU.
    snapshot_minutes, snapshot_steps: how often a stage is kept in its middle; 0 is never. It is kept
        at once, too, when a machine is about to be taken away.
    retries: times a stage is taken up again after its fleet was lost.
    idle_s: seconds without work after which a fleet gives its machine back.
    price_per_hour: of one worker, in any currency; 0 is not given.
    """

    __pydantic_config__ = STRICT

    fleets: Annotated[int, Ge(1)] = 1
    per_fleet: Annotated[int, Ge(1)] = 1
    cpus: Annotated[float, Gt(0)] = 1
    gpus: Annotated[float, Ge(0)] = 0
    threads: Annotated[int, Ge(0)] = 1
    engine: Literal["auto", "zero1", "zero2", "zero3"] = "auto"
    offload: bool = False
    snapshot_minutes: Annotated[float, Ge(0)] = 10.0
    snapshot_steps: Annotated[int, Ge(0)] = 0
    retries: Annotated[int, Ge(0)] = 2
    idle_s: Annotated[float, Gt(0)] = 20.0
    price_per_hour: Annotated[float, Ge(0)] = 0.0

    @property
    def zero(self) -> int:
        """Stage of ZeRO; 0 is none."""
        return int(self.engine[-1]) if self.engine.startswith("zero") else 0

    @property
    def setup(self) -> str:
        """Who shares a stage, on what and how: seconds measured on one setup tell nothing of another."""
        device = f"gpu{self.gpus:g}" if self.gpus else f"cpu{self.threads}"
        return f"{self.per_fleet}x{device}-{self.engine}{'-offload' * self.offload}"

    def alone(self) -> Workers:
        """One process on this machine in their place."""
        return replace(self, fleets=1, per_fleet=1, engine="auto", offload=False)


@dataclass(frozen=True)
class Budget:
    """The most that a study may spend, over all its runs; at least one. No stage starts that is not
    predicted to end within it.

    gpu_hours: hours of a GPU, of all workers together; worker_hours: the same, of workers.
    money: worker-hours at workers.price_per_hour.
    """

    __pydantic_config__ = STRICT

    gpu_hours: Annotated[float, Gt(0)] | None = None
    worker_hours: Annotated[float, Gt(0)] | None = None
    money: Annotated[float, Gt(0)] | None = None

    def __str__(self) -> str:
        said = {"GPU-hours": self.gpu_hours, "worker-hours": self.worker_hours, "money": self.money}
        return " or ".join(f"{cap:g} {unit}" for unit, cap in said.items() if cap)


@dataclass(frozen=True)
class Output:
    """Where finished stages go: `store`, a folder that studies may share; None is DIR/stages."""

    __pydantic_config__ = STRICT

    store: Path | None = None


@dataclass(frozen=True)
class Study:
    """Everything that was asked for. `readers` and `tasks` are by task name, in the file's order.

    tasks: what the keys need of the tasks' content; the examples are read where they are used.
    fingerprint: of the base model.
    raw: the file as read; root: the folder that its relative paths start from.
    """

    name: str
    model: Model
    readers: Mapping[str, Reader]
    strategy: Strategy
    adapter: Adapter = Adapter()
    training: Training = Training()
    orders: Orders = Orders()
    seeds: Annotated[tuple[int, ...], MinLen(1)] = (0,)
    search: Search | None = None
    protocol: Protocol = Protocol()
    workers: Workers = Workers()
    output: Output = Output()
    budget: Budget | None = None
    question: str = ""
    tasks: Mapping[str, Data] = field(default_factory=dict)
    fingerprint: str = ""
    warnings: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    root: str = ""

    # -- the face ----------------------------------------------------------------------------------

    @staticmethod
    def load(path: str | Path, data: str | Path | None = None) -> Study:
        """The study in a YAML file, its data read and checked; StudyError holds every fault.

        data: folder that the tasks' relative paths start from; by default the environment's
        DGG_RAY_DATA, or else the study file's own folder.
        """
        from dgg_ray import studyfile  # the reader knows the study, so the study meets it late

        return studyfile.load(Path(path), data)

    def run(self, out: str | Path, local: bool = False) -> Outcome:
        """Run or continue the study; everything that is in the store already is taken from there.

        local: in this process, without Ray; the results are the same.
        """
        from dgg_ray import tune

        return tune.run(self, Path(out), local=local)

    # -- settings ----------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.readers)

    def at(self, setting: Mapping[str, Value]) -> Study:
        """The study with these settings, by dotted path, in place of its own."""
        study = self
        for dotted, value in setting.items():
            study = put(study, dotted.split("."), value, self.names)
        return study

    def beside(self, rival: str) -> Study:
        """The study with another strategy, sharing the settings that both have, such as the buffer."""
        cls = plugins.find("strategies", rival)
        mine = {f.name: getattr(self.strategy, f.name) for f in fields(self.strategy)}  # type: ignore[arg-type]
        shared = {f.name: mine[f.name] for f in fields(cls) if f.name in mine}
        return replace(self, strategy=cls(**shared))

    def contenders(self) -> dict[str, Study]:
        """Label → study: this setting under its strategy's name, then the rivals; on the final blocks."""
        found: dict[str, Study] = {plugins.name_of(self.strategy): self}
        for rival in self.protocol.rivals:
            if isinstance(rival, str):
                found.setdefault(rival, self.beside(rival))
            else:
                found |= {label: self.at(setting) for label, setting in rival.items()}
        seeds = self.protocol.final_seeds or self.seeds
        return {label: replace(study, seeds=seeds) for label, study in found.items()}

    @cached_property
    def id(self) -> str:
        """8 hex digits, of all that bears on what is learned in a run: equal settings are one."""
        meaning = {
            "strategy": {"name": plugins.name_of(self.strategy), **asdict(self.strategy)},
            "adapter": asdict(self.adapter),
            "training": asdict(self.training),
            "model": self.fingerprint,
        }
        return digest(meaning)[:8]

    # -- runs --------------------------------------------------------------------------------------

    @cached_property
    def all_orders(self) -> list[tuple[str, ...]]:
        o = self.orders
        return designs.design(o.design, self.names, o.count, o.seed, o.given)

    def runs(self, seeds: Sequence[int] | None = None) -> list[Run]:
        """This setting over all blocks: every order with every seed."""
        return [self.run_of(order, seed) for order in self.all_orders for seed in seeds or self.seeds]

    def run_of(self, order: tuple[str, ...], seed: int) -> Run:
        data = [self.tasks[name] for name in order]
        stages = path(self.fingerprint, self.adapter, self.training, self.strategy, seed, data)
        return Run(self.id, order, seed, stages)

    def untouched(self) -> Stage:
        return untouched(self.fingerprint)

    def exam(self, task: str, split: str) -> Exam:
        data = self.tasks[task]
        key = digest([data.digests[split], data.scorer, self.protocol.max_new_tokens])
        return Exam(task, split, key)

    def work(self, run: Run, stage: Stage, splits: Sequence[str], scope: str = "seen") -> Work:
        """A stage of a run with its exams; `scope` is one of Protocol.exams."""
        known = len(stage.earlier) + len(stage.learns)
        until = {"seen": known, "next": known + 1, "all": len(run.order)}[scope]
        # By name, so that the sitting of one stage is the same whichever order asks for it.
        tasks = sorted(run.order[:until])
        return Work(stage, tuple(self.exam(task, split) for split in splits for task in tasks))

    def read_tasks(self) -> dict[str, Task]:
        """The tasks with their examples."""
        return {name: reader.read(name) for name, reader in self.readers.items()}

    def store_folder(self, out: Path) -> Path:
        return self.output.store or out / "stages"


def put(thing: Any, steps: Sequence[str], value: Value, tasks: Sequence[str]) -> Any:
    """A copy of a nest of dataclasses with one field changed; KeyError names a step that is not there.

    A step that is a task's name turns one value for all tasks into a value for each.
    """
    head, *rest = steps
    if isinstance(thing, Mapping):
        if head not in tasks:
            raise KeyError(head)
        return {**thing, head: value}
    if not is_dataclass(thing) or head not in (f.name for f in fields(thing)):
        raise KeyError(head)
    now = getattr(thing, head)
    if rest and rest[0] in tasks and not isinstance(now, Mapping) and not is_dataclass(now):
        now = dict.fromkeys(tasks, now)
    return replace(thing, **{head: put(now, rest, value, tasks) if rest else value})  # type: ignore[type-var]
