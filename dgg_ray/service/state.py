"""The service's state: users, studies and runners, as they follow from the journal's events.

    kind              by         facts
    user added        admin      name, role, salt, token_hash, limits: {at_once, worker_hours}
    user changed      admin      name, and what changes of the above
    user removed      admin      name
    submitted         user       study, text, question, needs: {cpus, gpus}, priority, cloned_from
    stop asked        user       study
    resumed           user       study; text where it was changed
    priority          user       study, priority
    deleted           user       study
    started           server     study, runner
    began             runner     study: the runner has read it, and it runs
    ended             runner     study, how: finished, stopped or failed; message, spent: {unit: amount}
    lost              server     study, runner: its runner is gone, and it waits again
    runner ready      runner     runner, owner: {id, host, pid} of its lease
    runner gone       any        runner

A study's state: queued → starting → running → finished, stopped or failed; stopping between `stop asked` and
its end.
Events of kinds that this version does not know change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

Event = dict[str, Any]
Role = Literal["view", "run", "admin"]
ROLES: tuple[Role, ...] = ("view", "run", "admin")  # each may do what the ones before it may
Phase = Literal["queued", "starting", "running", "stopping", "finished", "stopped", "failed"]
ACTIVE: tuple[Phase, ...] = ("starting", "running", "stopping")
OVER: tuple[Phase, ...] = ("finished", "stopped", "failed")


@dataclass
class User:
    """Somebody with a token.

    token_hash: SHA-256 of salt and token, in hex. limits: the most studies that run at once (`at_once`), and
    the most worker-hours in all (`worker_hours`); a key that is missing is no limit.
    """

    name: str
    role: Role
    salt: str
    token_hash: str
    limits: dict[str, float]
    added_at: float
    added_by: str


@dataclass
class Submitted:
    """A study that was submitted to the service.

    number: of the event that put it into the queue first; smaller ones were there earlier.
    needs: {cpus, gpus} of all its worker groups together.
    run: how often it was started. runner: that it was given to, while it is active.
    losses: runners that it lost one after another, without an end.
    since: when the present state began. message: why it ended, if it failed.
    spent: {worker-hours, …} of all its runs. history: {at, by, kind, …} of each event, without texts.
    """

    name: str
    text: str
    question: str
    owner: str
    number: int
    submitted_at: float
    needs: dict[str, float]
    priority: int = 0
    state: Phase = "queued"
    run: int = 0
    runner: str = ""
    losses: int = 0
    since: float = 0.0
    message: str = ""
    cloned_from: str = ""
    spent: dict[str, float] = field(default_factory=dict)
    history: list[Event] = field(default_factory=list)


@dataclass
class Runner:
    """A process that runs studies. owner: {id, host, pid} of its lease; empty before it is ready."""

    id: str
    since: float
    owner: dict[str, Any] = field(default_factory=dict)
    study: str = ""


@dataclass
class State:
    """The state after `number` events."""

    number: int = 0
    users: dict[str, User] = field(default_factory=dict)
    studies: dict[str, Submitted] = field(default_factory=dict)
    runners: dict[str, Runner] = field(default_factory=dict)
    spending: list[Event] = field(default_factory=list)  # {at, user, study, unit: amount} of each run

    def apply(self, number: int, event: Event) -> None:
        """Apply the event with the next number."""
        self.number = number
        if handle := HANDLERS.get(str(event.get("kind"))):
            handle(self, event)
            if study := self.studies.get(str(event.get("study"))):
                study.history.append({k: v for k, v in event.items() if k not in ("id", "text", "study")})

    # -- looking up --------------------------------------------------------------------------------

    @property
    def queued(self) -> list[Submitted]:
        return [study for study in self.studies.values() if study.state == "queued"]

    @property
    def active(self) -> list[Submitted]:
        return [study for study in self.studies.values() if study.state in ACTIVE]

    @property
    def idle_runners(self) -> Iterator[Runner]:
        return (runner for runner in self.runners.values() if runner.owner and not runner.study)

    def spent_by(self, user: str, since: float = 0.0, unit: str = "worker-hours") -> float:
        """The spending of the user's runs that ended since that time."""
        return sum(s.get(unit, 0.0) for s in self.spending if s["user"] == user and s["at"] >= since)

    # -- users -------------------------------------------------------------------------------------

    def _user_added(self, event: Event) -> None:
        values = (event["name"], event["role"], event["salt"], event["token_hash"], event["limits"])
        self.users[event["name"]] = User(*values, event["at"], event["by"])

    def _user_changed(self, event: Event) -> None:
        for key in ("role", "salt", "token_hash", "limits"):
            if key in event:
                setattr(self.users[event["name"]], key, event[key])

    def _user_removed(self, event: Event) -> None:
        self.users.pop(event["name"], None)

    # -- studies -----------------------------------------------------------------------------------

    def _submitted(self, event: Event) -> None:
        name = event["study"]
        self.studies[name] = Submitted(
            name=name,
            text=event["text"],
            question=event["question"],
            owner=event["by"],
            number=self.number,
            submitted_at=event["at"],
            needs=event["needs"],
            priority=event["priority"],
            since=event["at"],
            cloned_from=event.get("cloned_from", ""),
        )

    def _enter(self, event: Event, state: Phase) -> Submitted:
        study = self.studies[event["study"]]
        study.state, study.since = state, event["at"]
        if state not in ACTIVE:
            if study.runner in self.runners:
                self.runners[study.runner].study = ""
            study.runner = ""
        return study

    def _stop_asked(self, event: Event) -> None:
        self._enter(event, "stopped" if self.studies[event["study"]].state == "queued" else "stopping")

    def _resumed(self, event: Event) -> None:
        study = self._enter(event, "queued")
        study.message, study.losses = "", 0
        for key in ("text", "question", "needs"):
            if key in event:
                setattr(study, key, event[key])

    def _priority(self, event: Event) -> None:
        self.studies[event["study"]].priority = event["priority"]

    def _deleted(self, event: Event) -> None:
        self.studies.pop(event["study"], None)

    def _started(self, event: Event) -> None:
        study, runner = self._enter(event, "starting"), event["runner"]
        study.run += 1
        study.runner = runner
        self.runners.setdefault(runner, Runner(runner, event["at"])).study = study.name

    def _began(self, event: Event) -> None:
        if self.studies[event["study"]].state == "starting":
            self._enter(event, "running")

    def _ended(self, event: Event) -> None:
        study = self._enter(event, cast(Phase, event["how"]))
        study.message, study.losses = event.get("message", ""), 0
        spent = event.get("spent", {})
        for unit, amount in spent.items():
            study.spent[unit] = study.spent.get(unit, 0.0) + amount
        self.spending.append({"at": event["at"], "user": study.owner, "study": study.name, **spent})

    def _lost(self, event: Event) -> None:
        stopping = self.studies[event["study"]].state == "stopping"
        self._enter(event, "stopped" if stopping else "queued").losses += 1

    # -- runners -----------------------------------------------------------------------------------

    def _runner_ready(self, event: Event) -> None:
        runner = self.runners.setdefault(event["runner"], Runner(event["runner"], event["at"]))
        runner.owner, runner.since = event["owner"], event["at"]

    def _runner_gone(self, event: Event) -> None:
        self.runners.pop(event["runner"], None)


HANDLERS: dict[str, Callable[[State, Event], None]] = {
    "user added": State._user_added,
    "user changed": State._user_changed,
    "user removed": State._user_removed,
    "submitted": State._submitted,
    "stop asked": State._stop_asked,
    "resumed": State._resumed,
    "priority": State._priority,
    "deleted": State._deleted,
    "started": State._started,
    "began": State._began,
    "ended": State._ended,
    "lost": State._lost,
    "runner ready": State._runner_ready,
    "runner gone": State._runner_gone,
}
