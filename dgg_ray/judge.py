"""What the store says of a run, of a setting, of a search; and what is still to be asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dgg_ray import plugins
from dgg_ray.contracts import ScoreMatrix
from dgg_ray.search import Proposal, Proposals, Setting
from dgg_ray.stages import Run, Stage, StageStore, Work
from dgg_ray.study import Study

SELECTION = ("validation",)  # settings are chosen on it
FINAL = ("validation", "test")


def works(study: Study, run: Run, splits: Sequence[str] = SELECTION, scope: str = "seen") -> list[Work]:
    """A run's stages with their exams, in the order in which they can be done."""
    return [study.work(run, stage, splits, scope) for stage in run.stages]


def matrix(study: Study, store: StageStore, run: Run, split: str) -> ScoreMatrix:
    """R with what the store holds of the run; a simultaneous run fills the last row alone."""
    count = len(run.order)
    R = np.full((count, count), np.nan)
    for t, stage in enumerate(run.stages, start=count - len(run.stages)):
        R[t] = row(study, store, run, stage, split)
    sizes = np.array([study.tasks[name].sizes[split] for name in run.order])
    return ScoreMatrix(R, sizes, row(study, store, run, study.untouched(), split))


def row(study: Study, store: StageStore, run: Run, stage: Stage, split: str) -> np.ndarray:
    """Scores after one stage on the run's tasks, in the run's order; nan where not examined."""
    cells = store.cells(stage)
    keys = [study.exam(name, split).key for name in run.order]
    return np.array([cells[key]["score"] if key in cells else np.nan for key in keys])


def complete(study: Study, store: StageStore) -> bool:
    """Whether the setting can be judged without learning anything."""
    return all(store.has(work) for run in study.runs() for work in works(study, run))


def failed(study: Study, store: StageStore) -> bool:
    """Whether a stage that the setting needs ended early, so that it cannot be judged."""
    return any(store.failure(stage) for run in study.runs() for stage in run.stages)


def judge(study: Study, store: StageStore) -> list[float] | None:
    """The setting's objective, each metric a mean over its runs; None where a run is not finished."""
    means = [float(np.mean(values)) for values in over_blocks(study, store)]
    return means if np.isfinite(means).all() else None


def over_blocks(study: Study, store: StageStore) -> list[list[float]]:
    """The setting's value in each metric of the objective on each block."""
    assert study.search is not None
    scores = [matrix(study, store, run, *SELECTION) for run in study.runs()]
    return [[plugins.find("metrics", name)(s) for s in scores] for name in study.search.objective]


def best_so_far(study: Study, store: StageStore, proposals: Proposals) -> str:
    """The recommended setting and its objective with a 95 % interval over the blocks; empty for none."""
    from dgg_ray.intervals import mean_interval  # late: SciPy, which trials and brokers do without

    number = proposals.best()
    if number is None:
        return ""
    scores = over_blocks(study.at(proposals.proposed[number]), store)
    found = []
    for name, values in zip(proposals.search.objective, scores, strict=True):
        band = mean_interval(values)
        found.append(
            f"{name} {band.mean:.3f}" + (f" [{band.low:.3f}, {band.high:.3f}]" if band.n > 1 else "")
        )
    return f"{', '.join(found)} with " + ", ".join(f"{k}={v}" for k, v in proposals.proposed[number].items())


def first_run(study: Study) -> list[Work]:
    """All that the first run of the study asks for, of the search or without one of the comparison."""
    if study.search is None:
        return final_works(study)[0]
    _, setting = Proposals(study).ask() or (0, {})  # there is always a first
    at = study.at(setting)
    return works(at, at.runs()[0])


def replay(
    study: Study, store: StageStore, proposals: Proposals, answered: Callable[[int, Setting], None]
) -> Proposal | None:
    """Search as far as the store answers; the first setting that it does not, None at the end.

    A setting with a failed stage counts as not answered: it is tried again.
    """
    while (proposal := proposals.ask()) is not None:
        number, setting = proposal
        at = study.at(setting)
        if not complete(at, store):
            return proposal
        proposals.tell(number, judge(at, store))
        answered(number, setting)
    return None


def searched(study: Study, store: StageStore) -> Proposals:
    """The search as the store holds it, for a reader: failed settings count as judged, unfinished end it."""
    proposals = Proposals(study)
    while (proposal := proposals.ask()) is not None:
        number, setting = proposal
        at = study.at(setting)
        if complete(at, store):
            proposals.tell(number, judge(at, store))
        elif failed(at, store):
            proposals.tell(number, None)
    return proposals


def final_works(winner: Study) -> list[list[Work]]:
    """Chains of all that the final comparison needs."""
    scope = winner.protocol.exams
    chains = [works(s, run, FINAL, scope) for s in winner.contenders().values() for run in s.runs()]
    return [*chains, [work]] if (work := base_work(winner)) else chains


def base_work(winner: Study) -> Work | None:
    """The untouched model's exams, against which forward transfer is measured; None where it is not."""
    if winner.protocol.exams == "seen":
        return None
    exams = tuple(winner.exam(task, split) for split in FINAL for task in sorted(winner.names))
    return Work(winner.untouched(), exams)
