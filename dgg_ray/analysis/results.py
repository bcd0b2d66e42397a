"""A study's results: its table, and how it was conducted; all that the report and its figures read.

What the search did, on what it chose and compared, what it spent and what is left is filled in by
`search_summary.py` from the search's own objects.
"""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from dgg_ray.analysis.archive import Archive

Block = tuple[str, int]  # task names joined by " > ", seed


@dataclass(frozen=True)
class Candidate:
    """A whole setting that the search proposed.

    setting: its id; state: `judged` on every block, `given up` in the race, `failed` or `open`.
    rows: for each block finished, in the study's order, every objective, then by how much each
        constraint is kept.
    objective, excess: means over these of each objective, and by how much each constraint is broken.
    tasks: learned in the block after these.
    stages: distinct stages that the search had asked for, this setting's among them.
    """

    setting: str
    state: str
    rows: tuple[tuple[float, ...], ...] = ()
    objective: tuple[float, ...] = ()
    excess: tuple[float, ...] = ()
    tasks: int = 0
    stages: int = 0


@dataclass(frozen=True)
class Tried:
    """A state that stagewise search tried at a place. hoped: mean objective of its run's expected end."""

    setting: str
    values: Mapping[str, Any]
    hoped: float
    kept: bool


@dataclass(frozen=True)
class Level:
    """What was tried at one place of the orders (2 is the second task), for one outer combination."""

    place: int
    tried: tuple[Tried, ...]


@dataclass(frozen=True)
class Audited:
    """A dropped state that was finished after all.

    place: where it was dropped; state: its id there; setting: what finished it.
    kept: the best setting that was not dropped; all of them were judged on the same blocks.
    ends: mean objective at the end.
    gaps: for each block its mean objective minus that of `kept`.
    better: whether it is preferred to that one, by the means over these blocks, constraints included.
    """

    place: int
    state: str
    setting: str
    kept: str
    ends: float
    gaps: tuple[float, ...]
    better: bool


@dataclass(frozen=True)
class Searched:
    """A search as far as the store holds it.

    objective, constraints: as the study has them; knobs: dotted paths that have a value for each task.
    blocks, tasks: of a setting judged to the end.
    count: whole settings that there will be; None where that follows from the results (`stagewise`).
    candidates: whole settings, each once, in the order proposed.
    levels, audited: of `stagewise`, as far as they are decided.
    stands_for: baseline that the search gives → its values by dotted path.
    saved: stages that settings given up in the race did not need.
    """

    method: str
    objective: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    blocks: int = 1
    tasks: int = 1
    count: int | None = None
    finished: bool = True
    candidates: tuple[Candidate, ...] = ()
    levels: tuple[Level, ...] = ()
    audited: tuple[Audited, ...] = ()
    stands_for: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    saved: int = 0

    def of(self, state: str) -> list[Candidate]:
        return [c for c in self.candidates if c.state == state]

    def feasible(self) -> list[Candidate]:
        """Settings judged that break no constraint."""
        return [c for c in self.of("judged") if not any(c.excess)]


@dataclass(frozen=True)
class Terms:
    """On what settings were chosen and compared.

    selection_split: the split of the choice; chosen_on, compared_on: blocks of the search and of the final runs.
    held_out: whether the final blocks took no part in the choice and are independent of each other.
    baselines: labels of what the recommended setting is to be compared with.
    """

    selection_split: str = "validation"
    chosen_on: tuple[Block, ...] = ()
    compared_on: tuple[Block, ...] = ()
    held_out: bool = False
    baselines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spending:
    """What a study spent on its own work.

    spent: unit → so far; budget: its cap, empty for none; refused: stages that the cap kept from being
    started in the last run; runs: (run, unit, {mean, low, high} predicted for it or None, what it spent).
    """

    spent: dict[str, float] = field(default_factory=dict)
    budget: str = ""
    refused: int = 0
    runs: Sequence[tuple[str, str, dict[str, float] | None, float]] = ()


