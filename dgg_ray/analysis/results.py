"""Result types: a study's score table, and how the study was run. The report reads nothing else.

`load.py` fills a `Results` from the store. `search_summary.py` fills the parts about the search: its
settings, the blocks on which settings were chosen and compared, and the work that remains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from dgg_ray.analysis.archive import Archive
from dgg_ray.config.decisions import Decision

BlockName = tuple[str, int]  # task names joined by " > ", seed


@dataclass(frozen=True)
class CandidateSetting:
    """A setting with a value for every search parameter, as proposed by the search.

    setting: its id.
    state: `evaluated` on every block, `pruned` or `stopped` by hand before that, `failed` or `open`.
    block_values: one row per finished block, in the study's order. A row holds every objective, then the
        margin by which each constraint is met.
    mean_objectives: mean of each objective over these blocks.
    violations: how far the block means break each constraint; 0 where it is met.
    tasks_in_next_block: tasks trained in the first unfinished block.
    stages_so_far: distinct stages that the search had requested up to and including this setting.
    """

    setting: str
    state: str
    block_values: tuple[tuple[float, ...], ...] = ()
    mean_objectives: tuple[float, ...] = ()
    violations: tuple[float, ...] = ()
    tasks_in_next_block: int = 0
    stages_so_far: int = 0


@dataclass(frozen=True)
class StateSummary:
    """A partial setting that stagewise search tried at one depth.

    extrapolated: mean objective that the search expected at the end of its run.
    kept: whether the beam kept it.
    """

    setting: str
    values: Mapping[str, Any]
    extrapolated: float
    kept: bool


@dataclass(frozen=True)
class DepthSummary:
    """The states that stagewise search tried at one depth, for one combination of global parameters.

    depth: number of tasks trained; 2 is the second task of an order.
    """

    depth: int
    states: tuple[StateSummary, ...]


@dataclass(frozen=True)
class AuditedState:
    """A state that stagewise search dropped, and that the audit trained to the end.

    depth, state: where it was dropped, and its id there.
    setting: the complete setting that the audit trained.
    best_kept: the best setting that was not dropped. Both were evaluated on the same blocks.
    final_objective: mean objective at the end.
    block_gaps: for each block, its mean objective minus that of `best_kept`.
    preferred: whether it ranks above `best_kept` by the means over these blocks, constraints included.
    """

    depth: int
    state: str
    setting: str
    best_kept: str
    final_objective: float
    block_gaps: tuple[float, ...]
    preferred: bool


@dataclass(frozen=True)
class SearchSummary:
    """A search, as far as the store holds it.

    objective, constraints: as the study states them.
    per_task_parameters: dotted paths of the parameters with one value per task.
    blocks, tasks: those of a setting that is evaluated completely.
    expected_settings: number of complete settings, estimated where their stages are limited; None where it
        follows from the results (`stagewise`).
    candidates: complete settings, each once, in the order proposed.
    depths, audited_states: of `stagewise` alone, as far as they are decided.
    stages_saved: stages that pruned settings did not need.
    stopped: settings, and states of `stagewise`, that were stopped by hand before they were evaluated.
    """

    method: str
    objective: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    per_task_parameters: tuple[str, ...] = ()
    blocks: int = 1
    tasks: int = 1
    expected_settings: int | None = None
    finished: bool = True
    candidates: tuple[CandidateSetting, ...] = ()
    depths: tuple[DepthSummary, ...] = ()
    audited_states: tuple[AuditedState, ...] = ()
    stages_saved: int = 0
    stopped: int = 0

    @property
    def ranks_by_estimates(self) -> bool:
        """Return whether settings are ranked by estimates, so that another may have a higher score."""
        return self.method == "stage_model" and self.objective == ("faa",) and not self.constraints

    @property
    def complete(self) -> bool:
        """Return whether it ended by itself, and nobody stopped a part of it."""
        return self.finished and not self.stopped

    def in_state(self, state: str) -> list[CandidateSetting]:
        """Return the candidates in one state."""
        return [candidate for candidate in self.candidates if candidate.state == state]

    def feasible(self) -> list[CandidateSetting]:
        """Return the evaluated settings that meet every constraint."""
        return [candidate for candidate in self.in_state("evaluated") if not any(candidate.violations)]


@dataclass(frozen=True)
class ComparisonSetup:
    """The splits and blocks on which settings were chosen and compared.

    selection_split: the split on which settings were chosen.
    search_blocks, final_blocks: blocks of the search, and of the final comparison.
    held_out: whether the final blocks took no part in the choice and are independent of each other.
    baselines: labels of the settings that the chosen setting is to be compared with.
    """

    selection_split: str = "validation"
    search_blocks: tuple[BlockName, ...] = ()
    final_blocks: tuple[BlockName, ...] = ()
    held_out: bool = False
    baselines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tuning:
    """The number of settings tried for each method of the comparison.

    chosen: settings tried for the recommended one; 0 if nothing was searched, None if it has no parameters of
        its own.
    baselines: label of a baseline with parameters of its own → settings tried; 0 is its default setting.
        Baselines that come from the search, and variants of the recommended setting, are not among them.
    trials: id of each setting that only the search of a baseline tried → whether it was evaluated on every
        block.
    parameters: label of a tuned baseline → dotted paths of the parameters that its search searched.
    """

    chosen: int | None = None
    baselines: Mapping[str, int] = field(default_factory=dict)
    trials: Mapping[str, bool] = field(default_factory=dict)
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """Dotted paths of the parameters of all tuned baselines."""
        return tuple(dict.fromkeys(path for paths in self.parameters.values() for path in paths))


@dataclass(frozen=True)
class Spending:
    """The amounts that a study spent on its own work.

    spent: unit → amount so far.
    budget: the limit as text; empty for none.
    refused: stages that the budget kept from being started in the last run.
    runs: (run, unit, {mean, low, high} predicted at its start or None, amount spent).
    """

    spent: dict[str, float] = field(default_factory=dict)
    budget: str = ""
    refused: int = 0
    runs: Sequence[tuple[str, str, dict[str, float] | None, float]] = ()


HoursInterval = tuple[float, float, float]  # mean, low, high of the wall time on the study's worker groups


@dataclass(frozen=True)
class RemainingWork:
    """The work that is left in a study, and the hours that further work would take.

    Hours are None where no stage has been timed.

    search, comparison: (stages left, hours). The stages are an estimate while the search is running.
    block: hours that one more block adds to the comparison of all settings, when as many blocks are added as
        fit into an hour.
    room: further blocks that can be held out; None where more seeds provide any number of blocks.
    stage: hours that one stage of such a block takes one worker group.
    groups: worker groups of the study.
    """

    search: tuple[int, HoursInterval | None] = (0, None)
    comparison: tuple[int, HoursInterval | None] = (0, None)
    block: HoursInterval | None = None
    room: int | None = None
    stage: HoursInterval | None = None
    groups: int = 1


@dataclass(frozen=True)
class MachineDrift:
    """The drift of one machine type that trained stages of the study.

    machine_type: its name: everything that tells it from other types.
    stages: number of stages trained on it.
    drift: largest difference of a score between the reference stage retrained on this type and the stored
        reference, in [0, 1]; None where the stage was not retrained.
    evaluation: "task split" of that score.
    weights_identical: whether the weights were identical to the bit; None if unknown.
    is_reference: whether the stored reference stage was trained on this type.
    """

    machine_type: str
    stages: int
    drift: float | None = None
    evaluation: str = ""
    weights_identical: bool | None = None
    is_reference: bool = False


@dataclass(frozen=True)
class HardwareDrift:
    """The machine types that trained a study's stages, the most used first.

    seed_noise: standard deviation of the same scores over seeds, in [0, 1]; None where no stage has two
        seeds.
    seed_noise_basis: the seeds and stages that it was estimated from.
    """

    machine_types: tuple[MachineDrift, ...] = ()
    seed_noise: float | None = None
    seed_noise_basis: str = ""

    @property
    def largest_drift(self) -> MachineDrift | None:
        """The machine type with the largest measured drift; None where none was measured."""
        measured = [machine for machine in self.machine_types if machine.drift is not None]
        return max(measured, key=lambda machine: machine.drift or 0.0, default=None)

    @property
    def exceeds_seed_noise(self) -> bool:
        """Return whether the largest difference between machine types exceeds the deviation of seeds."""
        most = self.largest_drift
        return most is not None and self.seed_noise is not None and (most.drift or 0.0) > self.seed_noise


CELL_COLUMNS = [  # columns of the table that name a cell; one column per search parameter follows them
    "setting",  # id of the setting, 8 hex digits
    "strategy",  # name of its strategy
    "order",  # task names joined by " > "
    "seed",
    "stage",  # t, 0-based; -1 is the untouched model
    "trained_task",  # task trained in stage t; for joint training all tasks joined by " + "; "" at stage -1
    "eval_task",  # task evaluated
    "split",
    "score",  # in [0, 1]
    "n",  # examples behind the score
    "seconds",  # time spent training this stage; counted once, however many runs share it
]


@dataclass(frozen=True)
class Results:
    """All results of a study, as the report needs them.

    table: one row per cell of a score matrix, with CELL_COLUMNS and one column per search parameter, then
        those that only tuned baselines have.
    parameters: dotted paths of the search parameters, which are columns of the table.
    objective: names of the metrics that the search maximised, on the selection split.
    recommended: setting id of the winner; None while no setting has been evaluated.
    baselines: label ("finetune", "replay", "joint") → setting id of the run that the winner is compared with.
    failures: stages that ended with an error: {"stage", "trained_task", "error", "message",
        "location", "traceback"}.
    costs: one row per distinct stage: key, trained_task, depth, runs (how many share it), steps, examples,
        train_seconds, evaluation_seconds, peak_memory_mb, device, host, machine (its type).
    facts: further facts that the report prints: counts of stages requested and finished, versions.
    evaluated: ids of the settings that the search evaluated, in the order proposed.
    spending: what the study spent, and the predictions made before.
    search: summary of the search; None where nothing was searched.
    setup: on what settings were chosen and compared.
    tuning: how many settings were tried for each method.
    remaining: the work that is left.
    hardware: the machine types that trained the stages, and how far their scores drift apart.
    archive: predictions, adapters and losses, read on request; None where there is no store.
    evaluate_only: names of the tasks that are evaluated and never trained.
    methods: one row per compared method (see `methods_table`); None where they could not be read.
    decisions: what people decided about the study while it ran, in their order.
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
    evaluated: tuple[str, ...] = ()
    spending: Spending = Spending()
    search: SearchSummary | None = None
    setup: ComparisonSetup = ComparisonSetup()
    tuning: Tuning = Tuning()
    remaining: RemainingWork = RemainingWork()
    hardware: HardwareDrift = HardwareDrift()
    archive: Archive | None = None
    evaluate_only: tuple[str, ...] = ()
    methods: pd.DataFrame | None = None
    decisions: tuple[Decision, ...] = ()

    @property
    def all_parameters(self) -> tuple[str, ...]:
        """The search parameters, then those that only tuned baselines have."""
        return tuple(dict.fromkeys((*self.parameters, *self.tuning.columns)))

    @cached_property
    def cache(self) -> dict[tuple[str, ...], Any]:
        """Values that were computed from these results already; see `run_table.cached`."""
        return {}
