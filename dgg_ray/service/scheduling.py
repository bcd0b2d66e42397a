"""Which study runs next: priority, then fair share between users, then who came first.

    1  the highest priority
    2  of these, the user with the fewest worker-hours: of the last week's runs, and one for each study of
       theirs that runs or stands before in the queue, or what it is predicted to take
    3  of the user's studies, the one that was submitted first

The first study of the queue starts as soon as the machines have room for it; nothing overtakes it meanwhile,
so that a large study does not wait for ever. One that needs more than there is runs alone. A study whose
owner has reached a limit is passed over and holds nobody up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from dgg_ray.service.state import State, Submitted

SHARE_S = 7 * 86_400.0  # of the past, which counts for the fair share
UNKNOWN_HOURS = 1.0  # of a study whose hours nobody has predicted


@dataclass(frozen=True)
class Capacity:
    """What the machines hold at most: cores for studies on CPUs, and GPUs."""

    cpus: float
    gpus: float = 0.0

    def has_room(self, needs: Mapping[str, float], used: Mapping[str, float]) -> bool:
        """Return whether a study fits beside what is used. One that needs GPUs brings its cores with it."""
        unit, most = ("gpus", self.gpus) if needs.get("gpus") else ("cpus", self.cpus)
        return not any(used.values()) or needs.get(unit, 0.0) + used.get(unit, 0.0) <= most + 1e-9


@dataclass(frozen=True)
class Place:
    """Where a study stands in the queue. place: from 1; 0 for one that is passed over. reason: in words."""

    study: Submitted
    place: int
    reason: str


def queue(
    state: State, capacity: Capacity, hours: Mapping[str, float] | None = None, now: float | None = None
) -> list[Place]:
    """The waiting studies in the order in which they start, each with the reason for which it waits.

    hours: predicted worker-hours by study, as far as they are known.
    """
    hours, now = hours or {}, time.time() if now is None else now
    shares = shares_of(state, hours, now)
    running: dict[str, int] = {}
    for study in state.active:
        running[study.owner] = running.get(study.owner, 0) + 1
    waiting, places, held = list(state.queued), list[Place](), list[Place]()
    while waiting:
        study = min(waiting, key=lambda s: (-s.priority, shares.get(s.owner, 0.0), s.number))
        waiting.remove(study)
        if reason := limit_reason(state, study, running.get(study.owner, 0)):
            held.append(Place(study, 0, reason))
            continue
        shares[study.owner] = shares.get(study.owner, 0.0) + hours.get(study.name, UNKNOWN_HOURS)
        places.append(Place(study, len(places) + 1, waiting_reason(state, capacity, study, len(places))))
    return places + held


def next_study(
    state: State, capacity: Capacity, hours: Mapping[str, float] | None = None, now: float | None = None
) -> Submitted | None:
    """The study to start now; None where nothing waits or the first has no room yet."""
    first = next((p for p in queue(state, capacity, hours, now) if p.place), None)
    return first.study if first and capacity.has_room(first.study.needs, used(state)) else None


def used(state: State) -> dict[str, float]:
    """What the active studies need together."""
    total: dict[str, float] = {}
    for study in state.active:
        for unit, amount in study.needs.items():
            total[unit] = total.get(unit, 0.0) + amount
    return total


def shares_of(state: State, hours: Mapping[str, float], now: float) -> dict[str, float]:
    """Worker-hours by user: of the last week's runs, and predicted for what runs now."""
    shares = dict[str, float]()
    for run in state.spending:
        if run["at"] >= now - SHARE_S:
            shares[run["user"]] = shares.get(run["user"], 0.0) + run.get("worker-hours", 0.0)
    for study in state.active:
        shares[study.owner] = shares.get(study.owner, 0.0) + hours.get(study.name, UNKNOWN_HOURS)
    return shares


def limit_reason(state: State, study: Submitted, running: int) -> str:
    """The reason for which the owner's limits keep the study back; empty where they do not."""
    user = state.users.get(study.owner)
    limits = user.limits if user else {}
    if (most := limits.get("at_once")) is not None and running >= most:
        return f"{study.owner} may run {most:g} at once"
    if (most := limits.get("worker_hours")) is not None and (spent := state.spent_by(study.owner)) >= most:
        return f"{study.owner} has spent {spent:.3g} of {most:g} worker-hours"
    return ""


def waiting_reason(state: State, capacity: Capacity, study: Submitted, before: int) -> str:
    if before:
        return f"{before} before it"
    taken = used(state)
    if capacity.has_room(study.needs, taken):
        return "starts now"
    unit = "gpus" if study.needs.get("gpus") else "cpus"
    name = {"gpus": "GPUs", "cpus": "cores"}[unit]
    free = max(0.0, getattr(capacity, unit) - taken.get(unit, 0.0))
    return f"needs {study.needs[unit]:g} {name}, {free:g} are free"