Hours = tuple[float, float, float]  # of the wall, on the study's groups: mean, low, high


@dataclass(frozen=True)
class Ahead:
    """What is left of a study, and what more of it would take; hours are None where nothing was measured.

    search, comparison: (stages left, hours); the stages are a guess while the search is on.
    block: hours that one more block adds to the comparison, of all that are compared, where as many are
        added as an hour has room for; stage: hours that one of its stages takes one of the fleets.
    room: blocks that can be held out besides; None where more seeds give as many as are wanted.
    """

    search: tuple[int, Hours | None] = (0, None)
    comparison: tuple[int, Hours | None] = (0, None)
    block: Hours | None = None
    room: int | None = None
    stage: Hours | None = None
    groups: int = 1


@dataclass(frozen=True)
class Machine:
    """A kind of machine that stages of the study were learned on.

    kind: all that tells it apart; stages: learned there.
    drift: largest difference of a score, when the sentinel stage was learned again there, from what was
        published, in [0, 1]; None where that was not done (`reference`: it was published from there).
    exam: "task split" of that score; same: whether the weights were the same to the bit, None if not known.
    """

    kind: str
    stages: int
    drift: float | None = None
    evaluation: str = ""
    same: bool | None = None
    reference: bool = False


@dataclass(frozen=True)
class Machines:
    """The kinds of machine that a study's stages come from, the most used first.

    noise: standard deviation over seeds of the same scores, in [0, 1]; None where no two seeds are there.
    noise_of: over what it was taken.
    """

    kinds: tuple[Machine, ...] = ()
    noise: float | None = None
    noise_of: str = ""

    @property
    def largest(self) -> Machine | None:
        """The one that drifts most, of those measured."""
        measured = [machine for machine in self.kinds if machine.drift is not None]
        return max(measured, key=lambda machine: machine.drift or 0.0, default=None)

    @property
    def apart(self) -> bool:
        """Whether kinds differ by more than seeds do."""
        most = self.largest
        return most is not None and self.noise is not None and (most.drift or 0.0) > self.noise


CELL = [  # columns of the table that name a cell; the searched settings follow them, one column each
    "setting",  # id of the setting, 8 hex digits
    "strategy",  # name of its strategy
    "order",  # task names joined by " > "
    "seed",
    "stage",  # t, 0-based; -1 is the untouched model
    "trained_task",  # task learned in stage t; for joint all of them joined by " + "; "" at stage -1
    "eval_task",  # task examined
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
    baselines: label ("finetune", "replay", "joint") → setting id of the run it is compared with.
    failures: stages that ended early: {"stage", "trained_task", "error", "message", "traceback"}.
    costs: one row per distinct stage: key, learned, depth, runs (how many share it), steps,
        examples, train_seconds, evaluation_seconds, peak_memory_mb, device, host, machine (its kind).
    tried: ids of the settings that the search proposed, in that order.
    facts: what else the report prints: counts of stages asked for, trained, shared; versions.
    spending: what it took, and what was predicted.
    search: what the search did, None where there was none; terms: on what it chose and compared.
    ahead: what is left of the study; machines: the kinds that its stages were learned on.
    archive: predictions, adapters and losses, read when asked for; None where there is no store.
    """

    name: str
    question: str
    table: pd.DataFrame
    parameters: tuple[str, ...]
    objective: tuple[str, ...]
    recommended: str | None
    baselines: dict[str, str]
    failures: list[dict[str, Any]]
    costs: pd.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)
    tried: tuple[str, ...] = ()
    spending: Spending = Spending()
    search: Searched | None = None
    terms: Terms = Terms()
    ahead: Ahead = Ahead()
    machines: Machines = Machines()
    archive: Archive | None = None

    @cached_property
    def known(self) -> dict[tuple[str, ...], Any]:
        """What was read off the table already, see `once`."""
        return {}
