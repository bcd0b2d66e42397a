"""Stage records → one long table, and what is read off it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from dgg_ray.analysis import hardware_drift, search_summary
from dgg_ray.analysis.agreement import unsearched
from dgg_ray.analysis.archive import Archive
from dgg_ray.analysis.results import CELL, Ahead, Machines, Results, Spending
from dgg_ray.analysis.run_table import compare, final_split
from dgg_ray.analysis.verdict import verdict
from dgg_ray.config import loader, yaml_edit
from dgg_ray.config.study import Study, value_at
from dgg_ray.core import plugins
from dgg_ray.core.environment import kind
from dgg_ray.core.errors import ResultsError
from dgg_ray.core.fence import Fence
from dgg_ray.core.stage import Evaluation, Run, Stage, WorkItem, distinct
from dgg_ray.core.versions import version
from dgg_ray.cost import forecast
from dgg_ray.cost.model import CostModel
from dgg_ray.search import comparison, evidence
from dgg_ray.search.base import Method, space
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.storage.store_view import Glance


def table(out: str | Path) -> pd.DataFrame:
    """The long table of the study in a folder: one row per cell, columns CELL and the searched settings."""
    return load(Path(out)).table


def load(out: Path, fence: Fence | None = None) -> Results:
    """All results of the study that was run into a folder, as far as it got; its data are not needed.

    fence: collects what cannot be said of it; the scores and what is recommended are there all the same."""
    beside = (fence or Fence()).tried
    study = loader.the_kept(out)
    store = Glance(study.store(out))
    parameters = tuple(space(study, study.search)) if study.search else ()
    every = gathered(study, store)
    search, more, final, asked, walks = every
    told = None
    if search:
        given = comparison.searched_baselines(search, more)
        told = beside(
            "the course of the search", None, search_summary.searched, search, given, store, walks, parameters
        )
    winner = next(iter(final.values()), None)
    baselines = {label: at.id for label, at in final.items() if at is not winner}
    stages = distinct(item.stage for work_items in asked.work_items.values() for item in work_items)
    paid = beside("the costs", costs_of(()), costs, store, asked, stages)
    return Results(
        name=study.name,
        question=study.question,
        table=cells(store, asked, parameters, every.untouched),
        parameters=parameters,
        objective=study.search.objective if study.search else ("faa",),
        recommended=winner.id if winner else None,
        baselines=baselines,
        tried=tuple(study.at(search.proposed[n].setting).id for n in search.judged()) if search else (),
        failures=failures(store, every.stages),
        costs=paid,
        facts=beside("the environment", {}, facts, study, store, asked, stages),
        spending=beside("what was spent", Spending(), spending, study, store, out),
        search=told,
        terms=search_summary.terms(study),
        ahead=beside("what is left to do", Ahead(), search_summary.ahead, study, store, search, more, final),
        machines=beside(
            "the kinds of machine", Machines(), hardware_drift.machines, study, store, learned_on(paid)
        ),
        archive=beside("predictions, losses and adapters", None, archived, study, store, asked),
    )


class Gathered(NamedTuple):
    """Everything a study asked for, as far as it got.

    search, more: its own search, and those of the baselines that it gives, by label.
    final: label → study on the final blocks, the winner first; none before a setting was judged.
    walks: what each of the search's own proposals asked for, by its number.
    """

    search: Method | None
    more: dict[str, Method]
    final: dict[str, Study]
    asked: Asked
    walks: dict[int, list[evidence.Walk]]

    @property
    def untouched(self) -> WorkItem | None:
        """The untouched model's exams; None where none are asked for."""
        winner = next(iter(self.final.values()), None)
        return evidence.base_work(winner) if winner is not None else None

    @property
    def stages(self) -> dict[str, Stage]:
        """Key → stage, of all that is asked for, the untouched model's among them."""
        base = [self.untouched] if self.untouched else []
        return distinct(
            item.stage for work_items in (*self.asked.work_items.values(), base) for item in work_items
        )


