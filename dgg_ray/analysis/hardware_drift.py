"""Differences between machine types, compared with those between seeds.

    drift of a type   largest |score there − stored score| over the evaluations of the reference stage
    seed noise        √ mean over its evaluations of the variance over seeds (n − 1), of the reference stage
                      with other seeds; without a second seed, the same of that stage of other tasks, pooled

The seeds are the study's, as far as their stages are finished; at least two are needed. A drift is one
difference of two runs. Its standard deviation would be √2 times the noise if machines differed as seeds do,
so the comparison warns rather too often. `storage/hardware_notes.py` defines the stored results.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from statistics import variance
from typing import Any

from dgg_ray.analysis.results import HardwareDrift, MachineDrift
from dgg_ray.config.study import Study
from dgg_ray.core.environment import machine_type, machine_type_named
from dgg_ray.core.hashing import digest
from dgg_ray.storage import hardware_notes
from dgg_ray.storage.stage_store import StageStore

NamedScores = dict[str, tuple[str, float]]  # evaluation key → ("task split", score)


def machine_drifts(study: Study, store: StageStore, stages: Mapping[str, int]) -> HardwareDrift:
    """Return the drift of each machine type, and the seed noise to compare it with.

    stages: name of a machine type → stages trained on it.
    """
    checks = hardware_notes.list_checks(store, study.data.fingerprint)
    machine_types = tuple(
        machine_drift(store, name, count, checks.get(machine_type_named(name).id))
        for name, count in sorted(stages.items(), key=lambda pair: (-pair[1], pair[0]))
    )
    meaning = next((check["meaning"] for check in checks.values() if was_retrained(check)), None)
    if len(machine_types) < 2 or meaning is None:
        return HardwareDrift(machine_types)
    return HardwareDrift(machine_types, *seed_noise(study, store, meaning))


def was_retrained(check: Mapping[str, Any]) -> bool:
    """Return whether the check retrained the reference stage; otherwise it is the reference itself."""
    return machine_type(check["environment"]).id != check["reference"]


def machine_drift(store: StageStore, name: str, stages: int, check: Mapping[str, Any] | None) -> MachineDrift:
    """Return one machine type's drift, from the result of its hardware check."""
    if check is None:
        return MachineDrift(name, stages)
    if not was_retrained(check):
        return MachineDrift(name, stages, is_reference=True)
    retrained, stored = scores_by_evaluation(check["scores"]), stored_scores(store, check["key"])
    gaps = [
        (abs(retrained[evaluation][1] - stored[evaluation][1]), retrained[evaluation][0])
        for evaluation in retrained.keys() & stored.keys()
    ]
    drift, evaluation = max(gaps, default=(None, ""))
    weights = check["weights"], check["published_weights"]
    identical = weights[0] == weights[1] if all(weights) else None
    return MachineDrift(name, stages, drift, evaluation, identical)


def scores_by_evaluation(entries: list[dict[str, Any]]) -> NamedScores:
    """Index score entries by evaluation key."""
    return {entry["evaluation"]: (f"{entry['task']} {entry['split']}", entry["score"]) for entry in entries}


def stored_scores(store: StageStore, key: str) -> NamedScores:
    """Return the scores that the store holds after a stage."""
    scores: NamedScores = {}
    for record in store.evaluation_records(key):
        scores |= scores_by_evaluation(record["scores"])
    return scores


# -- seed noise ------------------------------------------------------------------------------------


def seed_noise(study: Study, store: StageStore, meaning: Mapping[str, Any]) -> tuple[float | None, str]:
    """Return (standard deviation over seeds, its basis in words); (None, "") where no stage has two seeds."""
    seeds = sorted({meaning["seed"], *(seed for _, seed in (*study.blocks, *study.final_blocks))})

    def scores_over_seeds(trained_tasks: Any) -> list[list[float]]:
        """Return the scores of each evaluation over the seeds that have it, for two seeds or more."""
        by_evaluation: dict[str, list[float]] = {}
        for seed in seeds:
            key = digest({**meaning, "learns": trained_tasks, "seed": seed})
            for evaluation, (_, score) in stored_scores(store, key).items():
                by_evaluation.setdefault(evaluation, []).append(score)
        return [scores for scores in by_evaluation.values() if len(scores) > 1]

    own = scores_over_seeds(meaning["learns"])
    if own:
        return pooled_deviation(own), f"{max(map(len, own))} seeds of that stage"
    others: list[list[float]] = []
    for name, data in study.data.tasks.items():
        others += scores_over_seeds([[name, data.digests["train"]]])
    if others:
        return pooled_deviation(
            others
        ), f"up to {max(map(len, others))} seeds of the same stage of other tasks"
    return None, ""


def pooled_deviation(groups: list[list[float]]) -> float:
    """Return the standard deviation within groups, each with equal weight."""
    return sqrt(sum(map(variance, groups)) / len(groups))


# -- in words --------------------------------------------------------------------------------------


def drift_sentences(hardware: HardwareDrift) -> list[str]:
    """Say whether several machine types agree; empty for a single type."""
    types, most = hardware.machine_types, hardware.largest_drift
    if len(types) < 2:
        return []
    opening = f"The stages were trained on {len(types)} machine types"
    if most is None or most.drift is None:
        return [f"{opening}; how far these drift apart was not measured."]
    largest = f"largest drift {100 * most.drift:.1f} points ({most.evaluation}, on {most.machine_type})"
    unmeasured = sum(machine.drift is None and not machine.is_reference for machine in types)
    further = []
    if unmeasured:
        further.append(f"{unmeasured} of these types {'was' if unmeasured == 1 else 'were'} not measured.")
    if hardware.seed_noise is None:
        reason = "No stage has two seeds, so the drift cannot be compared with seed noise."
        return [f"{opening}, {largest}. {reason}", *further]
    noise = f"{100 * hardware.seed_noise:.1f} points, the standard deviation over {hardware.seed_noise_basis}"
    if not hardware.exceeds_seed_noise:
        return [f"{opening}, {largest}, within seed noise ({noise}).", *further]
    return [
        f"Warning: {opening[0].lower()}{opening[1:]} whose largest difference exceeds seed noise: {largest}, "
        f"seed noise {noise}. Compare settings that were trained on one type, or train all on one.",
        *further,
    ]


def drift_warnings(hardware: HardwareDrift) -> list[str]:
    """Return the warnings among the sentences, which a reader must not miss."""
    return [sentence for sentence in drift_sentences(hardware) if sentence.startswith("Warning")]


def machine_rows(hardware: HardwareDrift) -> list[list[str]]:
    """Return a row per machine type: its name, stages, drift in points, evaluation of the drift, weights.

    There are no rows for a single type.
    """
    if len(hardware.machine_types) < 2:
        return []
    weights = {True: "identical to the bit", False: "different digits", None: "–"}
    rows = []
    for machine in hardware.machine_types:
        if machine.drift is not None:
            drift = f"{100 * machine.drift:.1f}"
        else:
            drift = "reference" if machine.is_reference else "not measured"
        evaluation = machine.evaluation or "–"
        rows.append(
            [machine.machine_type, str(machine.stages), drift, evaluation, weights[machine.weights_identical]]
        )
    return rows
