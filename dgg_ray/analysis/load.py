"""Load a finished or unfinished study's results from the folder that it was run into.

The table of scores is built from the stage store: one row per evaluation of each requested run. The other
parts of `Results` are optional outputs: one that fails is named, and the rest is still there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from dgg_ray.analysis import hardware_drift, search_summary
from dgg_ray.analysis.alpha_curves import unsearched_parameters
from dgg_ray.analysis.archive import Archive
from dgg_ray.analysis.comparison_tables import compare
from dgg_ray.analysis.methods_table import methods_table
from dgg_ray.analysis.results import CELL_COLUMNS, HardwareDrift, RemainingWork, Results, Spending
from dgg_ray.analysis.run_table import final_split
from dgg_ray.analysis.tuning import tuning_sentences
from dgg_ray.analysis.verdict import verdict
from dgg_ray.config import registry, saved_study, yaml_edit
from dgg_ray.config.sections import STRATEGY_NAME
from dgg_ray.config.setting_paths import value_at
from dgg_ray.config.study import Study, StudyRuns
from dgg_ray.core import plugins
from dgg_ray.core.environment import machine_type, package_version
from dgg_ray.core.errors import ResultsError
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.core.stage import Evaluation, Run, Stage, WorkItem, distinct_stages
from dgg_ray.cost import forecast
from dgg_ray.cost.model import CostModel
from dgg_ray.search.comparison import SPLITS as COMPARED_SPLITS
from dgg_ray.search.comparison import Comparison, untouched_item
from dgg_ray.search.evidence import EvidenceReader, RunRequest
from dgg_ray.search.space import parameter_paths
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.storage.store_view import view_of

RunKey = tuple[str, tuple[str, ...], int]  # setting id, order, seed
COST_COLUMNS = [  # one row per distinct stage
    "key",  # first 8 hex digits of the stage key
    "trained_task",  # "" for the untouched model
    "depth",  # tasks trained before this one
    "runs",  # runs that share the stage
    "steps",
    "examples",
    "train_seconds",
    "evaluation_seconds",  # of the evaluations that the study requested
    "peak_memory_mb",
    "device",
    "host",
    "machine",  # the machine type
]


def load_results(out: Path, optional: OptionalOutputs | None = None) -> Results:
    """Load everything that is stored of the study in a folder, at any moment; its data are not needed.

    optional: collects the parts that could not be loaded. Scores and the recommendation are never among them.
    """
    value_or = (optional or OptionalOutputs()).value_or
    study = saved_study.require_saved_study(out)
    store = view_of(study.store(out))  # lists and reads each object once
    study = registry.with_decisions(study, store)
    cost_model = cache(partial(CostModel, study, store))
    parameters = parameter_paths(study, study.search) if study.search else ()
    contents = read_contents(EvidenceReader(study, store))
    comparison, requested = contents.comparison, contents.requested
    tuning = search_summary.summarize_tuning(study, comparison)
    columns = dict.fromkeys((*parameters, *tuning.columns))
    search, winner = comparison.search, comparison.winner
    summary = None
    if search:
        summarize, requests = search_summary.summarize_search, contents.requests_by_query
        summary = value_or("the course of the search", None, summarize, search, store, requests)
    stages = distinct_stages(item.stage for items in requested.work_items.values() for item in items)
    stages = {key: s for key, s in stages.items() if key not in contents.given_up or store.record(s)}
    costs = value_or("the costs", cost_table(()), stage_costs, store, requested, stages)
    left = partial(search_summary.remaining_work, study, compared=comparison)
    drifts = partial(hardware_drift.machine_drifts, study, store, stages_by_machine(costs))
    archive = partial(make_archive, study, store.source, requested)
    return Results(
        name=study.name,
        question=study.question,
        table=score_table(store, requested, tuple(columns), contents.untouched),
        parameters=parameters,
        objective=study.search.objective if study.search else ("faa",),
        recommended=winner.id if winner else None,
        baselines={label: runs.id for label, runs in comparison.settings.items() if runs is not winner},
        evaluated=tuple(study.at(search.proposed[n].setting).id for n in search.evaluated())
        if search
        else (),
        failures=failed_stages(store, contents.stages),
        costs=costs,
        facts=value_or("the environment", {}, study_facts, study, store, requested, stages),
        spending=value_or("what was spent", Spending(), lambda: spending(study, cost_model(), out)),
        search=summary,
        setup=search_summary.comparison_setup(study),
        tuning=tuning,
        remaining=value_or("what is left to do", RemainingWork(), lambda: left(cost_model())),
        hardware=value_or("the machine types", HardwareDrift(), drifts),
        archive=value_or("predictions, losses and adapters", None, archive),
        evaluate_only=study.evaluate_only,
        methods=value_or("the methods", None, methods_table, store, comparison.settings),
        decisions=study.data.decisions,
    )


class StudyContents(NamedTuple):
    """Everything that a study has requested so far.

    comparison: its searches and the settings compared, as far as the store holds the evidence.
    requested: all runs that these requested.
    requests_by_query: the runs that each query of the study's own search requested, by the query's number.
    untouched: the evaluations of the untouched model; None where none are requested.
    given_up: keys of the stages that only settings requested that were stopped by hand.
    """

    comparison: Comparison
    requested: RequestedRuns
    requests_by_query: dict[int, list[RunRequest]]
    untouched: WorkItem | None
    given_up: Collection[str] = ()

    @property
    def stages(self) -> dict[str, Stage]:
        """Key → stage, of every requested stage, the untouched model included."""
        untouched = [self.untouched] if self.untouched else []
        work_items = (*self.requested.work_items.values(), untouched)
        return distinct_stages(item.stage for items in work_items for item in items)


def read_contents(reader: EvidenceReader) -> StudyContents:
    """Replay the searches from the store, and collect the runs that they and the comparison request."""
    study = reader.study
    comparison = Comparison.from_study(study, reader.fast_forward_past_failures)
    requested, requests_by_query = RequestedRuns(), dict[int, list[RunRequest]]()
    wanted = {item.stage.key for chain in comparison.chains for item in chain}
    for search in comparison.searches:
        requests = {number: reader.requested(query) for number, query in enumerate(search.proposed)}
        for number, query_requests in requests.items():
            for request in query_requests:
                requested.add(*request)
                if number not in search.stopped:
                    wanted |= {item.stage.key for item in request.items}
        if search is comparison.search:
            requests_by_query = requests
    for runs in comparison.settings.values():
        for run in runs:
            requested.add(runs, run, runs.work_items(run, COMPARED_SPLITS, study.protocol.evaluate))
    winner = comparison.winner
    untouched = reader.untouched_item if winner is None else untouched_item(winner)
    given_up: set[str] = set()
    if study.data.decisions:
        given_up = {item.stage.key for items in requested.work_items.values() for item in items} - wanted
    return StudyContents(comparison, requested, requests_by_query, untouched, given_up)


class RequestedRuns:
    """The requested runs with their studies, and the work items of each run by stage."""

    def __init__(self) -> None:
        self.runs: dict[RunKey, tuple[Study, Run]] = {}
        self.work_items: dict[RunKey, list[WorkItem]] = {}

    def add(self, runs: StudyRuns, run: Run, work_items: Sequence[WorkItem]) -> None:
        """Add a run; a stage that search and comparison both request gets the evaluations of both."""
        key = (runs.id, run.order, run.seed)
        self.runs[key] = (runs.study, run)
        evaluations: dict[str, tuple[Stage, dict[Evaluation, None]]] = {}
        for item in (*self.work_items.get(key, ()), *work_items):
            _, known = evaluations.setdefault(item.stage.key, (item.stage, {}))
            known.update(dict.fromkeys(item.evaluations))
        self.work_items[key] = [WorkItem(stage, tuple(known)) for stage, known in evaluations.values()]


def make_archive(study: Study, store: StageStore, requested: RequestedRuns) -> Archive:
    """Give access to the predictions, losses and adapters of the requested runs."""
    runs = {
        (setting, " > ".join(order), seed): study_and_run
        for (setting, order, seed), study_and_run in requested.runs.items()
    }
    return Archive(study, store, runs)


def score_table(
    store: StageStore, requested: RequestedRuns, parameters: Sequence[str], untouched: WorkItem | None
) -> pd.DataFrame:
    """Return one row per stored evaluation of each requested run, with CELL_COLUMNS and the parameters."""
    rows = []
    for key, (study, run) in requested.runs.items():
        work_items = requested.work_items[key]
        run_values = {
            "setting": study.id,
            "strategy": plugins.plugin_name(study.strategy),
            "order": " > ".join(run.order),
            "seed": run.seed,
        }
        parameter_values = {parameter: value_at(study, parameter) for parameter in parameters}
        stages = [item.stage for item in work_items]
        # A joint stage trains several tasks, and counts as the last of them.
        positions = [len(stage.earlier) + len(stage.trained_tasks) - 1 for stage in stages]
        numbered = list(zip(positions, work_items, strict=True))
        splits = {evaluation.split for item in work_items for evaluation in item.evaluations}
        if untouched and ("test" in splits or study.evaluated_outside):
            numbered.insert(0, (-1, untouched))
        for t, item in numbered:
            scores = store.score_entries(item.stage)
            record = store.record(item.stage) or {"cost": {}}
            for evaluation in item.evaluations:
                if evaluation.key not in scores or evaluation.split not in splits:
                    continue
                cell = {
                    "stage": t,
                    "trained_task": item.stage.task,
                    "eval_task": evaluation.task,
                    "split": evaluation.split,
                    "score": scores[evaluation.key]["score"],
                    "n": scores[evaluation.key]["n"],
                    "seconds": record["cost"].get("seconds", 0.0),
                }
                rows.append(run_values | cell | parameter_values)
    return pd.DataFrame(rows, columns=[*CELL_COLUMNS, *parameters])


def failed_stages(store: StageStore, stages: Mapping[str, Stage]) -> list[dict[str, Any]]:
    """Return the stored error of every failed stage; see `Results.failures`."""
    failures = []
    for stage in stages.values():
        if error := store.failure(stage):
            tasks = " > ".join((*stage.earlier, stage.task)) or "nothing"
            names = ("error", "message", "traceback", "location")
            details = {name: error.get(name, "") for name in names}
            failures.append({"stage": stage.key[:8], "trained_task": tasks, **details})
    return failures


def stage_costs(store: StageStore, requested: RequestedRuns, stages: Mapping[str, Stage]) -> pd.DataFrame:
    """Return what each finished stage cost, one row per stage with COST_COLUMNS."""
    work_items = [item for items in requested.work_items.values() for item in items]
    runs = pd.Series([item.stage.key for item in work_items], dtype=str).value_counts()
    evaluations = {evaluation.key for item in work_items for evaluation in item.evaluations}
    rows = []
    for stage in stages.values():
        record = store.record(stage)
        if not record:
            continue
        cost, environment = record["cost"], record["environment"]
        evaluated = [cell for key, cell in store.score_entries(stage).items() if key in evaluations]
        rows.append(
            {
                "key": stage.key[:8],
                "trained_task": stage.task,
                "depth": len(stage.earlier),
                "runs": int(runs.loc[stage.key]),
                "steps": cost["steps"],
                "examples": cost["examples"],
                "train_seconds": cost["seconds"],
                "evaluation_seconds": sum(cell["seconds"] for cell in evaluated),
                "peak_memory_mb": cost["peak_memory_mb"],
                "device": environment["device"],
                "host": environment["host"],
                "machine": machine_type(environment).name,
            }
        )
    return cost_table(rows)


def cost_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows of costs as a table; without rows it still has every column."""
    return pd.DataFrame(rows, columns=COST_COLUMNS)


