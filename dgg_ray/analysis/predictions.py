"""Stored answers of a study as a table, and the examples that they answer.

    predictions_table(store, runs, "test", ["charts"])     one row per run, stage and example
    examples_by_id(study, "charts", "test")                id → Example, while the data are available

The store keeps the answers of each evaluation next to its scores. Reading them needs neither the data nor the
model. Questions and images are not stored. They come from the task's reader, if its files still exist.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

import pandas as pd
import pyarrow.parquet

from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.errors import DggError
from dgg_ray.core.interfaces import Example
from dgg_ray.core.stage import Evaluation, Run, Stage
from dgg_ray.storage import fetching
from dgg_ray.storage.stage_store import StageStore

ANSWER_COLUMNS = (  # as in the stored files
    *("task", "split", "id"),  # of the example
    *("answer", "prediction"),  # the correct answer, and the model's
    "score",  # of this prediction, in [0, 1]
)
PREDICTION_COLUMNS = (
    *("setting", "strategy", "order", "seed"),  # the run, as in the results' table
    *("stage", "trained_task"),  # t, 0-based, and the task trained in it; -1 and "" for the untouched model
    *ANSWER_COLUMNS,
)


def predictions_table(
    store: StageStore,
    runs: Iterable[tuple[Study, Run]],
    split: str = "test",
    tasks: Collection[str] | None = None,
    base: Stage | None = None,
) -> pd.DataFrame:
    """Return one row per run, stage and example, with PREDICTION_COLUMNS, in the order of runs and files.

    Unfinished evaluations are left out, so it works at any moment. Simulated stages have no predictions.

    runs: each with the study at its setting, which determines how answers were scored.
    tasks: the tasks wanted; None for all that the run trains.
    base: the untouched model's stage, to put its answers before each run's first stage.
    """
    answers_by_key: dict[tuple[str, ...], pd.DataFrame] = {}
    parts = []
    for study, run in runs:
        names = run.order
        if tasks is not None:
            names = [name for name in (*run.order, *study.evaluate_only) if name in tasks]
        evaluations = [study.runs.evaluation(name, split) for name in names]
        stages = list(enumerate(run.stages, start=len(run.order) - len(run.stages)))
        if base:
            stages.insert(0, (-1, base))
        for t, stage in stages:
            key = (stage.key, *(evaluation.key for evaluation in evaluations))
            if key not in answers_by_key:
                answers_by_key[key] = stage_answers(store, stage, evaluations)
            if answers_by_key[key].empty:
                continue
            run_columns = {
                "setting": study.id,
                "strategy": plugins.plugin_name(study.strategy),
                "order": " > ".join(run.order),
                "seed": run.seed,
                "stage": t,
                "trained_task": stage.task,
            }
            parts.append(answers_by_key[key].assign(**run_columns)[list(PREDICTION_COLUMNS)])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*PREDICTION_COLUMNS])


def stage_answers(store: StageStore, stage: Stage, evaluations: Iterable[Evaluation]) -> pd.DataFrame:
    """Return the answers of these evaluations after one stage, with ANSWER_COLUMNS; each evaluation once."""
    missing, parts = {evaluation.key for evaluation in evaluations}, []
    for entries, folder in store.stored_answers(stage, missing):
        wanted = {(entry["task"], entry["split"]) for entry in entries if entry["evaluation"] in missing}
        missing -= {entry["evaluation"] for entry in entries}
        table = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pandas()
        mask = [names in wanted for names in zip(table["task"], table["split"], strict=True)]
        parts.append(table.loc[mask, list(ANSWER_COLUMNS)])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*ANSWER_COLUMNS])


def examples_by_id(study: Study, task: str, split: str) -> Mapping[str, Example]:
    """Return id → example of one split, read from the task's files; {} if they are missing or changed."""
    with suppress(DggError, OSError):
        fetching.set_cache_limit(study.workers.cache_gb)
        data = study.read_task(task)
        if data.digests[split] == study.data.tasks[task].digests[split]:
            return {example.id: example for example in data.examples[split]}
    return {}
