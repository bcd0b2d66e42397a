"""Stage records → one long table, and what is read off it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

CELL = [  # columns of the table that name a cell; the searched settings follow them, one column each
    "setting",  # id of the setting, 8 hex digits
    "strategy",  # name of its strategy
    "order",  # task names joined by " > "
    "seed",
    "stage",  # t, 0-based; -1 is the untouched model
    "learned",  # task learned in stage t; for joint all of them joined by " + "; "" at stage -1
    "exam",  # task examined
    "split",
    "score",  # in [0, 1]
    "n",  # examples behind the score
    "seconds",  # spent learning this stage, once, whoever shares it
]


@dataclass(frozen=True)
class Results:
    """A study's results, all that a report needs.

    table: one row per cell, columns CELL and one per searched setting (dotted path).
    knobs: the searched settings' dotted paths, as columns of the table.
    objective: names of the metrics that the search maximised, on the validation split.
    recommended: setting id of the winner; None while no setting has been judged.
    rivals: label ("finetune", "replay", "joint") → setting id of the run it is compared with.
    failures: stages that ended early: {"stage", "learned", "error", "message", "traceback"}.
    costs: one row per distinct stage: key, learned, depth, runs (how many share it), steps,
        examples, learn_seconds, exam_seconds, peak_memory_mb, device, host.
    facts: what else the report prints: counts of stages asked for, trained, shared; versions.
    """

    name: str
    question: str
    table: pd.DataFrame
    knobs: tuple[str, ...]
    objective: tuple[str, ...]
    recommended: str | None
    rivals: dict[str, str]
    failures: list[dict[str, Any]]
    costs: pd.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)