def stages_by_machine(costs: pd.DataFrame) -> dict[str, int]:
    """Count the stages trained on each machine type; the untouched model is not trained."""
    counts = costs.loc[costs["trained_task"] != "", "machine"].value_counts()
    return {str(name): int(count) for name, count in counts.items()}


def spending(study: Study, model: CostModel, out: Path) -> Spending:
    """Compare what the study spent with what was forecast at the start of each run."""
    runs = forecast.read_forecasts(out)
    spent = model.forecast([]).as_json()["spent"]
    budget = str(study.budget) if study.budget else ""
    refused = runs[-1]["refused"] if runs else 0
    return Spending(spent, budget, refused, forecast.compare_forecasts(runs, spent))


def study_facts(
    study: Study, store: StageStore, requested: RequestedRuns, stages: Mapping[str, Stage]
) -> dict[str, Any]:
    """Return the facts that the report's appendix prints."""
    final_orders = dict.fromkeys(" > ".join(order) for order, _ in study.final_blocks)
    packages = ("dgg_ray", "torch", "transformers", "peft", "ray", "optuna")
    return {
        "requested stages": sum(map(len, requested.work_items.values())),
        "distinct stages": len(stages),
        "finished stages": sum(store.record(stage) is not None for stage in stages.values()),
        "runs": len(requested.runs),
        "orders of the search": [" > ".join(order) for order in study.all_orders],
        "orders of the comparison": list(final_orders),
        "seeds of the search": sorted({seed for _, seed in study.blocks_of(study.seeds)}),
        "seeds of the comparison": sorted({seed for _, seed in study.final_blocks}),
        "model": f"{plugins.plugin_name(study.model)} ({study.data.fingerprint[:12]})",
        "tasks": {name: dict(data.sizes) for name, data in study.data.tasks.items()},
        "versions": {package: package_version(package) for package in packages},
        "study file": yaml_edit.to_file_text(json.loads(json.dumps(study.file.content, default=str))),
    }


