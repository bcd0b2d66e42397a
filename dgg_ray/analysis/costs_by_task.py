"""Costs of a study's stages, summed over the stages that trained a task."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

ALL_TASKS = "all"


class TaskCosts(NamedTuple):
    """The costs of the stages that trained a task.

    task: its name; "" for evaluations of the untouched model, ALL_TASKS for the sum.
    requested, trained: stages that runs asked for, and distinct ones.
    peak_memory_mb: of the largest stage; nan where it was not measured.
    """

    task: str
    requested: int
    trained: int
    train_seconds: float
    evaluation_seconds: float
    peak_memory_mb: float


def costs_by_task(costs: pd.DataFrame) -> list[TaskCosts]:
    """Sum the costs of `Results.costs`, a row per task, then the total; empty without a finished stage."""
    if costs.empty:
        return []
    return [
        TaskCosts(
            str(task),
            int(group["runs"].sum()),
            len(group),
            float(group["train_seconds"].sum()),
            float(group["evaluation_seconds"].sum()),
            float(group["peak_memory_mb"].max()),
        )
        for task, group in [*costs.groupby("trained_task", sort=True), (ALL_TASKS, costs)]
    ]
