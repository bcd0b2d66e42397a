"""A study: one YAML file, checked and frozen.

    Study      what the file says: model, tasks, strategy, orders, seeds, search, workers …
    StudyFile  the text that it was read from
    StudyData  what was found when it was checked: content of the tasks, fingerprint of the model …
    StudyRuns  the runs that follow from it, with their stages, evaluations and work items

`dgg_ray.load_study` builds a study, `dgg_ray.run_study` runs it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple, overload

from annotated_types import MinLen

from dgg_ray.config.decisions import Decision, pinned_label, pinned_settings
from dgg_ray.config.search_space import largest_values, searched_strategies
from dgg_ray.config.sections import (
    FROM_SEARCH,
    SEEDS_APART,
    STRATEGY_NAME,
    Budget,
    Orders,
    Output,
    Protocol,
    Search,
    TunedBaseline,
    Value,
    Workers,
)
from dgg_ray.config.setting_paths import with_value
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.core import plugins
from dgg_ray.core.hashing import digest
from dgg_ray.core.interfaces import Adapter, Model, Reader, Task, Training
from dgg_ray.core.orders import design, held_out_orders
from dgg_ray.core.scores import reads_outside
from dgg_ray.core.stage import (
    Evaluation,
    Run,
    Stage,
    StageSettings,
    TaskData,
    WorkItem,
    stages_of_run,
    untouched_stage,
)
from dgg_ray.core.strategy import Strategy, setting_for_key
from dgg_ray.readers._task_reading import read_task
from dgg_ray.storage import fetching
from dgg_ray.storage.stage_store import StageStore, open_store

STUDY_NAME = re.compile(r"\w[\w. -]*")  # of a study: it names a folder, and its documents in a store
CACHED_SETTINGS = 64  # a search asks for each setting many times, and its runs have many keys

Setting = Mapping[str, Value]
Block = tuple[tuple[str, ...], int]  # an order of the tasks, a seed
Chain = list[WorkItem]  # each item starts from the state that the one before it leaves


class WarmStart(NamedTuple):
    """A setting of an older study that this one tries first.

    setting: the values that can be used here.
    objectives: the values that it reached there; none where they are of other tasks.
    depth: number of leading tasks of each order that the older study trained exactly so, which this one
        takes from the store; 0 if it did not train all of its tasks so.
    """

    setting: Setting
    objectives: tuple[float, ...] = ()
    depth: int = 0


@dataclass(frozen=True)
class StudyFile:
    """The text that a study was read from.

    content: the YAML as a mapping.
    folder: the folder that its relative paths start from.
    home: the file's own folder, in which plug-ins are looked for.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""
    home: str = ""


@dataclass(frozen=True)
class StudyData:
    """The findings of a check of a study.

    tasks: digests and sizes of each task's splits; the examples are read where they are used.
    fingerprint: a hash of the base model.
    similarity: (T, T), how similar the tasks are, in [0, 1]; filled for the order design `extreme` alone.
    source_hashes: a hash of each plug-in's source, by `kind/name`.
    warm_starts: settings of the studies in `search.warm_start_from`, the best first.
    warnings: what a person should know before the study runs.
    decisions: what people decided about the study since, as its store has them.
    """

    tasks: Mapping[str, TaskData] = field(default_factory=dict)
    fingerprint: str = ""
    similarity: tuple[tuple[float, ...], ...] = ()
    source_hashes: Mapping[str, str] = field(default_factory=dict)
    warm_starts: tuple[WarmStart, ...] = ()
    warnings: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True)
