"""Every stored answer of a study, as a table; and the examples that the answers belong to.

    predictions(store, runs, "test", ["charts"])     one row per run, stage and example
    examples(study, "charts", "test")                id → Example, while the data are at hand

The store keeps the answers of each evaluation beside its scores. Reading them needs neither the data nor the
model. Questions and pictures are not stored: they come from the task's reader, if its files are still there.
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

ANSWER = ("task", "split", "id", "answer", "prediction", "score")  # as the store keeps them
COLUMNS = (
    *("setting", "strategy", "order", "seed"),  # the run, as in the results' table
    *("stage", "trained_task"),  # t, 0-based, and the task trained in it; -1 and "" are the untouched model
    *ANSWER,  # the right answer, the model's, and its score in [0, 1]
)


def predictions(
    store: StageStore,
    runs: Iterable[tuple[Study, Run]],
    split: str = "test",
    tasks: Collection[str] | None = None,
    base: Stage | None = None,
) -> pd.DataFrame:
    """One row per run, stage and example, with COLUMNS: runs as given, examples as in their file.

    Evaluations that are not finished are left out, so it works at any moment. Simulated stages have none.

    runs: each with the study at its setting, which knows what the answers were judged by.
    tasks: those whose answers are wanted; None is all of the run.
    base: the untouched model's stage, to have its answers before each run's first stage.
    """
    known: dict[tuple[str, ...], pd.DataFrame] = {}
    parts = []
    for study, run in runs:
        wanted = [study.evaluation(name, split) for name in run.order if tasks is None or name in tasks]
        places = list(enumerate(run.stages, start=len(run.order) - len(run.stages)))
        for t, stage in ([(-1, base)] if base else []) + places:
            key = (stage.key, *(evaluation.key for evaluation in wanted))
            if key not in known:
                known[key] = answers(store, stage, wanted)
            if not (found := known[key]).empty:
                about = {"setting": study.id, "strategy": plugins.name_of(study.strategy)}
                about |= {"order": " > ".join(run.order), "seed": run.seed}
                about |= {"stage": t, "trained_task": stage.task}
                parts.append(found.assign(**about)[list(COLUMNS)])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*COLUMNS])


def answers(store: StageStore, stage: Stage, evaluations: Iterable[Evaluation]) -> pd.DataFrame:
    """The answers given after one stage in these evaluations, with columns ANSWER; each evaluation once."""
    left, parts = {evaluation.key for evaluation in evaluations}, []
    for cells, folder in store.answered(stage, left):
        mine = {(cell["task"], cell["split"]) for cell in cells if cell["evaluation"] in left}
        left -= {cell["evaluation"] for cell in cells}
        table = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pandas()
        kept = [place in mine for place in zip(table["task"], table["split"], strict=True)]
        parts.append(table.loc[kept, list(ANSWER)])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*ANSWER])


def examples(study: Study, task: str, split: str) -> Mapping[str, Example]:
    """Id → example of one split, read from the task's files; {} where they are gone or have changed."""
    with suppress(DggError, OSError):
        fetching.within(study.workers.cache_gb)
        found = study.readers[task].read(task)
        if found.digests[split] == study.tasks[task].digests[split]:
            return {example.id: example for example in found.examples[split]}
    return {}