def gathered(study: Study, store: StageStore) -> Gathered:
    search, more = comparison.replay_searches(study, store)
    asked, own = Asked(), dict[int, list[evidence.Walk]]()
    for method in (search, *more.values()) if search else ():
        walks = {n: evidence.asked(study, store, query) for n, query in enumerate(method.proposed)}
        for walk in (walk for found in walks.values() for walk in found):
            asked.add(*walk)
        own = walks if method is search else own
    final = comparison.compared_settings(study, search, more)
    for at in final.values():
        for run in at.runs():
            asked.add(at, run, evidence.work_items(at, run, evidence.FINAL, study.protocol.evaluate))
    return Gathered(search, more, final, asked, own)


def archived(study: Study, store: Glance, asked: Asked) -> Archive:
    runs = {(setting, " > ".join(order), seed): of for (setting, order, seed), of in asked.runs.items()}
    return Archive(study, store.under, runs)


class Asked:
    """What a study asks for: (setting id, order, seed) → its study, run, and works by stage."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, tuple[str, ...], int], tuple[Study, Run]] = {}
        self.work_items: dict[tuple[str, tuple[str, ...], int], list[WorkItem]] = {}

    def add(self, at: Study, run: Run, work_items: Sequence[WorkItem]) -> None:
        """Works asked for twice, by the search and by the comparison, are one with the exams of both."""
        name = (at.id, run.order, run.seed)
        self.runs[name] = (at, run)
        evaluations: dict[str, tuple[Stage, dict[Evaluation, None]]] = {}
        for item in (*self.work_items.get(name, ()), *work_items):
            evaluations.setdefault(item.stage.key, (item.stage, {}))[1].update(
                dict.fromkeys(item.evaluations)
            )
        self.work_items[name] = [WorkItem(stage, tuple(of)) for stage, of in evaluations.values()]


def cells(
    store: StageStore, asked: Asked, parameters: Sequence[str], untouched: WorkItem | None
) -> pd.DataFrame:
    rows = []
    for name, (at, run) in asked.runs.items():
        work_items = asked.work_items[name]
        shared = {
            "setting": at.id,
            "strategy": plugins.name_of(at.strategy),
            "order": " > ".join(run.order),
            "seed": run.seed,
        }
        searched = {parameter: value_at(at, parameter) for parameter in parameters}
        # A simultaneous run has one stage, its last.
        sat = list(enumerate(work_items, start=len(run.order) - len(work_items)))
        if untouched and any(
            evaluation.split == "test" for item in work_items for evaluation in item.evaluations
        ):
            sat.insert(0, (-1, untouched))
        for t, item in sat:
            found = store.cells(item.stage)
            record = store.record(item.stage) or {"cost": {}}
            for evaluation in item.evaluations:
                if evaluation.key in found:
                    cell = {k: found[evaluation.key][k] for k in ("score", "n")}
                    place = {
                        "stage": t,
                        "trained_task": item.stage.task,
                        "eval_task": evaluation.task,
                        "split": evaluation.split,
                    }
                    seconds = {"seconds": record["cost"].get("seconds", 0.0)}
                    rows.append(shared | place | cell | seconds | searched)
    return pd.DataFrame(rows, columns=[*CELL, *parameters])


def failures(store: StageStore, stages: Mapping[str, Stage]) -> list[dict[str, Any]]:
    found = []
    for stage in stages.values():
        if error := store.failure(stage):
            kept = {k: error.get(k, "") for k in ("error", "message", "traceback", "place")}
            found.append(
                {
                    "stage": stage.key[:8],
                    "trained_task": " > ".join((*stage.earlier, stage.task)) or "nothing",
                    **kept,
                }
            )
    return found


def costs(store: StageStore, asked: Asked, stages: Mapping[str, Stage]) -> pd.DataFrame:
    runs = pd.Series(
        [w.stage.key for work_items in asked.work_items.values() for w in work_items], dtype=str
    ).value_counts()
    evaluations = {
        evaluation.key
        for work_items in asked.work_items.values()
        for item in work_items
        for evaluation in item.evaluations
    }
    rows = []
    for stage in stages.values():
        if record := store.record(stage):
            cost, where = record["cost"], record["environment"]
            rows.append(
                {
                    "key": stage.key[:8],
                    "trained_task": stage.task,
                    "depth": len(stage.earlier),
                    "runs": int(runs.loc[stage.key]),
                    "steps": cost["steps"],
                    "examples": cost["examples"],
                    "train_seconds": cost["seconds"],
                    "evaluation_seconds": sum(
                        c["seconds"] for e, c in store.cells(stage).items() if e in evaluations
                    ),
                    "peak_memory_mb": cost["peak_memory_mb"],
                    "device": where["device"],
                    "host": where["host"],
                    "machine": kind(where).name,
                }
            )
    return costs_of(rows)


def costs_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    columns = [
        "key",
        "trained_task",
        "depth",
        "runs",
        "steps",
        "examples",
        "train_seconds",
        "evaluation_seconds",
    ]
    return pd.DataFrame(rows, columns=[*columns, "peak_memory_mb", "device", "host", "machine"])


def learned_on(paid: pd.DataFrame) -> dict[str, int]:
    """Kind of machine → stages learned there; the untouched model is not learned."""
    counts = paid.loc[paid["trained_task"] != "", "machine"].value_counts()
    return {str(name): int(count) for name, count in counts.items()}


def spending(study: Study, store: StageStore, out: Path) -> Spending:
    runs = forecast.read(out)
    spent = CostModel(study, store).outlook([]).as_json()["spent"]
    cap = str(study.budget) if study.budget else ""
    return Spending(spent, cap, runs[-1]["refused"] if runs else 0, forecast.compared(runs, spent))


def facts(study: Study, store: StageStore, asked: Asked, stages: Mapping[str, Stage]) -> dict[str, Any]:
    return {
        "stages asked for": sum(map(len, asked.work_items.values())),
        "distinct stages": len(stages),
        "finished stages": sum(store.record(stage) is not None for stage in stages.values()),
        "runs": len(asked.runs),
        "orders of the search": [" > ".join(order) for order in study.all_orders],
        "orders of the comparison": list(dict.fromkeys(" > ".join(order) for order, _ in study.final_blocks)),
        "seeds of the search": sorted({seed for _, seed in study.crossed(study.seeds)}),
        "seeds of the comparison": sorted({seed for _, seed in study.final_blocks}),
        "model": f"{plugins.name_of(study.model)} ({study.fingerprint[:12]})",
        "tasks": {name: dict(data.sizes) for name, data in study.tasks.items()},
        "versions": {p: version(p) for p in ("dgg_ray", "torch", "transformers", "peft", "ray", "optuna")},
        "study file": yaml_edit.dumped(json.loads(json.dumps(study.raw, default=str))),
    }


def recommendation(results: Results) -> dict[str, Any]:
    """The verdict, the setting that the search chose, and its comparison with its baselines.

    recommended: the chosen setting's values; whether it is to be used, the verdict says.
    """
    if results.recommended is None:
        raise ResultsError(f"{results.name}: no setting has been judged yet; run the study further")
    mine = results.table[results.table["setting"] == results.recommended]
    split = final_split(results)
    compared, said = compare(results, split), verdict(results)
    return {
        "study": results.name,
        "verdict": {"status": said.status, "headline": said.headline},
        "setting": results.recommended,
        "recommended": json.loads(mine.iloc[0][list(results.parameters)].to_json()) if len(mine) else {},
        "not_searched": list(unsearched(results)),
        "split": split,
        "comparison": json.loads(str(compared.to_json(orient="records"))),  # as numbers, nan as null
        "failed_stages": len(results.failures),
        "machines": hardware_drift.sentences(results.machines),
    }