def recommendation(results: Results) -> dict[str, Any]:
    """Return the verdict, the setting that the search chose, and its comparison with its baselines.

    The key `recommended` holds the chosen setting's values. The verdict says whether to use them.
    """
    if results.recommended is None:
        raise ResultsError(
            f"{results.name}: no setting has been evaluated completely yet; continue the study"
        )
    own_rows = results.table[results.table["setting"] == results.recommended]
    values = json.loads(own_rows.iloc[0][list(results.parameters)].to_json()) if len(own_rows) else {}
    if STRATEGY_NAME in values:  # without the settings of other strategies
        values = {path: value for path, value in values.items() if value is not None}
    split = final_split(results)
    conclusion = verdict(results)
    answer = {
        "study": results.name,
        "verdict": {"status": conclusion.status, "headline": conclusion.headline},
        "setting": results.recommended,
        "recommended": values,
        "not_searched": list(unsearched_parameters(results)),
        "settings_tried": results.tuning.chosen,
        "tuning": tuning_sentences(results),
        "split": split,
        "comparison": json.loads(str(compare(results, split).to_json(orient="records"))),  # nan becomes null
        "failed_stages": len(results.failures),
        "machines": hardware_drift.drift_sentences(results.hardware),
    }
    if results.decisions:
        answer["decisions"] = [decision.as_json() for decision in results.decisions]
    return answer
