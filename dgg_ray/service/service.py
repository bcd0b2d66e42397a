"""The service itself: what a person may ask of it, and what it does by itself.

A command (`submit`, `stop`, …) adds one event to the journal, or raises why not. `supervise` starts what may
start and takes note of runners that are gone; every server of a store does so, because the journal lets only
one of them succeed. What is shown is read from the journal and from the store's registry of studies.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from dgg_ray.config import registry
from dgg_ray.core.errors import Fault, StudyError, nearest_name
from dgg_ray.service import checks, runner, scheduling
from dgg_ray.service.check_process import CheckProcess
from dgg_ray.service.checks import Rules
from dgg_ray.service.journal import Journal
from dgg_ray.service.launchers import Launcher
from dgg_ray.service.refused import RefusedError
from dgg_ray.service.scheduling import Capacity
from dgg_ray.service.state import ACTIVE, OVER, Event, State, Submitted
from dgg_ray.storage.stage_store import StageStore

SUPERVISE_S = 1.0  # between looks for work
LISTING_S = 10.0  # between listings of the registry, which finds studies that were run elsewhere
LIVE_S = 2.0  # between looks at what runs
SILENT_S = 120.0  # between looks at what was begun elsewhere and is silent
START_S = 60.0  # for a runner to begin; then its study waits again
MOST_LOSSES = 4  # runners that a study may lose one after another
PREDICTED = 20  # studies at the head of the queue, whose times are predicted


@dataclass
class Known:
    """An entry of the registry. live: its last progress; seen_at: when it was read."""

    question: str
    live: dict[str, Any]
    seen_at: float


@dataclass
class Service:
    """A store's service on this machine. Thread-safe; the commands wait for the store.

    launcher: starts runners. capacity: of the machines. priorities: the lowest and the highest.
    """

    store: StageStore
    rules: Rules
    root: Path
    launcher: Launcher
    capacity: Capacity
    priorities: tuple[int, int] = (-10, 10)
    journal: Journal = field(init=False)
    known: dict[str, Known] = field(default_factory=dict, init=False)
    predicted: dict[tuple[str, int], dict[str, Any]] = field(
        default_factory=dict, init=False
    )  # by study, run
    stopped: threading.Event = field(default_factory=threading.Event, init=False)
    news: threading.Event = field(default_factory=threading.Event, init=False)  # something may start
    listed_at: float = field(default=float("-inf"), init=False)
    looked_at: float = field(default=float("-inf"), init=False)
    problem: str = field(default="", init=False)  # why the store could not be reached at the last look

    def __post_init__(self) -> None:
        self.journal = Journal(self.store.backend)
        self.child = CheckProcess()

    # -- commands ----------------------------------------------------------------------------------

    def check(self, text: str) -> dict[str, Any]:
        """Check a study's text: {name, question, faults, warnings, needs}."""
        return self.child.call(checks.check, text, self.rules)

    def plan(self, text: str, detect: float | None = None) -> dict[str, Any]:
        """Predict what a study costs. Raises StudyError where it has faults."""
        return self.child.call(checks.plan, text, self.rules, detect)

    def submit(self, text: str, by: str, priority: int = 0, cloned_from: str = "") -> Submitted:
        """Put a study into the queue. Raises StudyError for its faults, RefusedError for a taken name."""
        found = self._sound(text)
        name = found["name"]
        event = {
            "kind": "submitted",
            "by": by,
            "study": name,
            "text": text,
            "question": found["question"],
            "needs": found["needs"],
            "priority": self._priority(priority),
            "cloned_from": cloned_from,
        }

        def decide(state: State) -> Event:
            if name in state.studies:
                raise RefusedError(
                    f"there is a study {name!r} already, of {state.studies[name].owner}; give this one "
                    "another name, or resume that one"
                )
            return event

        self.journal.commit(decide)
        self.news.set()
        return self.journal.state.studies[name]

    def stop(self, name: str, by: str) -> None:
        """End a study as Ctrl-C does, or take it from the queue; finished stages are kept."""

        def decide(state: State) -> Event:
            study = self._submitted(state, name)
            if study.state in (*OVER, "stopping"):
                raise RefusedError(f"{name} is {study.state} already")
            return {"kind": "stop asked", "by": by, "study": name}

        self.journal.commit(decide)

    def resume(self, name: str, by: str, text: str | None = None) -> None:
        """Put a study that is over into the queue again; text: with these changes."""
        changes: dict[str, Any] = {}
        if text is not None:
            found = self._sound(text)
            if found["name"] != name:
                raise RefusedError(f"the text is of a study {found['name']!r}, not of {name!r}")
            changes = {key: found[key] for key in ("question", "needs")} | {"text": text}

        def decide(state: State) -> Event:
            study = self._submitted(state, name)
            if study.state not in OVER:
                raise RefusedError(f"{name} is {study.state}; only a study that is over can be resumed")
            return {"kind": "resumed", "by": by, "study": name, **changes}

        self.journal.commit(decide)
        self.news.set()

    def set_priority(self, name: str, by: str, priority: int) -> None:
        """Change a study's priority; one that runs already keeps its machines."""
        priority = self._priority(priority)

        def decide(state: State) -> Event | None:
            if self._submitted(state, name).priority == priority:
                return None
            return {"kind": "priority", "by": by, "study": name, "priority": priority}

        self.journal.commit(decide)

    def delete(self, name: str, by: str) -> None:
        """Forget a study that does not run. Its stages stay until `dgg-ray gc` removes what nobody needs."""

        def decide(state: State) -> Event | None:
            study = state.studies.get(name)
            if study is None:
                if name not in self.known:
                    self._unknown(state, name)
                if self.state_of(name) == "running":
                    raise RefusedError(f"{name} runs outside this service; stop it there first")
                return None
            if study.state in ACTIVE:
                raise RefusedError(f"{name} is {study.state}; stop it first")
            return {"kind": "deleted", "by": by, "study": name}

        self.journal.commit(decide)
        for document, _ in list(self.store.list_documents(f"studies/{name}/")):
            self.store.remove_document(document)
        self.store.remove_document(runner.log_name(name))
        self.known.pop(name, None)

    def clone(
        self, name: str, by: str, new_name: str, changes: Mapping[str, Any], priority: int = 0
    ) -> Submitted:
        """Submit a study's text under another name, with changed settings: dotted path → value."""
        text = self.child.call(checks.clone, self.text(name), new_name, dict(changes))
        return self.submit(text, by, priority, cloned_from=name)

    def extend(
        self,
        name: str,
        by: str,
        tasks: Mapping[str, str],
        reader: str,
        new_name: str | None,
        priority: int = 0,
    ) -> Submitted:
        """Submit a study with more tasks after its own; its stages are not trained again.

        tasks: name → a folder, a train file, or the name of a reader that needs no files.
        """
        text = self.extended_text(name, tasks, reader, new_name)
        return self.submit(text, by, priority, cloned_from=name)

    def extended_text(
        self, name: str, tasks: Mapping[str, str], reader: str, new_name: str | None = None
    ) -> str:
        """The text of a study with more tasks after its own. Raises StudyError for what cannot be added."""
        return self.child.call(checks.extend, self.text(name), self.rules, dict(tasks), reader, new_name)

    def decide(self, name: str, by: str, decision: Mapping[str, Any]) -> dict[str, Any]:
        """Record a decision about a running study: stop a setting or a branch, pin a setting, a budget."""
        if name not in self.names():
            self._unknown(self.journal.state, name)
        return self.child.call(checks.decide, name, self.rules, dict(decision), by)

    def decisions(self, name: str) -> list[dict[str, Any]]:
        """The decisions about a study, in their order."""
        self.card(name)
        return [document for _, document in self.store.list_documents(f"studies/{name}/decisions/")]

    # -- what is shown -----------------------------------------------------------------------------

    def text(self, name: str) -> str:
        """The text of a study: as it was submitted, or as the store holds it."""
        state = self.journal.catch_up(at_once=False)
        if study := state.studies.get(name):
            return study.text
        if name not in self.known:
            self._unknown(state, name)
        return self.child.call(checks.text_of, name, self.rules)

    def names(self) -> list[str]:
        """The names of all studies: submitted ones, and those that were run with the store elsewhere."""
        state = self.journal.catch_up(at_once=False)
        with self.journal.lock:
            return sorted({*state.studies, *self.known})

    def state_of(self, name: str) -> str:
        """The study's state: of the service's own, or running, finished, stopped, failed or silent."""
        return self.card(name)["state"]

    def state_and_run(self, name: str) -> tuple[str, int]:
        """The study's state, "" for one that is not known, and the number of its run here, from 1; else 0."""
        study, known = self.journal.state.studies.get(name), self.known.get(name)
        if study is not None:
            return study.state, study.run
        return outside_state(known.live) if known else "", 0

    def running_hours(self) -> dict[str, float]:
        """Worker-hours that the active studies have spent in all their runs, as far as they are known."""
        active = {study.name for study in self.journal.state.active}
        live = {name: known.live for name, known in list(self.known.items()) if name in active}
        return {name: hours for name, found in live.items() if (hours := found.get("worker_hours"))}

    def card(self, name: str, places: Mapping[str, scheduling.Place] | None = None) -> dict[str, Any]:
        """The study as the list of studies shows it. Raises RefusedError for one that there is not."""
        state = self.journal.state
        study, known = state.studies.get(name), self.known.get(name)
        if study is None and known is None:
            self._unknown(state, name)
        places = self.places() if places is None else places
        place = places.get(name)
        live = known.live if known else {}
        state_now, _ = self.state_and_run(name)
        predicted = self.predicted.get((study.name, study.run), {}) if study else {}
        return {
            "name": name,
            "question": study.question if study else known.question if known else "",
            "state": state_now,
            "owner": study.owner if study else "",
            "priority": study.priority if study else 0,
            "place": place.place if place else None,
            "waits_for": place.reason if place else "",
            "starts_at": place.starts_at if place else None,
            "message": study.message if study else live.get("ended", "").partition("failed: ")[2],
            "best": live.get("best", ""),
            "progress": {
                key: live.get(key)
                for key in ("done", "total", "exact", "trained", "failed", "queued", "running", "phase")
            }
            if live
            else None,
            "left_s": live.get("left_s") if state_now in ("running", "stopping") else None,
            "spent": live.get("spent"),
            "spent_unit": live.get("spent_unit") or predicted.get("unit"),
            "forecast": live.get("forecast") or predicted.get("forecast"),
            "submitted_at": study.submitted_at if study else None,
            "changed_at": max(study.since if study else 0.0, live.get("at", 0.0)),
            "cloned_from": study.cloned_from if study else "",
            "submitted_here": study is not None,
        }

    def cards(self) -> list[dict[str, Any]]:
        places, found = self.places(), []
        for name in self.names():
            with suppress(RefusedError):  # it was deleted meanwhile
                found.append(self.card(name, places))
        return found

    def places(self) -> dict[str, scheduling.Place]:
        """Every waiting study's place in the queue."""
        ends = {
            name: known.live["at"] + known.live["left_s"][0]
            for name, known in list(self.known.items())
            if known.live.get("left_s") and not known.live.get("ended")
        }
        wall_s = {
            name: found["wall_s"] for (name, _), found in list(self.predicted.items()) if found.get("wall_s")
        }
        with self.journal.lock:
            state = self.journal.state
            found = scheduling.queue(state, self.capacity, self.running_hours())
            starts = scheduling.start_times(state, self.capacity, found, ends, wall_s)
        minutes = {name: 60.0 * math.ceil(at / 60) for name, at in starts.items()}  # so that it rarely moves
        return {p.study.name: replace(p, starts_at=minutes.get(p.study.name)) for p in found}

    def log(self, name: str) -> str:
        """The end of what the study's runs printed."""
        document = self.store.get_document(runner.log_name(name))
        return document["text"] if document else ""

    def spending(self) -> list[dict[str, Any]]:
        """The spending of each run: {at, user, study, unit: amount}."""
        with self.journal.lock:
            return [dict(run) for run in self.journal.catch_up(at_once=False).spending]

    # -- by itself ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to supervise, in a thread."""
        threading.Thread(target=self._supervise_for_ever, name="supervisor", daemon=True).start()
        threading.Thread(target=self._predict_for_ever, name="predictions", daemon=True).start()

    def close(self) -> None:
        self.stopped.set()
        self.news.set()
        self.child.close()

    def _supervise_for_ever(self) -> None:
        while not self.stopped.is_set():
            self.news.wait(SUPERVISE_S)
            self.news.clear()
            try:
                self.look()
                self.supervise()
                self.child.rest()
                self.problem = ""
            except Exception as error:  # the store may answer again at the next look
                self.problem = f"{type(error).__name__}: {error}"

    def _predict_for_ever(self) -> None:
        with suppress(Exception):
            self.child.call(checks.strategies)  # it imports for seconds; the first check need not wait
        while not self.stopped.wait(SUPERVISE_S):
            with suppress(Exception):  # a list without predictions is still a list
                self.predict_next()

    def predict_next(self) -> None:
        """Predict how long the first waiting study without a prediction will run, and what it will spend."""
        waiting = sorted(self.places().values(), key=lambda place: place.place)
        keys = {(place.study.name, place.study.run) for place in waiting}
        self.predicted = {key: found for key, found in self.predicted.items() if key in keys}
        for place in waiting[:PREDICTED]:
            key = place.study.name, place.study.run
            if place.reason != scheduling.STARTS_NOW and key not in self.predicted:
                self.predicted[key] = {}
                self.predicted[key] = self.child.call(checks.predict, place.study.text, self.rules)
                return

    def look(self) -> None:
        """Read what the registry says: of all studies now and then, of those that run more often."""
        now = time.monotonic()
        listing = now - self.listed_at >= LISTING_S
        if not listing and now - self.looked_at < LIVE_S:
            return
        self.looked_at = now
        if listing:
            self.listed_at = now
            names = registry.study_names(self.store)
            for name in names - self.known.keys():
                self._look_at(name, new=True)
            for name in self.known.keys() - names:
                self.known.pop(name, None)
        for name, known in list(self.known.items()):
            if self._has_news(name, known):
                self._look_at(name)

    def _has_news(self, name: str, known: Known) -> bool:
        """Return whether a study may have gone on: it is active, or runs or was silent elsewhere."""
        if (study := self.journal.state.studies.get(name)) is not None:
            return study.state in ACTIVE or study.since > known.seen_at - LIVE_S
        running = outside_state(known.live) == "running"
        return running or (not known.live.get("ended") and time.time() - known.seen_at > SILENT_S)

    def _look_at(self, name: str, new: bool = False) -> None:
        live = self.store.get_document(registry.document_name(name, registry.LIVE))
        question = self.known[name].question if name in self.known else ""
        if new:
            document = self.store.get_document(registry.document_name(name, registry.STUDY))
            if document is None:
                return
            question = document["content"]["raw"].get("question", "")
        self.known[name] = Known(question, live["content"] if live else {}, time.time())

    def supervise(self) -> None:
        """Take note of runners that are gone, and start what may start."""
        state = self.journal.catch_up()
        with self.journal.lock:
            runners = list(state.runners.values())
        for found in runners:
            late = time.time() - found.since > START_S if not found.owner else True
            if late and not runner.is_alive(self.store, found.id):
                self._runner_gone(found.id)
        while self._start_next():
            pass

    def _runner_gone(self, runner_id: str) -> None:
        """Let the runner's study wait again, or fail where it lost too many, and forget the runner."""

        def lose(state: State) -> Event | None:
            found = state.runners.get(runner_id)
            if found is None or not found.study:
                return None
            study = state.studies[found.study]
            if study.losses + 1 >= MOST_LOSSES and study.state != "stopping":
                message = f"lost {MOST_LOSSES} runners one after another; "
                message += f"the last one wrote to {self.launcher.output_of(runner_id)}"
                facts = {"how": "failed", "message": message}
                return {"kind": "ended", "by": "server", "study": found.study, **facts}
            return {"kind": "lost", "by": "server", "study": found.study, "runner": runner_id}

        def forget(state: State) -> Event | None:
            if runner_id not in state.runners:
                return None
            return {"kind": "runner gone", "by": "server", "runner": runner_id}

        self.journal.commit(lose)
        self.journal.commit(forget)

    def _start_next(self) -> bool:
        """Give the next study to a runner; start one where none is idle. Return whether a study started."""
        launch = ""

        def decide(state: State) -> Event | None:
            nonlocal launch
            launch = ""
            study = scheduling.next_study(state, self.capacity, self.running_hours())
            if study is None:
                return None
            idle = next((r.id for r in state.idle_runners if runner.is_alive(self.store, r.id)), "")
            launch = "" if idle else uuid.uuid4().hex[:12]
            return {"kind": "started", "by": "server", "study": study.name, "runner": idle or launch}

        if self.journal.commit(decide) is None:
            return False
        if launch:
            self.launcher.start(launch)
        return True

    # -- helpers -----------------------------------------------------------------------------------

    def _sound(self, text: str) -> dict[str, Any]:
        """Check a study's text; StudyError holds its faults."""
        found = self.check(text)
        if found["faults"]:
            faults = [
                {key: value for key, value in fault.items() if key != "text"} for fault in found["faults"]
            ]
            raise StudyError([Fault(**fault) for fault in faults])
        return found

    def _submitted(self, state: State, name: str) -> Submitted:
        if (study := state.studies.get(name)) is not None:
            return study
        if name in self.known:
            raise RefusedError(
                f"{name} was not submitted to this service, so it is steered from where it runs"
            )
        self._unknown(state, name)

    def _unknown(self, state: State, name: str) -> NoReturn:
        near = nearest_name(name, {*state.studies, *self.known})
        raise RefusedError(f"there is no study {name!r}{near and f'. Did you mean {near!r}?'}", 404)

    def _priority(self, priority: int) -> int:
        low, high = self.priorities
        if not low <= priority <= high:
            rule = f"must be a whole number from {low} to {high}"
            raise StudyError([Fault("priority", rule, repr(priority))], "priority")
        return priority


def outside_state(live: Mapping[str, Any]) -> str:
    """The state of a study that runs outside the service, by its last progress."""
    if ended := str(live.get("ended", "")):
        return {"ended": "finished", "stopped": "stopped"}.get(ended, "failed")
    return "running" if time.time() - live.get("at", 0.0) < registry.FRESH_S else "silent"
