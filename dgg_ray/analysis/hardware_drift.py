"""How far kinds of machine drift apart, against what another seed changes.

    drift of a kind   largest |score there − score published| over the exams of the sentinel stage
    seed noise        √ mean over its exams of the variance over seeds (n − 1), of the sentinel stage with
                      other seeds; else, pooled in the same way, of the same stage of other tasks

The seeds are the study's, as far as their stages are finished; two are needed. A drift is one difference
of two runs, whose standard deviation would be √2 of the noise if machines differed as seeds do: the
comparison leans towards warning. What is noted stands in hardware_notes.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt
from statistics import variance
from typing import Any

from dgg_ray.analysis.results import Machine, Machines
from dgg_ray.config.study import Study
from dgg_ray.core.environment import kind, named
from dgg_ray.core.hashing import digest
from dgg_ray.storage import hardware_notes
from dgg_ray.storage.stage_store import StageStore

Scores = dict[str, tuple[str, float]]  # exam key → ("task split", score)


def machines(study: Study, store: StageStore, stages: Mapping[str, int]) -> Machines:
    """What the store says of the kinds of machine; stages: learned on each, by the kind's name."""
    notes = hardware_notes.notes(store, study.fingerprint)
    kinds = tuple(
        machine(store, name, count, notes.get(named(name).id))
        for name, count in sorted(stages.items(), key=lambda pair: (-pair[1], pair[0]))
    )
    meaning = next((note["meaning"] for note in notes.values() if is_again(note)), None)
    if len(kinds) < 2 or meaning is None:
        return Machines(kinds)
    return Machines(kinds, *noise(study, store, meaning))


def is_again(note: Mapping[str, Any]) -> bool:
    """Whether it was learned again for the note, rather than read off its record."""
    return kind(note["environment"]).id != note["reference"]


def machine(store: StageStore, name: str, count: int, note: Mapping[str, Any] | None) -> Machine:
    if note is None:
        return Machine(name, count)
    if not is_again(note):
        return Machine(name, count, reference=True)
    there, here = cells(note["cells"]), published(store, note["key"])
    gaps = [
        (abs(there[evaluation][1] - here[evaluation][1]), there[evaluation][0])
        for evaluation in there.keys() & here.keys()
    ]
    weights = note["weights"], note["published_weights"]
    same = weights[0] == weights[1] if all(weights) else None
    drift, evaluation = max(gaps, default=(None, ""))
    return Machine(name, count, drift, evaluation, same)


def cells(found: list[dict[str, Any]]) -> Scores:
    return {cell["evaluation"]: (f"{cell['task']} {cell['split']}", cell["score"]) for cell in found}


def published(store: StageStore, key: str) -> Scores:
    """Scores that the store has after a stage."""
    return {
        evaluation: of
        for sitting in store.sittings(key)
        for evaluation, of in cells(sitting["cells"]).items()
    }


# -- seed noise ------------------------------------------------------------------------------------


def noise(study: Study, store: StageStore, meaning: Mapping[str, Any]) -> tuple[float | None, str]:
    """(Standard deviation over seeds, over what); (None, "") where no stage has two seeds."""
    seeds = sorted({meaning["seed"], *(seed for _, seed in (*study.blocks, *study.final_blocks))})

    def over(trained_tasks: Any) -> Iterator[list[float]]:
        """For each exam, its scores over the seeds that have it; two or more."""
        by_evaluation: dict[str, list[float]] = {}
        for seed in seeds:
            key = digest({**meaning, "learns": trained_tasks, "seed": seed})
            for evaluation, (_, score) in published(store, key).items():
                by_evaluation.setdefault(evaluation, []).append(score)
        return (scores for scores in by_evaluation.values() if len(scores) > 1)

    own = [*over(meaning["learns"])]
    if own:
        return pooled(own), f"{max(map(len, own))} seeds of that stage"
    others = [s for name, data in study.tasks.items() for s in over([[name, data.digests["train"]]])]
    if others:
        return pooled(others), f"up to {max(map(len, others))} seeds of the same stage of other tasks"
    return None, ""


def pooled(groups: list[list[float]]) -> float:
    """Standard deviation within groups of equal weight."""
    return sqrt(sum(map(variance, groups)) / len(groups))


# -- in words --------------------------------------------------------------------------------------


def sentences(found: Machines) -> list[str]:
    """What is to be known of several kinds of machine; nothing where there is one."""
    count, most = len(found.kinds), found.largest
    if count < 2:
        return []
    opening = f"The stages were learned on {count} kinds of machine"
    if most is None or most.drift is None:
        return [f"{opening}; how far these drift apart was not measured."]
    text = f"largest drift {100 * most.drift:.1f} points ({most.evaluation}, on {most.kind})"
    unknown = sum(machine.drift is None and not machine.reference for machine in found.kinds)
    more = [f"{unknown} of these kinds {'was' if unknown == 1 else 'were'} not measured."] * bool(unknown)
    if found.noise is None:
        return [
            f"{opening}, {text}. No stage has two seeds, so it cannot be judged against seed noise.",
            *more,
        ]
    noise = f"{100 * found.noise:.1f} points, the standard deviation over {found.noise_of}"
    if not found.apart:
        return [f"{opening}, {text}, within seed noise ({noise}).", *more]
    return [
        f"Warning: {opening[0].lower()}{opening[1:]} that differ by more than seeds do: {text}, "
        f"seed noise {noise}. Compare settings that were learned on one kind, or learn all on one.",
        *more,
    ]


def warning(found: Machines) -> list[str]:
    """The sentences that a reader must not miss."""
    return [sentence for sentence in sentences(found) if sentence.startswith("Warning")]


def rows(found: Machines) -> list[list[str]]:
    """Per kind of machine: stages, drift in points, at which exam, its weights; none for a single kind."""
    same = {True: "the same to the bit", False: "other digits", None: "–"}

    def gap(machine: Machine) -> str:
        if machine.drift is None:
            return "reference" if machine.reference else "not measured"
        return f"{100 * machine.drift:.1f}"

    kinds = found.kinds if len(found.kinds) > 1 else ()
    return [[m.kind, str(m.stages), gap(m), m.evaluation or "–", same[m.same]] for m in kinds]