class Study:
    """The content of a study file, and the findings of its check.

    readers: the reader of each task, by the task's name, in the file's order.
    evaluate_only: names of the tasks that are evaluated and never trained; no order holds them.
    own_seeds: whether each order has seeds of its own, made from `seeds` (see `blocks_of`).
    """

    name: str
    model: Model
    readers: Mapping[str, Reader]
    strategy: Strategy
    evaluate_only: tuple[str, ...] = ()
    adapter: Adapter = Adapter()
    training: Training = Training()
    orders: Orders = Orders()
    seeds: Annotated[tuple[int, ...], MinLen(1)] = (0,)
    own_seeds: bool = False
    search: Search | None = None
    protocol: Protocol = Protocol()
    workers: Workers = Workers()
    output: Output = Output()
    simulation: ResponseModel = ResponseModel()
    budget: Budget | None = None
    question: str = ""
    data: StudyData = StudyData()
    file: StudyFile = field(default_factory=StudyFile, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """The fields, and nothing that was computed from them: a study is sent to many processes."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks that are trained, which every order holds; `readers` has those only evaluated too."""
        return tuple(name for name in self.readers if name not in self.evaluate_only)

    @cached_property
    def evaluated_outside(self) -> tuple[str, ...]:
        """The evaluate-only tasks that the search must evaluate: all if its metrics read them, else none."""
        if self.search is None or not self.evaluate_only:
            return ()
        known = (name for name in self.search.metrics if not plugins.lookup_faults("metrics", name))
        return self.evaluate_only if any(reads_outside(plugins.find("metrics", m)) for m in known) else ()

    # -- settings ----------------------------------------------------------------------------------

    def at(self, setting: Setting) -> Study:
        """Return the study with these values, by dotted path, in place of its own."""
        key = tuple(setting.items())
        study = self._at_settings.pop(key, None)
        if study is None:
            name = setting.get(STRATEGY_NAME)
            study = self
            if name is not None and name != plugins.plugin_name(self.strategy):
                study = self.with_strategy(str(name))
            for path, value in setting.items():
                if path != STRATEGY_NAME:
                    study = with_value(study, path.split("."), value, self.task_names)
        self._at_settings[key] = study  # the one asked for last stands last
        if len(self._at_settings) > CACHED_SETTINGS:
            del self._at_settings[next(iter(self._at_settings))]
        return study

    @cached_property
    def _at_settings(self) -> dict[tuple[tuple[str, Value], ...], Study]:
        return {}

    @property
    def most_expensive(self) -> Study:
        """The study at the corner of its search space where every number is largest.

        Where the strategy is searched too, it is the one that replays the most examples.
        """
        sizes = {name: data.sizes["train"] for name, data in self.data.tasks.items()}
        corners = map(self.at, largest_values(self.search.space if self.search else {}, self.task_names))
        return max(corners, key=lambda study: sum(study.strategy.replayed_examples(sizes).values()))

    def with_strategy(self, name: str) -> Study:
        """Return the study with another strategy, sharing the settings that mean the same in both.

        These are the buffer, and what both inherit from one class. Any other setting of the same name, such
        as a strength, may have another unit, and has its default.
        """
        cls = plugins.find("strategies", name)
        common = [base for base in type(self.strategy).__mro__ if base in cls.__mro__ and is_dataclass(base)]
        shared = {"buffer", *(f.name for base in common for f in fields(base))}
        own = {f.name: getattr(self.strategy, f.name) for f in fields(self.strategy) if f.name in shared}  # type: ignore[arg-type]
        return replace(self, strategy=cls(**{f.name: own[f.name] for f in fields(cls) if f.name in own}))

    @property
    def strategy_names(self) -> tuple[str, ...]:
        """The strategies that the recommended setting may have: its own, or those that are searched."""
        searched = searched_strategies(self.search.space) if self.search else ()
        return searched or (plugins.plugin_name(self.strategy),)

    @property
    def chooses(self) -> bool:
        """Return whether settings are chosen: by the study's search, or by that of a baseline."""
        return self.search is not None or bool(self.tuned_baselines)

    @property
    def tuned_baselines(self) -> tuple[TunedBaseline, ...]:
        """The baselines with a search of their own."""
        return tuple(b for b in self.protocol.baselines if isinstance(b, TunedBaseline))

    @property
    def baseline_strategies(self) -> tuple[str, ...]:
        """The strategies of the baselines that are named by their strategy, tuned or not."""
        names = (b.name if isinstance(b, TunedBaseline) else b for b in self.protocol.baselines)
        return tuple(name for name in names if isinstance(name, str) and name not in FROM_SEARCH)

    @property
    def pinned(self) -> dict[str, Setting]:
        """Label → the settings that are pinned."""
        pins = pinned_settings(self.data.decisions)
        return {pinned_label(setting): pin.values for setting, pin in pins.items()}

    @property
    def fixed_settings(self) -> list[Setting]:
        """The values that baselines set by hand."""
        settings: list[Setting] = []
        for baseline in self.protocol.baselines:
            if isinstance(baseline, TunedBaseline):
                settings.append(baseline.settings)
            elif isinstance(baseline, Mapping):
                settings += baseline.values()
        return settings

    def compared_settings(self, from_search: Mapping[str, Study] | None = None) -> dict[str, StudyRuns]:
        """Label → runs on the final blocks: this setting under its strategy's name, then the baselines.

        from_search: the study at the settings of the baselines that a search gives, and at those that are
            pinned, by label; one without is left out.
        """
        known = from_search or {}
        compared: dict[str, Study] = {plugins.plugin_name(self.strategy): self}
        for baseline in self.protocol.baselines:
            label = baseline.title if isinstance(baseline, TunedBaseline) else baseline
            if isinstance(label, str) and label in known:
                compared[label] = known[label]
            elif isinstance(baseline, Mapping):
                compared |= {label: self.at(setting) for label, setting in baseline.items()}
            elif isinstance(baseline, str) and baseline not in FROM_SEARCH:
                compared.setdefault(baseline, self.with_strategy(baseline))
        compared |= {label: known[label] for label in self.pinned if label in known}
        return {label: StudyRuns(study, self.final_blocks) for label, study in compared.items()}

    def simulated(self) -> Study:
        """Return the study with a simulated learner; its stage keys are none of the real ones."""
        fingerprint = digest(["simulated", self.simulation.meaning])
        workers = replace(self.workers, engine="simulated")
        return replace(self, workers=workers, data=replace(self.data, fingerprint=fingerprint))

    @cached_property
    def id(self) -> str:
        """8 hex digits, a hash of everything that bears on what a run trains: equal settings share it."""
        settings = {f.name: setting_for_key(getattr(self.strategy, f.name)) for f in fields(self.strategy)}
        adapter_settings = asdict(self.adapter)
        if self.adapter.budget == "trainable":
            del adapter_settings["budget"]  # so that ids are as they were before there was a choice
        meaning = {
            "strategy": {"name": plugins.plugin_name(self.strategy), **settings},
            "adapter": adapter_settings,
            "training": asdict(self.training),
            "model": self.data.fingerprint,
        }
        code = self.source_hash("strategies", plugins.plugin_name(self.strategy))
        return digest(meaning | ({"code": code} if code else {}))[:8]

    @property
    def stage_adapter(self) -> Adapter:
        """The adapter that each stage trains: of the rank that the strategy's layout gives it."""
        layout = self.strategy.layout()
        if layout is None:
            return self.adapter
        rank = layout.rank_for(self.adapter.rank, len(self.task_names), self.adapter.budget)
        return self.adapter.with_rank(rank)

    # -- plug-ins ----------------------------------------------------------------------------------

    def source_hash(self, kind: str, name: str) -> str:
        """Hash of a plug-in's source when the study was checked; of today's source where none is known."""
        known = self.data.source_hashes.get(f"{kind}/{name}")
        return plugins.plugin_hash(kind, name) if known is None else known

    @property
    def plugins_used(self) -> list[tuple[str, str]]:
        """(kind, name) of every plug-in that bears on what is trained, or on a score."""
        own = plugins.plugin_name(self.strategy)
        names = (own, *self.strategy_names, *self.baseline_strategies)
        used = [("strategies", name) for name in names]
        used += [("models", plugins.plugin_name(self.model))]
        used += [("readers", plugins.plugin_name(reader)) for reader in self.readers.values()]
        used += [("scorers", data.scorer) for data in self.data.tasks.values()]
        used += [("metrics", name) for name in (self.search.objective if self.search else ())]
        return list(dict.fromkeys(used))

    @property
    def outside_plugins(self) -> list[tuple[str, str]]:
        """(kind, name) of those from outside this package; scorers also before the data were read."""
        scorers = [("scorers", name) for r in self.readers.values() if (name := getattr(r, "scorer", ""))]
        missing = plugins.plugin_name(None)  # a synthetic study has neither a model nor readers
        used = dict.fromkeys([*self.plugins_used, *scorers])
        return [(kind, name) for kind, name in used if plugins.is_outside(kind, name) and name != missing]

    def local_fingerprint(self) -> str:
        """Hash the base model as its files and code are on this machine."""
        own, code = self.model.fingerprint(), plugins.plugin_hash("models", plugins.plugin_name(self.model))
        if not code:
            return own
        # An inherited fingerprint does not cover the settings that a subclass added.
        settings = {f.name: setting_for_key(getattr(self.model, f.name)) for f in fields(self.model)}  # type: ignore[arg-type]
        return digest([own, code, {k: v for k, v in settings.items() if k not in ("path", "revision")}])

    # -- orders and blocks -------------------------------------------------------------------------

    @cached_property
    def all_orders(self) -> list[tuple[str, ...]]:
        """The orders that the study file asks for."""
        orders = self.orders
        return design(
            orders.design,
            self.task_names,
            orders.count,
            seed=orders.seed,
            given=orders.given,
            prefix_length=orders.prefix_length,
            suffixes=orders.suffixes,
            similarity=self.data.similarity,
        )

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks on which settings are compared during the search: every order with every seed."""
        return self.blocks_of(self.seeds)

    def blocks_of(self, seeds: Sequence[int], own: bool | None = None) -> tuple[Block, ...]:
        """Combine every order with every seed.

        own: whether order i has the seed SEEDS_APART · s + i in place of each seed s; None is the study's
            choice.
        """
        own = self.own_seeds if own is None else own
        return tuple(
            (order, SEEDS_APART * seed + i if own else seed)
            for i, order in enumerate(self.all_orders)
            for seed in seeds
        )

    @cached_property
    def final_blocks(self) -> tuple[Block, ...]:
        """The blocks on which the recommended setting and its baselines are compared."""
        p, held_out = self.protocol, self.protocol.held_out
        if not held_out:
            return self.blocks_of(p.final_seeds or self.seeds)
        if isinstance(held_out, int):
            held_out = held_out_orders(self.task_names, self.all_orders, held_out, self.orders.seed)
        first = (max(self.seeds) + 1) * (SEEDS_APART if self.own_seeds else 1)
        return tuple((order, first + i) for i, order in enumerate(held_out))

    @property
    def named_blocks(self) -> tuple[tuple[str, int], ...]:
        """The search's blocks as tables have them: task names joined by " > ", seed."""
        return tuple((" > ".join(order), seed) for order, seed in self.blocks)

    @cached_property
    def runs(self) -> StudyRuns:
        """The runs of this setting on the blocks of the search."""
        return StudyRuns(self, self.blocks)

    # -- data and results --------------------------------------------------------------------------

    def read_tasks(self) -> dict[str, Task]:
        """Read the tasks with their examples."""
        fetching.set_cache_limit(self.workers.cache_gb)
        return {name: self.read_task(name) for name in self.readers}

    def read_task(self, name: str) -> Task:
        """Read one task; one that is only evaluated has no training examples."""
        return read_task(self.readers[name], name, name in self.evaluate_only)

    def store(self, out: Path) -> StageStore:
        """Open the store of finished stages. out: the folder that the study is run into."""
        return open_store(self.output.store or str(out / "stages"), self.workers.cache_gb)


class StudyRuns(Sequence[Run]):
    """One run for each block of a study at one setting.

    Everything is computed when it is first asked for, and once: a search asks for the same runs many times.
    """

    def __init__(self, study: Study, blocks: Sequence[Block]) -> None:
        self.study, self.blocks = study, tuple(blocks)
        self._items: dict[tuple[str, ...], WorkItem] = {}

    @property
    def id(self) -> str:
        """The id of the setting (see `Study.id`)."""
        return self.study.id

    @cached_property
    def _runs(self) -> tuple[Run, ...]:
        known: dict[int, dict[tuple[str, ...], Stage]] = {seed: {} for _, seed in self.blocks}
        return tuple(self.run(order, seed, known[seed]) for order, seed in self.blocks)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Run]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._runs[index]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the study and the blocks alone: another process computes the runs again."""
        return {"study": self.study, "blocks": self.blocks, "_items": {}}

    def run(
        self, order: tuple[str, ...], seed: int, known: dict[tuple[str, ...], Stage] | None = None
    ) -> Run:
        """The run of the setting on one block. known: see `core.stage.stages_of_run`."""
        study = self.study
        data = [study.data.tasks[name] for name in order]
        code = self._strategy_hash
        shared = (study.data.fingerprint, study.stage_adapter, study.training, study.strategy, seed, code)
        return Run(study.id, order, seed, stages_of_run(StageSettings(*shared), data, known))

    @cached_property
    def _strategy_hash(self) -> str:
        return self.study.source_hash("strategies", plugins.plugin_name(self.study.strategy))

    @cached_property
    def untouched_stage(self) -> Stage:
        """The base model as it is, before any training."""
        return untouched_stage(self.study.data.fingerprint)

    @cached_property
    def evaluations(self) -> dict[tuple[str, str], Evaluation]:
        """The evaluation of every task's every split, by (task, split)."""
        longest, evaluations = self.study.protocol.max_new_tokens, {}
        for task, data in self.study.data.tasks.items():
            code = self.study.source_hash("scorers", data.scorer)
            for split, content in data.digests.items():
                hashed = [content, data.scorer, longest, *([code] if code else [])]
                evaluations[task, split] = Evaluation(task, split, digest(hashed))
        return evaluations

    def evaluation(self, task: str, split: str) -> Evaluation:
        return self.evaluations[task, split]

    def work_items(self, run: Run, splits: Sequence[str] = (), scope: str = "seen") -> Chain:
        """A run's stages with their evaluations, in the order in which they can be done.

        splits: those of the final runs, on which evaluate-only tasks are evaluated too; none is the split on
            which the search selects, with these tasks only if its metrics read them.
        scope: the tasks evaluated after each stage, one of `Protocol.evaluate`.
        """
        outside = self.study.evaluate_only if splits else self.study.evaluated_outside
        splits = splits or (self.study.protocol.selection_split,)
        items = []
        for stage in run.stages:
            known = len(stage.earlier) + len(stage.trained_tasks)
            count = {"seen": known, "next": known + 1, "all": len(run.order)}[scope]
            items.append(self.evaluated(stage, (*run.order[:count], *outside), splits))
        return items

    def evaluated(self, stage: Stage, tasks: Sequence[str], splits: Sequence[str]) -> WorkItem:
        """Return the stage with the evaluations of these tasks on these splits."""
        # Sorted, so that the evaluation record of a stage is the same whichever order asks for it.
        tasks = sorted(tasks)
        key = (stage.key, *splits, *tasks)
        if key not in self._items:
            evaluations = tuple(self.evaluation(task, split) for split in splits for task in tasks)
            self._items[key] = WorkItem(stage, evaluations)
        return self._items[key]
