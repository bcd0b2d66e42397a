"""Which study runs next: priority, then fair share between users, then who came first.

    1  the highest priority
    2  of these, the user with the fewest worker-hours: of the last week's runs, of what runs now, and one
       hour for each study of theirs that stands before in the queue
    3  of the user's studies, the one that was submitted first

A study that runs counts as one hour at least, because nobody knows what it will take. The first study of the
queue starts as soon as the machines have room for it; nothing overtakes it meanwhile, so that a large study
does not wait for ever. One that needs more than there is runs alone. A study whose owner has reached a limit
is passed over and holds nobody up.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dgg_ray.service.state import State, Submitted

SHARE_S = 7 * 86_400.0  # of the past, which counts for the fair share
STUDY_HOURS = 1.0  # that a study counts as, before it has spent more
WORKER_HOURS = "worker-hours"
STARTS_NOW = "starts now"  # what a study waits for that only has to be given to a runner


@dataclass(frozen=True)
class Capacity:
    """The most that the machines hold: cores for studies on CPUs, and GPUs."""

    cpus: float
    gpus: float = 0.0

    def has_room(self, needs: Mapping[str, float], used: Mapping[str, float]) -> bool:
        """Return whether a study fits beside what is used. One that needs GPUs brings its cores with it."""
        unit, most = ("gpus", self.gpus) if needs.get("gpus") else ("cpus", self.cpus)
        return not any(used.values()) or needs.get(unit, 0.0) + used.get(unit, 0.0) <= most + 1e-9


@dataclass(frozen=True)
class Place:
    """The place of a study in the queue.

    place: from 1; 0 for one that is passed over. reason: for which it waits, in words.
    starts_at: when it will probably start, in seconds since 1970; None where nobody knows.
    """

    study: Submitted
    place: int
    reason: str
    starts_at: float | None = None


def queue(
    state: State, capacity: Capacity, running_hours: Mapping[str, float], now: float | None = None
) -> list[Place]:
    """The waiting studies in the order in which they start, each with the reason for which it waits.

    running_hours: worker-hours that active studies have spent in all their runs, as far as they are known.
    """
    spent = spent_now(state, running_hours)
    shares = shares_of(state, spent, time.time() if now is None else now)
    active = Counter(study.owner for study in state.active)
    waiting: dict[int, dict[str, deque[Submitted]]] = {}  # priority → owner → studies, the first first
    places, held = list[Place](), list[Place]()
    for study in sorted(state.queued, key=lambda study: study.number):
        if reason := limit_reason(state, study.owner, active[study.owner], spent):
            held.append(Place(study, 0, reason))
        else:
            waiting.setdefault(study.priority, {}).setdefault(study.owner, deque()).append(study)
    for priority in sorted(waiting, reverse=True):
        of_owner = waiting[priority]
        while of_owner:
            owner = min(of_owner, key=lambda name: (shares[name], of_owner[name][0].number))
            study = of_owner[owner].popleft()
            if not of_owner[owner]:
                del of_owner[owner]
            shares[owner] += STUDY_HOURS
            places.append(Place(study, len(places) + 1, waiting_reason(state, capacity, study, len(places))))
    return places + held


def next_study(
    state: State, capacity: Capacity, running_hours: Mapping[str, float], now: float | None = None
) -> Submitted | None:
    """The study to start now; None where nothing waits or the first has no room yet."""
    first = next((p for p in queue(state, capacity, running_hours, now) if p.place), None)
    return first.study if first and capacity.has_room(first.study.needs, used(state)) else None


def start_times(
    state: State,
    capacity: Capacity,
    places: Sequence[Place],
    ends: Mapping[str, float],
    wall_s: Mapping[str, float],
) -> dict[str, float]:
    """Predict when waiting studies will start, in the unit of `ends`.

    A study that must wait for one whose end nobody knows is left out. A user's limits are not foreseen.

    ends: when active studies will end. wall_s: seconds that waiting studies will run.
    """
    now = time.time()
    running = [(max(now, ends.get(s.name, math.inf)), s.number, s.needs) for s in state.active]
    heapq.heapify(running)
    starts: dict[str, float] = {}
    for place in places:
        if not place.place:
            continue
        study = place.study
        while not capacity.has_room(study.needs, total_needs(needs for *_, needs in running)):
            now, _, _ = heapq.heappop(running)
        if math.isinf(now):
            break
        starts[study.name] = now
        heapq.heappush(running, (now + wall_s.get(study.name, math.inf), study.number, study.needs))
    return starts


def used(state: State) -> dict[str, float]:
    """The needs of all active studies together."""
    return total_needs(study.needs for study in state.active)


def total_needs(needs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total = Counter[str]()
    for amounts in needs:
        total.update(amounts)
    return dict(total)


def spent_now(state: State, running_hours: Mapping[str, float]) -> dict[str, float]:
    """Worker-hours by user that the runs of now have spent; earlier runs of their studies count elsewhere."""
    hours = defaultdict[str, float](float)
    for study in state.active:
        earlier = study.spent.get(WORKER_HOURS, 0.0)
        hours[study.owner] += max(STUDY_HOURS, running_hours.get(study.name, 0.0) - earlier)
    return hours


def shares_of(state: State, spent: Mapping[str, float], now: float) -> defaultdict[str, float]:
    """Worker-hours by user: of the last week's runs, and of what runs now."""
    shares = defaultdict[str, float](float, spent)
    for run in state.spending:
        if run["at"] >= now - SHARE_S:
            shares[run["user"]] += run.get(WORKER_HOURS, 0.0)
    return shares


def limit_reason(state: State, owner: str, active: int, spent: Mapping[str, float]) -> str:
    """The reason for which the owner's limits keep a study back; empty where they do not."""
    user = state.users.get(owner)
    limits = user.limits if user else {}
    if (most := limits.get("at_once")) is not None and active >= most:
        return f"{owner} may run {most:g} at once"
    hours = state.spent_by(owner) + spent.get(owner, 0.0)
    if (most := limits.get("worker_hours")) is not None and hours >= most:
        return f"{owner} has spent {hours:.3g} of {most:g} worker-hours"
    return ""


def waiting_reason(state: State, capacity: Capacity, study: Submitted, before: int) -> str:
    if before:
        return f"{before} before it"
    taken = used(state)
    if capacity.has_room(study.needs, taken):
        return STARTS_NOW
    unit = "gpus" if study.needs.get("gpus") else "cpus"
    name = {"gpus": "GPUs", "cpus": "cores"}[unit]
    free = max(0.0, getattr(capacity, unit) - taken.get(unit, 0.0))
    return f"needs {study.needs[unit]:g} {name}, {free:g} are free"
