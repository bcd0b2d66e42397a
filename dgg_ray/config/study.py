"""A study: one YAML file, checked and frozen. It travels whole; nobody passes its fields around.

Reading the file, and what is said of its faults, stands in `studyfile`; running it in `face`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import MinLen

from dgg_ray.config.sections import (
    FROM_SEARCH,
    SEEDS_APART,
    Budget,
    Orders,
    Output,
    Protocol,
    Search,
    Value,
    Workers,
)
from dgg_ray.config.simulation import Law
from dgg_ray.core import plugins
from dgg_ray.core.interfaces import Adapter, Model, Reader, Strategy, Task, Training, digest, setting_for_key
from dgg_ray.core.orders import design, others
from dgg_ray.core.stage import Data, Evaluation, Run, Stage, WorkItem, path, untouched
from dgg_ray.readers._reading import read
from dgg_ray.storage import fetching
from dgg_ray.storage.stage_store import StageStore

RECENT = 64  # settings whose runs are kept at hand

Setting = Mapping[str, Value]
Block = tuple[tuple[str, ...], int]  # an order of the tasks, a seed


class Known(NamedTuple):
    """What an older study says of a setting.

    setting: what can be used of it here; objectives: its values, none where they are of other tasks.
    depth: tasks of each order that both studies learn alike, where that is all of the older one's, so
        that the stages are there and this study goes on from them; else 0.
    """

    setting: Setting
    objectives: tuple[float, ...] = ()
    depth: int = 0


@dataclass(frozen=True)
class Study:
    """Everything that was asked for. `readers` and `tasks` are by task name, in the file's order.

    tasks: what the keys need of the tasks' content; the examples are read where they are used.
    fingerprint: of the base model.
    likeness: (T, T), how alike the tasks are, in [0, 1] (task_similarity.py); filled for the design `extreme`
    alone.
    warm: settings of the older studies in `search.warm_start_from`, the best first (warm_start.py).
    codes: what each plug-in's source hashed to when the study was checked, by `kind/name` (plugins.codes).
    raw: the file as read; root: the folder that its relative paths start from; home: the file's own.
    fixed: blocks in place of every order with every seed, as the final comparison has them.
    own_seeds: whether each order has seeds of its own, made of `seeds` (`crossed`).
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
    simulation: Law = Law()
    budget: Budget | None = None
    question: str = ""
    tasks: Mapping[str, Data] = field(default_factory=dict)
    fingerprint: str = ""
    likeness: tuple[tuple[float, ...], ...] = ()
    warnings: tuple[str, ...] = ()
    warm: tuple[Known, ...] = ()
    codes: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    root: str = ""
    home: str = ""
    fixed: tuple[Block, ...] | None = None
    own_seeds: bool = False

    # -- settings ----------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.readers)

    def at(self, setting: Mapping[str, Value]) -> Study:
        """The study with these settings, by dotted path, in place of its own."""
        name = tuple(setting.items())
        study = self.recent.pop(name, None)
        if study is None:
            study = self
            for dotted, value in setting.items():
                study = put(study, dotted.split("."), value, self.names)
        self.recent[name] = study
        if len(self.recent) > RECENT:
            del self.recent[next(iter(self.recent))]
        return study

    @cached_property
    def recent(self) -> dict[tuple[tuple[str, Value], ...], Study]:
        """The settings asked for last: a search asks for each many times, and its runs have many keys."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """What was asked for, and nothing that was computed from it: a study is sent to many processes."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def dearest(self) -> Study:
        """The study at the corner of its search space where every number is largest."""
        setting = {
            dotted: parameter.largest
            for path, parameter in (self.search.space if self.search else {}).items()
            for dotted in ([f"{path}.{name}" for name in self.names] if parameter.per_task else [path])
        }
        return self.at(setting)

    def beside(self, baseline: str) -> Study:
        """The study with another strategy, sharing the settings that both have, such as the buffer."""
        cls = plugins.find("strategies", baseline)
        mine = {f.name: getattr(self.strategy, f.name) for f in fields(self.strategy)}  # type: ignore[arg-type]
        shared = {f.name: mine[f.name] for f in fields(cls) if f.name in mine}
        return replace(self, strategy=cls(**shared))

    def compared_settings(self, found: Mapping[str, Setting] | None = None) -> dict[str, Study]:
        """Label → study on the final blocks: this setting under its strategy's name, then the baselines.

        found: settings of the baselines that the search gives, by name; those it lacks are left out.
        """
        baselines: dict[str, Study] = {plugins.name_of(self.strategy): self}
        for baseline in self.protocol.baselines:
            if not isinstance(baseline, str):
                baselines |= {label: self.at(setting) for label, setting in baseline.items()}
            elif baseline not in FROM_SEARCH:
                baselines.setdefault(baseline, self.beside(baseline))
            elif baseline in (found or {}):
                baselines[baseline] = self.at((found or {})[baseline])
        return {label: replace(study, fixed=self.final_blocks) for label, study in baselines.items()}

    def simulated(self) -> Study:
        """The study with a learner that follows its `simulation`; its keys are none of the real ones."""
        fingerprint = digest(["simulated", self.simulation.meaning])
        return replace(self, workers=replace(self.workers, engine="simulated"), fingerprint=fingerprint)

    @cached_property
    def id(self) -> str:
        """8 hex digits, of all that bears on what is learned in a run: equal settings are one."""
        settings = {f.name: setting_for_key(getattr(self.strategy, f.name)) for f in fields(self.strategy)}
        meaning = {
            "strategy": {"name": plugins.name_of(self.strategy), **settings},
            "adapter": asdict(self.adapter),
            "training": asdict(self.training),
            "model": self.fingerprint,
        }
        code = self.code("strategies", plugins.name_of(self.strategy))
        return digest(meaning | ({"code": code} if code else {}))[:8]

    def code(self, kind: str, name: str) -> str:
        """A plug-in's source hash when the study was checked; of now, where none was noted."""
        noted = self.codes.get(f"{kind}/{name}")
        return plugins.code(kind, name) if noted is None else noted

    @property
    def plugged(self) -> list[tuple[str, str]]:
        """(kind, name) of every plug-in that bears on what is learned, or on a score."""
        baselines = [r for r in self.protocol.baselines if isinstance(r, str) and r not in FROM_SEARCH]
        named = [("strategies", name) for name in (plugins.name_of(self.strategy), *baselines)]
        named += [("models", plugins.name_of(self.model))]
        named += [("readers", plugins.name_of(reader)) for reader in self.readers.values()]
        named += [("scorers", data.scorer) for data in self.tasks.values()]
        named += [("metrics", name) for name in (self.search.objective if self.search else ())]
        return list(dict.fromkeys(named))

    def fingerprint_here(self) -> str:
        """Hash the base model as its files and code are on this machine."""
        own, code = self.model.fingerprint(), plugins.code("models", plugins.name_of(self.model))
        if not code:
            return own
        # A fingerprint that was inherited knows nothing of settings that were added.
        settings = {f.name: setting_for_key(getattr(self.model, f.name)) for f in fields(self.model)}  # type: ignore[arg-type]
        return digest([own, code, {k: v for k, v in settings.items() if k not in ("path", "revision")}])

    # -- runs --------------------------------------------------------------------------------------

    @cached_property
    def all_orders(self) -> list[tuple[str, ...]]:
        o = self.orders
        return design(
            o.design, self.names, o.count, o.seed, o.given, o.prefix_length, o.suffixes, self.likeness
        )

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """What a setting is judged on: every order with every seed."""
        if self.fixed is not None:
            return self.fixed
        return self.crossed(self.seeds)

    @property
    def named_blocks(self) -> tuple[tuple[str, int], ...]:
        """The blocks as tables have them: task names joined by " > ", seed."""
        return tuple((" > ".join(order), seed) for order, seed in self.blocks)

    def crossed(self, seeds: Sequence[int], own: bool | None = None) -> tuple[Block, ...]:
        """Every order with every seed. own: whether order i has SEEDS_APART · s + i in place of each seed s;
        None is the study's choice."""
        own = self.own_seeds if own is None else own
        return tuple(
            (order, SEEDS_APART * seed + i if own else seed)
            for i, order in enumerate(self.all_orders)
            for seed in seeds
        )

    @cached_property
    def final_blocks(self) -> tuple[Block, ...]:
        """What the recommended setting and its baselines are compared on."""
        p, fresh = self.protocol, self.protocol.held_out
        if not fresh:
            return self.crossed(p.final_seeds or self.seeds)
        if isinstance(fresh, int):
            fresh = others(self.names, self.all_orders, fresh, self.orders.seed)
        first = (max(self.seeds) + 1) * (SEEDS_APART if self.own_seeds else 1)
        return tuple((order, first + i) for i, order in enumerate(fresh))

    @cached_property
    def every_run(self) -> tuple[Run, ...]:
        known: dict[int, dict[tuple[str, ...], Stage]] = {seed: {} for _, seed in self.blocks}
        return tuple(self.run_of(order, seed, known[seed]) for order, seed in self.blocks)

    def runs(self) -> tuple[Run, ...]:
        """This setting on all its blocks."""
        return self.every_run

    def run_of(
        self, order: tuple[str, ...], seed: int, known: dict[tuple[str, ...], Stage] | None = None
    ) -> Run:
        """known: see `stages.path`."""
        data = [self.tasks[name] for name in order]
        code = self.code("strategies", plugins.name_of(self.strategy))
        stages = path(self.fingerprint, self.adapter, self.training, self.strategy, seed, data, known, code)
        return Run(self.id, order, seed, stages)

    def untouched(self) -> Stage:
        return untouched(self.fingerprint)

    def evaluation(self, task: str, split: str) -> Evaluation:
        return self.every_evaluation[task, split]

    @cached_property
    def every_evaluation(self) -> dict[tuple[str, str], Evaluation]:
        """By task and split."""
        longest, found = self.protocol.max_new_tokens, {}
        for task, data in self.tasks.items():
            code = self.code("scorers", data.scorer)
            for split, content in data.digests.items():
                asked = [content, data.scorer, longest, *([code] if code else [])]
                found[task, split] = Evaluation(task, split, digest(asked))
        return found

    def work_item(self, run: Run, stage: Stage, splits: Sequence[str], scope: str = "seen") -> WorkItem:
        """A stage of a run with its exams; `scope` is one of Protocol.exams."""
        known = len(stage.earlier) + len(stage.trained_tasks)
        until = {"seen": known, "next": known + 1, "all": len(run.order)}[scope]
        # By name, so that the sitting of one stage is the same whichever order asks for it.
        tasks = sorted(run.order[:until])
        name = (stage.key, *splits, *tasks)
        if name not in self.known_work_items:
            evaluations = tuple(self.evaluation(task, split) for split in splits for task in tasks)
            self.known_work_items[name] = WorkItem(stage, evaluations)
        return self.known_work_items[name]

    @cached_property
    def known_work_items(self) -> dict[tuple[str, ...], WorkItem]:
        """All that was asked for: runs of many orders ask for the same."""
        return {}

    def read_tasks(self) -> dict[str, Task]:
        """The tasks with their examples."""
        fetching.within(self.workers.cache_gb)
        return {name: read(reader, name) for name, reader in self.readers.items()}

    def store(self, out: Path) -> StageStore:
        """Where its finished stages are, and go; `out` is the folder that it is run into."""
        return store_at(self.output.store or str(out / "stages"), self.workers.cache_gb)


def store_at(place: str | Path, cache_gb: float | None = None) -> StageStore:
    """The store in a folder or at a URL. cache_gb: of this node's disk, for what is fetched from there."""
    if "://" not in str(place):
        return StageStore(Path(place).expanduser().absolute())
    from dgg_ray.storage.remote_store import CACHE_GB, RemoteStore  # a folder needs none of it

    return RemoteStore(str(place), cache_gb or CACHE_GB)


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


def value_at(study: Study, dotted: str) -> Any:
    """The value of a setting; None where the strategy has no such setting."""
    thing: Any = study
    for step in dotted.split("."):
        if isinstance(thing, Mapping):
            thing = thing.get(step)
        elif not isinstance(thing, float | int | str):  # one value for all tasks stands for each
            thing = getattr(thing, step, None)
    return thing
