"""Table of the compared methods: how well each is known, what it needs, what its adapter holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dgg_ray.config.study import StudyRuns
from dgg_ray.core.phrases import join_names
from dgg_ray.core.plugins import plugin_name
from dgg_ray.core.strategy import ENGINES, Strategy
from dgg_ray.storage.stage_store import StageStore

METHOD_COLUMNS = [
    *("label", "strategy", "known_from", "rank", "trainable", "stored"),
    *("train_seconds", "stages", "needs"),
]


def methods_table(store: StageStore, compared: Mapping[str, StudyRuns]) -> pd.DataFrame:
    """Return one row per compared method, with METHOD_COLUMNS.

    trainable: numbers that a stage trains. stored: numbers of the adapter after the last task. Both are the
        largest of the finished runs; nan before one is finished. train_seconds: mean over `stages` distinct
        finished stages, the shared ones included.
    """
    rows = [method_row(store, label, runs) for label, runs in compared.items()]
    return pd.DataFrame(rows, columns=METHOD_COLUMNS)


def method_row(store: StageStore, label: str, runs: StudyRuns) -> dict[str, Any]:
    """Describe one method by its strategy and by the records of its finished stages."""
    strategy = runs.study.strategy
    stages = {stage.key: stage for run in runs for stage in run.stages}
    records = {key: record for key, stage in stages.items() if (record := store.record(stage))}
    ends = [records[run.stages[-1].key] for run in runs if run.stages[-1].key in records]
    counts = [record.get("parameters", {}) for record in ends]
    seconds = [record["cost"]["seconds"] for record in records.values() if "seconds" in record["cost"]]
    return {
        "label": label,
        "strategy": plugin_name(strategy),
        "known_from": strategy.known_from,
        "rank": runs.study.stage_adapter.rank,
        "trainable": max((c["trainable"] for c in counts if c), default=float("nan")),
        "stored": max((c["stored"] for c in counts if c), default=float("nan")),
        "train_seconds": sum(seconds) / len(seconds) if seconds else float("nan"),
        "stages": len(seconds),
        "needs": describe_needs(strategy),
    }


def describe_needs(strategy: Strategy) -> str:
    """Name what a strategy needs beside the new task's examples; empty for nothing.

    >>> from dgg_ray.strategies.a_gem import AGEM
    >>> describe_needs(AGEM())
    'old examples, 2 × a step, not on zero3'
    """
    needs = strategy.needs
    replays = any(strategy.replayed_examples({"": 1}).values())
    parts = ["old examples"] if needs.old_data or replays else []
    parts += [f"{needs.step_cost:.3g} × a step"] if needs.step_cost != 1 else []
    missing = [engine for engine in ENGINES if engine not in needs.engines]
    parts += [f"not on {join_names(missing)}"] if missing else []
    return ", ".join(parts)
